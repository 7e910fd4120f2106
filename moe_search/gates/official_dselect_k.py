"""From the published DSelect-k to ours."""

from __future__ import annotations

from collections.abc import Mapping

import numpy.typing as npt
import torch
from torch import Tensor

from moe_search.checks import require_integer
from moe_search.gates.dselect_k import DSelectK
from moe_search.gates.official_layout import expert_of_column, named_tensors

STATIC = {"z_logits", "w_logits"}
PER_EXAMPLE = {"z_logits.kernel", "z_logits.bias", "w_logits.kernel", "w_logits.bias"}
IGNORED = ("num_calls", "_num_calls")
"""The step counter of the published entropy schedule."""


def load_official_dselect_k(
    state_dict: Mapping[str, Tensor | npt.ArrayLike],
    num_experts: int,
    *,
    gamma: float = 1.0,
    entropy: float = 1e-2,
    zeta: float = 1.0,
    permutation: Tensor | npt.ArrayLike | None = None,
    prefix: str = "",
) -> DSelectK:
    """Return the gate that computes what the published DSelect-k with these weights computes.

    With n a power of two, that is. With any other n, it is the published weights divided by their sum, which the
    published gate leaves below 1 (see `DSelectK`).

    Parameters
    ----------
    state_dict : mapping of str to Tensor or array
        The weights of a published gate (TensorFlow), either

        - static: ``z_logits`` of shape [k, 1, bits] and ``w_logits`` of shape [k, 1], or
        - per example, two dense layers: ``z_logits/kernel`` of shape [in_features, k * bits], ``z_logits/bias`` of
          shape [k * bits], ``w_logits/kernel`` of shape [in_features, k] and ``w_logits/bias`` of shape [k],

        with bits = ceil(log2 n), n > 1. Names may begin with an underscore (``_z_logits``), have dots for slashes, and
        end in ``:0`` or ``/.ATTRIBUTES/VARIABLE_VALUE``, as TensorFlow's files have them. ``num_calls``, the counter of
        the published entropy schedule, is ignored.
    num_experts : int
        Number of experts n: the weights only tell its logarithm.
    gamma : float
        What the published gate was built with: it is not in the weights.
    entropy, zeta : float
        As in `DSelectK`.
    permutation : Tensor or array_like, optional
        As in `load_official_comet`: the COMET authors' version of the gate puts one behind its codes.
    prefix : str
        What the names of the gate's weights begin with; other names are ignored.

    Returns
    -------
    DSelectK
        In the dtype of the weights, in training mode.

    Raises
    ------
    TypeError
        If a value is no tensor or array of floating-point numbers, or n no integer.
    ValueError
        If names or shapes are not those above, or the permutation is none.

    Notes
    -----
    The published code: dselect_k_moe in https://github.com/google-research/google-research.

    Examples
    --------
    >>> import torch
    >>> from moe_search.gates.official_dselect_k import load_official_dselect_k
    >>> load_official_dselect_k({"z_logits": torch.randn(2, 1, 3), "w_logits": torch.randn(2, 1)}, num_experts=6).k
    2
    """
    n = require_integer("num_experts", num_experts)
    bits = (n - 1).bit_length()
    tensors = {name.removeprefix("_"): t for name, t in named_tensors(state_dict, prefix, IGNORED).items()}
    if set(tensors) not in (STATIC, PER_EXAMPLE):
        raise ValueError(
            f"state_dict must have the names {', '.join(sorted(STATIC))} or {', '.join(sorted(PER_EXAMPLE))}, "
            f"got {', '.join(sorted(tensors))}"
        )
    static = set(tensors) == STATIC
    last = tensors["w_logits" if static else "w_logits.kernel"]
    k = last.shape[0 if static else -1] if last.ndim else 0
    in_features = None if static else last.shape[0]
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    expected = (
        {"z_logits": (k, 1, bits), "w_logits": (k, 1)}
        if static
        else {
            "z_logits.kernel": (in_features, k * bits),
            "z_logits.bias": (k * bits,),
            "w_logits.kernel": (in_features, k),
            "w_logits.bias": (k,),
        }
    )
    if shapes != expected or n < 2:
        raise ValueError(f"state_dict must have the shapes {expected} for {n} experts, n > 1, got {shapes}")
    gate = DSelectK(in_features, n, k, gamma=gamma, entropy=entropy, zeta=zeta).to(last.dtype)
    with torch.no_grad():
        if static:
            assert gate.values is not None
            gate.values.copy_(torch.cat([tensors["z_logits"].squeeze(1), tensors["w_logits"]], 1).flatten())
        else:
            assert gate.linear is not None
            gate.linear.weight.copy_(_rows(tensors["z_logits.kernel"].T, tensors["w_logits.kernel"].T, k))
            gate.linear.bias.copy_(_rows(tensors["z_logits.bias"], tensors["w_logits.bias"], k))
    gate.expert_map.assign(expert_of_column(permutation, k, n))
    return gate


def _rows(bits: Tensor, selectors: Tensor, k: int) -> Tensor:
    """Return the rows of our layer, those of a selector together: its bits, and then its weight."""
    return torch.cat([bits.reshape(k, -1, *bits.shape[1:]), selectors.unsqueeze(1)], 1).flatten(0, 1)
