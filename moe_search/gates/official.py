"""Weights of the published versions of COMET and DSelect-k put into ours, and what their permutations mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from moe_search.checks import require_integer
from moe_search.gates.comet import COMET
from moe_search.gates.dselect_k import DSelectK

SUFFIXES = ("/.ATTRIBUTES/VARIABLE_VALUE", ":0")

CHILDREN = {"left_child": 1, "right_child": 2}
KERNELS = {"weight": "torch", "kernel": "tensorflow"}
IGNORED_OF_COMET = ("alpha_ave_past",)
"""A running mean that only the published balancing loss reads."""

STATIC = {"z_logits", "w_logits"}
PER_EXAMPLE = {"z_logits.kernel", "z_logits.bias", "w_logits.kernel", "w_logits.bias"}
IGNORED_OF_DSELECT_K = ("num_calls", "_num_calls")
"""The step counter of the published entropy schedule."""


def load_official_comet(
    state_dict: Mapping[str, Tensor | npt.ArrayLike],
    *,
    gamma: float = 1.0,
    entropy: float = 1e-2,
    permutation: Tensor | npt.ArrayLike | None = None,
    prefix: str = "",
) -> COMET:
    """Return the gate that computes what a published COMET with these weights computes.

    Parameters
    ----------
    state_dict : mapping of str to Tensor or array
        The weights of a published gate, its root at `prefix`. A node is reached by a path of ``left_child`` and
        ``right_child``; at its end stand, for every split node, the layer ``selector_layer`` and, for every leaf,
        ``output_layer``, each with k units:

        - torch (COMET-BERT): ``selector_layer.weight`` of shape [k, in_features], ``output_layer.weight`` of the same
          shape, ``output_layer.bias`` of shape [k];
        - TensorFlow (COMET with routing inputs): ``selector_layer/kernel`` and ``output_layer/kernel`` of shape
          [in_features, k], and a ``bias`` of shape [k] in both.

        Steps of a path are separated by dots or slashes; a final ``:0`` or ``/.ATTRIBUTES/VARIABLE_VALUE``, as
        TensorFlow's files have it, is taken off. ``alpha_ave_past``, of the published balancing loss, is ignored.
    gamma : float
        What the published gate was built with: it is not in the weights.
    entropy : float
        Factor of the penalty, see `COMET`.
    permutation : Tensor or array_like, optional
        The published ``permutation_weights``, shape [k, n, n] or [1, n, n] for one for all trees: leaf j of tree t is
        of the expert with the largest entry of row j. By default leaf j is of expert j.
    prefix : str
        What the names of the gate's weights begin with; other names are ignored.

    Returns
    -------
    COMET
        It has the convention of the version that the weights come from and their dtype, and is in training mode.

    Notes
    -----
    The published code, https://github.com/mazumder-lab/COMET (TensorFlow) and
    https://github.com/mazumder-lab/COMET-BERT (torch), numbers nodes as a heap, but collects leaves by recursion: with
    n = 6, expert 0 sits at node 7, then come 8, 9, 10, 5 and 6. Ours has leaves in heap order, so that the difference
    goes into the expert map. The TensorFlow version's static gate (``selector_weights``, ``output_weights``) has no
    counterpart here.

    Examples
    --------
    >>> import torch
    >>> from moe_search.gates.official import load_official_comet
    >>> state = {
    ...     "selector_layer.weight": torch.randn(2, 8),
    ...     "left_child.output_layer.weight": torch.randn(2, 8),
    ...     "left_child.output_layer.bias": torch.zeros(2),
    ...     "right_child.output_layer.weight": torch.randn(2, 8),
    ...     "right_child.output_layer.bias": torch.zeros(2),
    ... }
    >>> load_official_comet(state).convention
    'torch'
    """
    layers = _layers(named_tensors(state_dict, prefix, IGNORED_OF_COMET))
    n = sum(layer == "output_layer" for _, layer in layers)
    expected = {(i, "selector_layer" if i < n - 1 else "output_layer") for i in range(2 * n - 1)}
    if n < 2 or set(layers) != expected:
        raise ValueError(
            "state_dict must hold selector_layer at nodes 0 .. n - 2 of a heap and output_layer at its leaves "
            f"n - 1 .. 2 n - 2, n >= 2, got {_nodes(layers, 'selector_layer')} and {_nodes(layers, 'output_layer')}"
        )
    conventions = {KERNELS[name] for layer in layers.values() for name in layer if name in KERNELS}
    if len(conventions) != 1:
        raise ValueError(
            f"state_dict must be of one version, with a weight or a kernel in each layer, "
            f"got {', '.join(sorted(conventions)) or 'neither'}"
        )
    convention = conventions.pop()
    kernel = "weight" if convention == "torch" else "kernel"
    root = layers[0, "selector_layer"].get(kernel)
    if root is None or root.ndim != 2:
        raise ValueError(
            f"selector_layer of the root must have a {kernel} of two axes, "
            f"got {None if root is None else f'shape {tuple(root.shape)}'}"
        )
    k, in_features = root.shape if convention == "torch" else root.T.shape
    gate = COMET(in_features, n, k, gamma=gamma, entropy=entropy, convention=convention).to(root.dtype)
    with torch.no_grad():
        for (node, layer), tensors in layers.items():
            weight, bias = _affine(convention, layer, node, tensors, k, in_features)
            gate.nodes.weight.view(k, -1, in_features)[:, node] = weight
            if bias is None:
                continue
            if gate.leaf_bias is None:
                gate.nodes.bias.view(k, -1)[:, node] = bias
            else:
                gate.leaf_bias[:, node - (n - 1)] = bias
    slot_of_leaf = torch.tensor(leaves_by_recursion(n)) - (n - 1)
    experts = torch.empty(k, n, dtype=torch.int64)
    experts[:, slot_of_leaf] = expert_of_column(permutation, k, n)
    gate.expert_map.assign(experts)
    return gate


def leaves_by_recursion(num_leaves: int, node: int = 0) -> list[int]:
    """Return the heap numbers of the leaves below a node, left before right: the published order of the experts."""
    if node >= num_leaves - 1:
        return [node]
    return leaves_by_recursion(num_leaves, 2 * node + 1) + leaves_by_recursion(num_leaves, 2 * node + 2)


def _layers(tensors: Mapping[str, Tensor]) -> dict[tuple[int, str], dict[str, Tensor]]:
    """Return the tensors by node, in heap order, and layer, then by their own name."""
    layers: dict[tuple[int, str], dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        *steps, layer, name = ["", *path.split(".")]
        node = 0
        for step in steps[1:]:
            node = 2 * node + CHILDREN.get(step, 0)
        if any(step not in CHILDREN for step in steps[1:]) or layer not in ("selector_layer", "output_layer"):
            raise ValueError(
                "state_dict must have names such as left_child.right_child.selector_layer.weight and "
                f"left_child.output_layer.bias, got {path!r}"
            )
        layers.setdefault((node, layer), {})[name] = tensor
    return layers


def _affine(
    convention: str, layer: str, node: int, tensors: Mapping[str, Tensor], k: int, in_features: int
) -> tuple[Tensor, Tensor | None]:
    """Return weight, shape [k, in_features], and bias, shape [k] or None, of a checked layer."""
    kernel, shape = ("weight", (k, in_features)) if convention == "torch" else ("kernel", (in_features, k))
    shapes: dict[str, tuple[int, ...]] = {kernel: shape}
    if convention == "tensorflow" or layer == "output_layer":
        shapes["bias"] = (k,)
    got = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if got != shapes:
        raise ValueError(
            f"{layer} of node {node} must have {shapes}, as in the root of the {convention} version, got {got}"
        )
    weight = tensors[kernel] if convention == "torch" else tensors[kernel].T
    return weight, tensors.get("bias")


def _nodes(layers: Mapping[tuple[int, str], Any], layer: str) -> list[int]:
    return sorted(node for node, name in layers if name == layer)


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

    This holds for n a power of two. For any other n it returns the published weights divided by their sum, which the
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
    entropy, zeta : float
        Factors of the penalty, see `DSelectK`.
    permutation : Tensor or array_like, optional
        The one that the COMET authors' version of the gate puts behind its codes.
    gamma, prefix : float, str
        As in `load_official_comet`.

    Returns
    -------
    DSelectK
        It has the dtype of the weights, and is in training mode.

    Notes
    -----
    The published code: dselect_k_moe in https://github.com/google-research/google-research.

    Examples
    --------
    >>> import torch
    >>> from moe_search.gates.official import load_official_dselect_k
    >>> load_official_dselect_k({"z_logits": torch.randn(2, 1, 3), "w_logits": torch.randn(2, 1)}, num_experts=6).k
    2
    """
    n = require_integer("num_experts", num_experts)
    bits = (n - 1).bit_length()
    tensors = {name.removeprefix("_"): t for name, t in named_tensors(state_dict, prefix, IGNORED_OF_DSELECT_K).items()}
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


