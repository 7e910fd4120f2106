"""moe-search: the discrete half of sparse Mixture-of-Experts models, solved as a combinatorial search problem."""

import lazy_loader

__version__ = "0.1.0"

# Names are imported when first asked for, so that a solver's user waits for no torch and no matplotlib.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
