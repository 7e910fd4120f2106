"""Placement of experts for serving: EPLB's function, a policy for vLLM, files of engines, traffic played through."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
