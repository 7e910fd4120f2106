"""The mixture layers of models of Hugging Face: found, permuted, cut down, without code for single models."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
