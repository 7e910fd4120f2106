"""Gates: inputs to weights over the slots that hold the experts."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
