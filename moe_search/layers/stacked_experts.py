"""Experts of one shape, their weights stacked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise, repeat

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from moe_search.checks import require_integer
from moe_search.gates.batch_checks import like_rows, require_device, require_dtype, require_rows, rows_of
from moe_search.gates.leaf import Leaf

GROUPED_BYTES = 16
"""`grouped_mm` takes matrices whose rows are a multiple of this long."""

GROUPED_DTYPES = {"cpu": (torch.float32, torch.bfloat16, torch.float16), "cuda": (torch.bfloat16,)}
"""What `grouped_mm` takes, by type of device."""


class Stack(nn.ParameterList):
    """The weights or the biases of all experts, one entry for each affine map, of experts of some input widths."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], widths: Sequence[int]) -> None:
        super().__init__([torch.empty(shape) for shape in shapes])
        self.widths = tuple(widths)

    def reset_parameters(self) -> None:
        """Draw fresh parameters from torch's global generator."""
        for i in range(len(self)):
            self.reset(i)

    def reset(self, i: int) -> None:
        """Draw those of one affine map."""
        bound = 1.0 / math.sqrt(self.widths[i])
        nn.init.uniform_(self[i], -bound, bound)


class StackedExperts(Leaf):
    """n experts of the same shape: an affine map and an activation, or two affine maps with an activation between.

    With a being the activation, an expert without `hidden_features`, one with them and a gated one compute

        a(W x + b),   W2 a(W1 x + b1) + b2,   W2 (a(G x + c) * (U x + d)) + b2.

    A gated one with ``torch.nn.SiLU`` and no biases is the SwiGLU expert of Mixtral, Qwen, OLMoE and DeepSeek; with
    `GELU`, `Sigmoid`, `ReLU` and None the product is what Shazeer calls GEGLU, GLU, ReGLU and bilinear.

    Parameters
    ----------
    num_experts : int
        Number of experts n.
    in_features, out_features : int
        Width of the inputs and of the outputs.
    hidden_features : int, optional
        Width between the two affine maps. By default there is only one, followed by the activation.
    activation : callable or None
        Returns a module that works elementwise (or row by row), which all experts share. None stands for no activation:
        without `hidden_features`, the experts are then affine.
    gated : bool
        Whether the activation of one map of the inputs is multiplied by another map of them; it takes
        `hidden_features`.
    bias : bool
        Whether the affine maps have biases.

    Attributes
    ----------
    weights, biases : ParameterList
        One entry for each affine map, of shape [n, out, in] and [n, out]; no biases if there are none. The two first
        maps of gated experts are one entry, G above U: [n, 2 hidden_features, in_features], as `gate_up_proj` of
        Transformers.
    multiplications : int
        What one expert takes for one sample.

    Notes
    -----
    Every expert starts as `torch.nn.Linear` would: weight and bias uniform within 1 / sqrt(width of its inputs) of 0.

    Gated experts: Shazeer (2020), GLU variants improve transformer, arXiv 2002.05202, equations 5 and 6.

    Examples
    --------
    >>> import torch
    >>> from moe_search.layers.stacked_experts import StackedExperts
    >>> StackedExperts(4, in_features=8, out_features=3, hidden_features=16)(torch.randn(5, 8)).shape
    torch.Size([5, 4, 3])

    SwiGLU experts:

    >>> experts = StackedExperts(4, 8, 8, hidden_features=16, activation=torch.nn.SiLU, gated=True, bias=False)
    >>> [tuple(weight.shape) for weight in experts.weights]
    [(4, 32, 8), (4, 8, 16)]
    """

    def __init__(
        self,
        num_experts: int,
        in_features: int,
        out_features: int,
        hidden_features: int | None = None,
        activation: Callable[[], nn.Module] | None = nn.ReLU,
        *,
        gated: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.num_experts = require_integer("num_experts", num_experts)
        self.in_features = require_integer("in_features", in_features)
        self.out_features = require_integer("out_features", out_features)
        self.hidden_features = None
        if hidden_features is not None:
            self.hidden_features = require_integer("hidden_features", hidden_features)
        self.activation = nn.Identity() if activation is None else made_activation(activation)
        self.gated = bool(gated)
        if self.gated and self.hidden_features is None:
            raise ValueError("hidden_features must be given for gated experts, got None")
        widths = [width for width in (self.in_features, self.hidden_features, self.out_features) if width is not None]
        shapes = [(self.num_experts, after, before) for before, after in pairwise(widths)]
        if self.gated:
            shapes[0] = (self.num_experts, 2 * widths[1], widths[0])
        self.multiplications = sum(before * after for _, after, before in shapes)
        self.weights = Stack(shapes, widths[:-1])
        self.biases = Stack([shape[:2] for shape in shapes] if bias else [], widths[:-1])
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh weights from torch's global generator."""
        for i in range(len(self.weights)):
            self.weights.reset(i)
            if len(self.biases):
                self.biases.reset(i)

    def __len__(self) -> int:
        """Return the number of experts."""
        return self.num_experts

    def forward(self, inputs: Tensor) -> Tensor:
        """Run every expert on every row.

        Parameters
        ----------
        inputs : Tensor
            Shape [..., in_features].

        Returns
        -------
        Tensor
            Shape [..., n, out_features].

        Raises
        ------
        ValueError
            If there is no row, or shape, dtype or device are not those of the experts.
        """
        self.check(inputs)
        return like_rows(self._of_rows(rows_of(inputs)), inputs)

    def _of_rows(self, inputs: Tensor) -> Tensor:
        weights, biases = self._maps()
        # All experts read the same inputs: their first maps are one tall matrix.
        bias = None if biases[0] is None else biases[0].flatten()
        outputs = nn.functional.linear(inputs, weights[0].flatten(0, 1), bias)
        outputs = self._activate(outputs.reshape(-1, *weights[0].shape[:2]))
        if self.hidden_features is None:
            return outputs
        outputs, by_column = outputs.transpose(0, 1), weights[1].transpose(1, 2)
        if biases[1] is None:
            return torch.bmm(outputs, by_column).transpose(0, 1)
        return torch.baddbmm(biases[1].unsqueeze(1), outputs, by_column).transpose(0, 1)

    def forward_sorted(self, inputs: Tensor, counts: Sequence[int], grouped: bool = False) -> Tensor:
        """Run every expert on samples of its own.

        Parameters
        ----------
        inputs : Tensor
            Shape [P, in_features]: first the samples of expert 0, then those of expert 1, and so on.
        counts : sequence of int
            The number of samples of every expert, n numbers that sum to P, P >= 1.
        grouped : bool
            Whether to run all experts in one call of `torch.nn.functional.grouped_mm` for each affine map, instead of
            one after another.

        Returns
        -------
        Tensor
            Shape [P, out_features], in the order of the inputs.

        Raises
        ------
        ValueError
            As in `forward`, if the counts do not fit, or if ``grouped`` is not possible, as `refuses_grouped` says.
        """
        self.check(inputs)
        if grouped:
            self.check_grouped()
        if len(counts) != self.num_experts or sum(counts) != len(inputs):
            raise ValueError(
                f"counts must be {self.num_experts} numbers that sum to the {len(inputs)} rows of inputs, "
                f"got {len(counts)} that sum to {sum(counts)}"
            )
        return self._grouped(inputs, counts) if grouped else self._one_by_one(inputs, counts)

    def no_outputs(self, inputs: Tensor) -> Tensor:
        """Return the outputs of no sample, shape [0, out_features], in the precision of those of inputs like these."""
        return inputs.new_zeros(0, self.out_features, dtype=product_dtype(inputs))

    def _one_by_one(self, inputs: Tensor, counts: Sequence[int]) -> Tensor:
        # Unbound once: the backward pass of an index, expert by expert, would fill a whole stack of zeros for each.
        stacks = [
            (weight.unbind(0), repeat(None) if bias is None else bias.unbind(0))
            for weight, bias in zip(*self._maps(), strict=True)
        ]
        first, *last = [list(zip(weight, bias, strict=False)) for weight, bias in stacks]
        outputs = []
        for e, part in enumerate(torch.split(inputs, list(counts))):
            if len(part):
                part = self._activate(nn.functional.linear(part, *first[e]))
                for of_experts in last:
                    part = nn.functional.linear(part, *of_experts[e])
                outputs.append(part)
        return torch.cat(outputs)

    def _grouped(self, inputs: Tensor, counts: Sequence[int]) -> Tensor:
        sizes = torch.tensor(counts).to(inputs.device)
        ends = sizes.cumsum(0).to(torch.int32)
        owners = torch.arange(self.num_experts, device=inputs.device).repeat_interleave(sizes, output_size=len(inputs))
        return self._in_one_call(inputs, ends, owners)

    def forward_grouped(self, inputs: Tensor, ends: Tensor, owners: Tensor) -> Tensor:
        """Run every expert on samples of its own, as `forward_sorted` grouped, where only the device knows how many.

        Parameters
        ----------
        inputs : Tensor
            Shape [P, in_features], sorted by expert; what comes after those of the last expert is spare.
        ends : Tensor
            Shape [n], int32: how many samples the experts up to each have together.
        owners : Tensor
            Shape [P], int64: the expert of every sample, n for a spare one.

        Returns
        -------
        Tensor
            Shape [P, out_features], 0 for spare inputs.
        """
        self.check(inputs)
        self.check_grouped()
        return self._in_one_call(inputs, ends, owners, spare=(owners == self.num_experts).unsqueeze(1))

    def _in_one_call(self, inputs: Tensor, ends: Tensor, owners: Tensor, spare: Tensor | None = None) -> Tensor:
        # Autocast does not know grouped_mm.
        dtype = product_dtype(inputs)
        outputs = inputs
        for i, (weight, bias) in enumerate(zip(*self._maps(), strict=True)):
            by_column = weight.to(dtype).transpose(1, 2)
            outputs = nn.functional.grouped_mm(outputs.to(dtype).contiguous(), by_column, offs=ends)
            if bias is not None:
                at = owners if spare is None else owners.clamp(max=self.num_experts - 1)
                outputs = outputs.add_(bias.to(dtype).index_select(0, at))
            if spare is not None:
                # Nothing was written there, and whatever stands there is in no gradient either.
                outputs = outputs.masked_fill(spare, 0.0)
            if i == 0:
                outputs = self._activate(outputs)
        return outputs

    def _maps(self) -> tuple[list[Tensor], list[Tensor] | list[None]]:
        weights = list(self.weights)
        return weights, list(self.biases) if len(self.biases) else [None] * len(weights)

    def _activate(self, outputs: Tensor) -> Tensor:
        if not self.gated:
            return self.activation(outputs)
        gate, up = outputs.chunk(2, -1)
        return self.activation(gate) * up

    def refuses_grouped(self) -> str | None:
        """Return why `torch.nn.functional.grouped_mm` cannot run these experts, or None if it can.

        The answer depends on autocast, which decides the precision, and on whether it is asked inside of forward-mode
        derivatives (`torch.func.jvp`, `torch.autograd.forward_ad`), which `grouped_mm` has none of.
        """
        if forward_ad._current_level >= 0:
            return "needs derivatives in reverse mode: torch.nn.functional.grouped_mm has none in forward mode"
        if not hasattr(nn.functional, "grouped_mm"):
            return f"needs torch.nn.functional.grouped_mm, which torch {torch.__version__} lacks"
        weight = self.weights[0]
        dtype = product_dtype(weight)
        allowed = GROUPED_DTYPES.get(weight.device.type, ())
        if dtype not in allowed:
            return f"needs one of the dtypes {list(allowed)} on {weight.device.type}, got {dtype}"
        for name in ("in_features", "hidden_features", "out_features"):
            width = getattr(self, name)
            if width is not None and width * dtype.itemsize % GROUPED_BYTES:
                return f"needs rows of a multiple of {GROUPED_BYTES} bytes, got {name}={width} of {dtype}"
        return None

    def check_grouped(self) -> None:
        """Raise ValueError if `torch.nn.functional.grouped_mm` cannot run these experts."""
        fault = self.refuses_grouped()
        if fault is not None:
            raise ValueError(f'dispatch="grouped" {fault}')

    def check(self, inputs: Tensor) -> None:
        """Raise ValueError if inputs are not what `forward` takes."""
        require_rows(inputs)
        if inputs.shape[-1] != self.in_features:
            raise ValueError(
                f"inputs must have shape [..., {self.in_features}], "
                f"in_features of the experts being {self.in_features}, got shape {tuple(inputs.shape)}"
            )
        require_device("inputs", inputs, self.weights[0].device, "experts")
        require_dtype(inputs, self.weights[0].dtype, "experts")

    def extra_repr(self) -> str:
        """Return the sizes, for `repr`."""
        return (
            f"num_experts={self.num_experts}, in_features={self.in_features}, out_features={self.out_features}, "
            f"hidden_features={self.hidden_features}, gated={self.gated}, bias={len(self.biases) > 0}"
        )


def made_activation(activation: Callable[[], nn.Module]) -> nn.Module:
    """Return the module that ``activation`` returns, or raise TypeError: it may be such a module itself."""
    try:
        made = activation()
    except TypeError as error:
        raise TypeError(
            f"activation must return a module when it is called, as torch.nn.ReLU does, got {activation!r}"
        ) from error
    if not isinstance(made, nn.Module):
        raise TypeError(f"activation must return a torch.nn.Module, got {type(made).__name__}")
    return made


def product_dtype(tensor: Tensor) -> torch.dtype:
    """Return the precision of a matrix product of this tensor: its own, or that of autocast."""
    device = tensor.device.type
    if torch.is_autocast_enabled(device) and tensor.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return tensor.dtype
