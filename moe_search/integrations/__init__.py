"""Permutation search in the trainers of other libraries, each imported when it is first asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe_search.integrations.lightning import LightningSearch
    from moe_search.integrations.transformers import TransformersSearch

_HOMES = {"LightningSearch": "lightning", "TransformersSearch": "transformers"}

__all__ = ["LightningSearch", "TransformersSearch"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'moe_search.integrations' has no attribute {name!r}")
    return getattr(importlib.import_module(f"moe_search.integrations.{_HOMES[name]}"), name)
