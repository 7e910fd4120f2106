"""How a search did over many runs, and what the landscape looks like that it searches."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
