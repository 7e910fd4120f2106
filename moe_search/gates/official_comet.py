"""From the published versions of COMET to ours: their weights, put where our heap has its nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from moe_search.gates.comet import COMET
from moe_search.gates.official_layout import expert_of_column, named_tensors

CHILDREN = {"left_child": 1, "right_child": 2}
KERNELS = {"weight": "torch", "kernel": "tensorflow"}
IGNORED = ("alpha_ave_past",)
"""A running mean that only the published balancing loss reads."""


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
        As in `COMET`.
    permutation : Tensor or array_like, optional
        The published ``permutation_weights``, shape [k, n, n] or [1, n, n] for one for all trees: leaf j of tree t is
        of the expert with the largest entry of row j. By default leaf j is of expert j.
    prefix : str
        What the names of the gate's weights begin with; other names are ignored.

    Returns
    -------
    COMET
        With the convention of the version the weights come from, in their dtype, in training mode.

    Raises
    ------
    TypeError
        If a value is no tensor or array of floating-point numbers.
    ValueError
        If names or shapes are not those above, no two layouts mixed, or the permutation is none.

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
    >>> from moe_search.gates.official_comet import load_official_comet
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
    layers = _layers(named_tensors(state_dict, prefix, IGNORED))
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
    kernel = "weight" if convention == "torch" else "kernel"
    shapes: dict[str, tuple[int, ...]] = {kernel: (k, in_features) if convention == "torch" else (in_features, k)}
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
