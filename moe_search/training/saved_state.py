"""State dicts in a safetensors file: tensors as tensors, all else as JSON beside them, no pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

KEY = "moe-search state"


def save_state(state: Any, path: str | os.PathLike[str]) -> None:
    """Write nested dicts, lists and tuples of tensors, numbers, strings, booleans and None to one safetensors file.

    Takes the state dicts of modules, optimizers, schedulers and `PermutationSearch`, and several in one dict::

        save_state(
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "search": search.state_dict(),
                "random": torch.get_rng_state(),
            },
            "checkpoint.safetensors",
        )

    On the CPU, a run that loads all four goes on bit for bit as if it had never stopped.

    Parameters
    ----------
    state : dict, list, tuple, Tensor, int, float, str, bool or None
        Keys of dicts are strings or integers.
    path : str or PathLike
        The file; one that is there is overwritten.

    Raises
    ------
    TypeError
        If there is something else in it; the message names where.
    ImportError
        If safetensors is not installed.

    Examples
    --------
    >>> import torch
    >>> import moe_search as ms
    >>> gate = ms.TopK(8, 4, k=2)
    >>> ms.save_state({"gate": gate.state_dict(), "step": 100}, "checkpoint.safetensors")
    >>> ms.load_state("checkpoint.safetensors")["step"]
    100
    """
    safetensors = _safetensors()
    tensors: dict[str, Tensor] = {}
    tree = _encoded(state, "state", tensors)
    safetensors.torch.save_file(tensors, os.fspath(path), metadata={KEY: json.dumps(tree)})


def load_state(path: str | os.PathLike[str]) -> Any:
    """Read what `save_state` wrote; tensors come on the CPU.

    Raises
    ------
    ValueError
        If the file was not written by `save_state`.
    ImportError
        If safetensors is not installed.

    Examples
    --------
    >>> import torch
    >>> import moe_search as ms
    >>> gate = ms.TopK(8, 4, k=2)
    >>> ms.save_state({"gate": gate.state_dict(), "step": 100}, "checkpoint.safetensors")
    >>> state = ms.load_state("checkpoint.safetensors")
    >>> gate.load_state_dict(state["gate"])
    <All keys matched successfully>
    """
    with _safetensors().safe_open(os.fspath(path), framework="pt") as file:
        text = (file.metadata() or {}).get(KEY)
        if text is None:
            raise ValueError(f"path must be a file that save_state wrote, got {os.fspath(path)}")
        return _decoded(json.loads(text), file)


def require_keys(what: str, state: Any, keys: Iterable[str]) -> None:
    """Raise an error unless a state that is to be taken up is a dict with some keys and no others."""
    if not isinstance(state, Mapping):
        raise TypeError(f"{what} must be a dict, as it was saved, got {type(state).__name__}")
    if set(state) != set(keys):
        raise ValueError(f"{what} must have the keys {', '.join(keys)}, got {', '.join(map(str, state)) or 'none'}")


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError:
        raise ImportError("states are saved by safetensors: pip install safetensors") from None
    return safetensors


def _encoded(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    """Return ``value`` as JSON, its tensors put aside under the names of where they stood."""
    if isinstance(value, Tensor):
        # A copy: views of one storage cannot be written twice, or not alone.
        tensors[where] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": where}
    if isinstance(value, Mapping):
        for key in value:
            if isinstance(key, bool) or not isinstance(key, (str, int)):
                raise TypeError(f"keys must be strings or integers, got {type(key).__name__} in {where}")
        return {"dict": [[key, _encoded(each, f"{where}.{key}", tensors)] for key, each in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_encoded(each, f"{where}.{i}", tensors) for i, each in enumerate(value)]}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"state must hold tensors, numbers, strings, dicts, lists, tuples, got {type(value)} in {where}")


def _decoded(tree: Any, file: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    [(kind, content)] = tree.items()
    if kind == "tensor":
        # A copy in torch's own memory: in the file it may lie where matrix products round in another way.
        return file.get_tensor(content).clone()
    if kind == "dict":
        return {key: _decoded(each, file) for key, each in content}
    values = [_decoded(each, file) for each in content]
    return values if kind == "list" else tuple(values)
