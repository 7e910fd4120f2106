"""How published gates name their weights, and what their permutations mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

SUFFIXES = ("/.ATTRIBUTES/VARIABLE_VALUE", ":0")


def named_tensors(
    state_dict: Mapping[str, Tensor | npt.ArrayLike], prefix: str, ignored: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Return the weights whose names begin with ``prefix``, as tensors, by the rest of their name.

    Parameters
    ----------
    state_dict : mapping of str to Tensor or array
        Steps of a name are separated by dots or slashes. What TensorFlow's files put at the end is taken off.
    prefix : str
        Of the names, with or without the separator at its end.
    ignored : sequence of str
        Last steps of the names to leave out.

    Returns
    -------
    dict
        From names, with dots, to tensors of floating-point numbers.

    Raises
    ------
    TypeError
        If `state_dict` is no mapping, or a value no tensor or array of floating-point numbers.
    ValueError
        If no name begins with the prefix.
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict must map names to tensors, got {type(state_dict).__name__}")
    start = prefix.replace("/", ".")
    start = f"{start.removesuffix('.')}." if start else ""
    tensors = {}
    for key, value in state_dict.items():
        name = key
        for suffix in SUFFIXES:
            name = name.removesuffix(suffix)
        name = name.replace("/", ".")
        if not name.startswith(start) or name.split(".")[-1] in ignored:
            continue
        tensor = value if isinstance(value, Tensor) else _from_array(key, value)
        if not tensor.is_floating_point():
            raise TypeError(f"state_dict must hold floating-point numbers, got dtype {tensor.dtype} for {key!r}")
        tensors[name.removeprefix(start)] = tensor.detach()
    if not tensors:
        raise ValueError(f"state_dict must have names that begin with {prefix!r}, got none of {len(state_dict)}")
    return tensors


def expert_of_column(permutation: Tensor | npt.ArrayLike | None, k: int, n: int) -> Tensor:
    """Return the expert of every column of weights before a published permutation.

    Parameters
    ----------
    permutation : Tensor, array_like or None
        Shape [k, n, n] or [1, n, n], nearly a permutation matrix in each row of the first axis: column i of the
        weights goes to the expert with the largest entry of row i. None for the identity.
    k, n : int
        Number of selectors and of experts.

    Returns
    -------
    Tensor of int64
        Shape [k, n].

    Raises
    ------
    ValueError
        If the shape is another, or two rows have their largest entry in one column.
    """
    if permutation is None:
        return torch.arange(n).repeat(k, 1)
    matrices = (
        permutation.detach().cpu() if isinstance(permutation, Tensor) else torch.from_numpy(np.array(permutation))
    )
    if tuple(matrices.shape) not in ((k, n, n), (1, n, n)):
        raise ValueError(
            f"permutation must have shape ({k}, {n}, {n}) or (1, {n}, {n}), got shape {tuple(matrices.shape)}"
        )
    experts = matrices.argmax(2)
    if not torch.equal(experts.sort(1).values, torch.arange(n).repeat(len(experts), 1)):
        raise ValueError(
            f"permutation must have the largest entries of its rows in different columns, got {experts.tolist()}"
        )
    return experts.expand(k, n)


def _from_array(key: str, value: npt.ArrayLike) -> Tensor:
    array = np.asarray(value)
    if array.dtype.kind != "f":
        raise TypeError(
            f"state_dict must hold tensors or arrays of floating-point numbers, got {array.dtype} for {key!r}"
        )
    return torch.from_numpy(array.copy())
