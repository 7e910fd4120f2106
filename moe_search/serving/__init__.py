"""Placement of experts for serving engines: EPLB's function, a policy for vLLM, the files of engines."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
