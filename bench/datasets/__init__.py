"""Data sets made from what is installed or lies at a path: nothing is downloaded."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