def named_tensors(
    state_dict: Mapping[str, Tensor | npt.ArrayLike], prefix: str, ignored: Sequence[str]
) -> dict[str, Tensor]:
    """Return the weights whose names begin with ``prefix``, by the rest of the name with dots between its steps.

    Names whose last step is `ignored` are left out.
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
        if not isinstance(value, Tensor):
            array = np.array(value)
            if array.dtype.kind != "f":
                raise TypeError(
                    f"state_dict must hold tensors or arrays of floating-point numbers, got {array.dtype} for {key!r}"
                )
            value = torch.from_numpy(array)
        if not value.is_floating_point():
            raise TypeError(f"state_dict must hold floating-point numbers, got dtype {value.dtype} for {key!r}")
        tensors[name.removeprefix(start)] = value.detach()
    if not tensors:
        raise ValueError(f"state_dict must have names that begin with {prefix!r}, got none of {len(state_dict)}")
    return tensors


def expert_of_column(permutation: Tensor | npt.ArrayLike | None, k: int, n: int) -> Tensor:
    """Return the expert of every column of the weights of k selectors before a published permutation, shape [k, n].

    The permutation has shape [k, n, n] or [1, n, n]: column i goes to the expert with the largest entry of row i, of
    which no two may be in one column. None stands for the identity.
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
