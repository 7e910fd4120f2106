"""The layer: a gate and its experts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from moe_search.checks import require_choice
from moe_search.gates.batch_checks import (
    cannot_read_values,
    is_captured,
    is_exporting,
    is_recomputing,
    like_rows,
    require_mask,
    require_rows,
    rows_of,
)
from moe_search.gates.gate import Gate, SlotWeights, route
from moe_search.gates.leaf import Leaf
from moe_search.layers.device_dispatch import DeviceDispatch, chosen_path, device_mixtures, most_experts
from moe_search.layers.dispatch import DISPATCHES, Dispatch, fastest_dispatch, union_of
from moe_search.layers.stacked_experts import StackedExperts


class MixtureOfExperts(Leaf):
    """Mixes experts with the weights of a gate: ``sum_e w[b, e] f_e(x_b)``, and adds what shared experts make of all.

    An expert runs only on the samples that give it weight, and is not called where there are none: in training and in
    eval mode, unless `dispatch` says otherwise or, by default, running all of a small stack on all samples is faster.

    Parameters
    ----------
    experts : StackedExperts or iterable of Module
        n experts: modules of any kind that turn rows, shape [B, in_features], into outputs of one common shape
        [B, ...], each row on its own.
    gate : Gate
        Its ``num_experts`` must be n.
    dispatch : {"auto", "dense", "sorted", "grouped"}
        How samples reach their experts. All give the same outputs and gradients, to rounding, as long as no expert has
        infinite ones.

        - "sorted": the pairs of a sample and an expert with a weight other than 0 are sorted by expert, and one expert
          after another runs on its own.
        - "grouped": pairs are sorted too, but all experts run in one call of `torch.nn.functional.grouped_mm`. It needs
          `StackedExperts` with widths and a dtype that it takes, and has no derivatives in forward mode; see
          `StackedExperts.refuses_grouped`.
        - "dense": every expert runs on every sample. An expert whose outputs overflow then spoils also the samples
          that give it weight 0.
        - "auto": the fastest of these for the sizes at hand: on a CPU by a rule that was fitted to times, on other
          devices by a trial at the first batch of a shape (see the notes). Where dense gives NaN or infinite mixtures,
          "sorted" computes them anew, so that no expert spoils a sample that gives it weight 0; inside of compiled code
          and of `torch.func.vmap`, where nothing can be looked at, it does. This holds for values, not for gradients:
          an expert whose values are finite and whose gradient is not, as of a square root at 0, spoils the gradients of
          itself and of the inputs also by samples that give it weight 0, where dense is the fastest. With "sorted" and
          "grouped" it never does.
    shared : Module, optional
        Runs on every sample, whatever the gate says, and is added: ``sum_e w[b, e] f_e(x_b) + s(x_b)``, as in
        DeepSeek-MoE. Of `StackedExperts` the sum of all is added.
    shared_gate : Module, optional
        Weighs what is shared, ``sigmoid(v(x_b)) s(x_b)``, as in Qwen2-MoE: it returns a number a sample, shape [B, 1],
        as ``torch.nn.Linear(in_features, 1, bias=False)`` does.

    Attributes
    ----------
    experts : StackedExperts or ModuleList
    gate : Gate
    dispatch : str
    shared, shared_gate : Module or None
    routing : SlotWeights or None
        What the gate returned in the last forward in training mode, graph attached. It is not copied, pickled or in the
        state dict.

    Notes
    -----
    Sorting takes sizes that depend on the weights, which `torch.compile` cannot trace: "auto" is "dense" inside of
    compiled code, one graph without breaks, while "sorted" and "grouped" break it and run uncompiled. What maps over
    batches, `torch.func.vmap`, or is exported, by `torch.export`, `torch.onnx` or `torch.jit.trace`, is always "dense".

    On other devices than the CPU, "auto" tries what is possible forward and backward at the first batch of a shape, and
    keeps the fastest for the process, as ``torch.backends.cudnn.benchmark`` does: a shape is that of the experts, the
    dtype, the most experts of a sample, and the number of samples up to a factor of 2. Under
    `torch.use_deterministic_algorithms`, and where a CUDA graph is captured before a trial, it is "grouped" where that
    is possible. No step waits for the device with "grouped" and "dense": Python goes on while experts compute. With
    "sorted", and with experts of modules of their own, it waits once for the number of samples of every expert. Of
    `StackedExperts` in float32 on CUDA, which `grouped_mm` does not take, "sorted" may be the fastest all the same.

    An expert of modules of their own that no sample of a batch goes to gets no gradient: `DistributedDataParallel` then
    needs ``find_unused_parameters=True``. With `StackedExperts` it does not. No gradient is made up for such an expert:
    zeros, unlike none, let momentum and weight decay move an expert that no rank had a sample for.

    Under autocast, experts compute in its dtype, with all dispatches, and so does the mixture come out.

    Shared experts: Dai et al. (2024), DeepSeekMoE, arXiv 2401.06066, equation 9; with a sigmoid: Yang et al. (2024),
    Qwen2 technical report, arXiv 2407.10671, and its ``shared_expert_gate`` in Transformers. A map changes nothing of
    what is shared: a search takes it for a constant that is added to the mixture.

    Examples
    --------
    >>> import torch
    >>> from moe_search.gates.top_k import TopK
    >>> from moe_search.layers.mixture_of_experts import MixtureOfExperts
    >>> from moe_search.layers.stacked_experts import StackedExperts
    >>> moe = MixtureOfExperts(StackedExperts(4, in_features=8, out_features=3), TopK(8, 4, k=2))
    >>> moe(torch.randn(5, 8)).shape
    torch.Size([5, 3])

    The block of DeepSeek: SwiGLU experts, of which two are shared.

    >>> def swiglu(n):
    ...     return StackedExperts(n, 8, 8, hidden_features=16, activation=torch.nn.SiLU, gated=True, bias=False)
    >>> MixtureOfExperts(swiglu(4), TopK(8, 4, k=2), shared=swiglu(2))(torch.randn(5, 8)).shape
    torch.Size([5, 8])
    """

    experts: StackedExperts | nn.ModuleList

    def __init__(
        self,
        experts: StackedExperts | Iterable[nn.Module],
        gate: Gate,
        dispatch: str = "auto",
        *,
        shared: nn.Module | None = None,
        shared_gate: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(gate, Gate):
            raise TypeError(f"gate must be a Gate, got {type(gate).__name__}")
        if isinstance(experts, StackedExperts):
            self.experts = experts
        else:
            if not isinstance(experts, Iterable):
                raise TypeError(
                    f"experts must be StackedExperts or an iterable of modules, got {type(experts).__name__}"
                )
            modules = list(experts)
            for e, expert in enumerate(modules):
                if not isinstance(expert, nn.Module):
                    raise TypeError(f"experts must be torch modules, got {type(expert).__name__} for expert {e}")
            self.experts = nn.ModuleList(modules)
        if len(self.experts) != gate.num_experts:
            raise ValueError(f"experts must be {gate.num_experts}, as many as the gate's, got {len(self.experts)}")
        self.gate = gate
        require_choice("dispatch", dispatch, DISPATCHES)
        self.dispatch = dispatch
        if dispatch == "grouped" and not isinstance(experts, StackedExperts):
            raise ValueError('dispatch="grouped" needs StackedExperts, got modules of their own')
        for name, module in (("shared", shared), ("shared_gate", shared_gate)):
            if module is not None and not isinstance(module, nn.Module):
                raise TypeError(f"{name} must be a torch module, got {type(module).__name__}")
        if shared_gate is not None and shared is None:
            raise ValueError("shared must be given for a shared_gate to weigh, got None")
        self.shared = shared
        self.shared_gate = shared_gate
        self.routing: SlotWeights | None = None

    def forward(self, inputs: Tensor, ids: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return the mixture of every row.

        Parameters
        ----------
        inputs : Tensor
            Floating point, shape [..., in_features], as `torch.nn.Linear` takes it: all leading axes are rows.
        ids : Tensor, optional
            Integers, shape [...], for gates that route by id.
        mask : Tensor, optional
            Booleans or integers, shape [...]: False or 0 for padding, which goes to no expert, has output 0 and counts
            nowhere.

        Returns
        -------
        Tensor
            Shape [..., ...], the leading axes of the inputs and those of an expert's output after the first.

        Raises
        ------
        TypeError
            If an argument, or the output of an expert, is not a tensor.
        ValueError
            If there is no row, if shape, dtype or device are not those of the gate and the experts, if the experts'
            outputs differ in shape, or if `dispatch` is "grouped" and does not take the experts.
        """
        require_rows(inputs)
        self.check_dispatch()
        if mask is not None:
            require_mask(mask, inputs)
        routing = route(self.gate, inputs, ids, mask)
        rows = rows_of(inputs, mask)
        (mixture,) = self.mix(rows, [self.gate.expert_map(routing.weights)], [self.gate])
        self._remember(routing)
        shared = self.shared_outputs(rows)
        if shared is not None:
            if shared.shape != mixture.shape:
                raise ValueError(
                    f"shared must return outputs of the shape of the mixture, {tuple(mixture.shape)}, "
                    f"got shape {tuple(shared.shape)}"
                )
            mixture = mixture + shared
        return like_rows(mixture, inputs, mask)

    def _remember(self, routing: SlotWeights | None) -> None:
        # While a module is exported, its tensors are stand-ins, which no later penalty can use; what runs anew under
        # a checkpoint is no forward of its own.
        if self.training and not is_exporting() and not is_recomputing():
            self.routing = routing

    def check_dispatch(self) -> None:
        """Raise ValueError if `dispatch`, which may have been set to anything since, does not take the experts."""
        require_choice("dispatch", self.dispatch, DISPATCHES)
        if self.dispatch == "grouped" and isinstance(self.experts, StackedExperts):
            self.experts.check_grouped()

    def mix(self, inputs: Tensor, weights: Sequence[Tensor], gates: Sequence[Gate]) -> list[Tensor]:
        """Return a mixture of every row, shape [B, ...], for each of some weights of the experts, shape [B, n].

        Inputs have shape [B, in_features], and each of the weights is of a gate. An expert runs once, on the rows that
        any of the weights has for it, or on all, as `dispatch` says.
        """
        readable = not cannot_read_values(inputs, *weights)
        if not inputs.is_cpu and (readable or is_captured(inputs)) and isinstance(self.experts, StackedExperts):
            most = most_experts(gates, len(self.experts))
            if self.dispatch == "auto":
                path = chosen_path(self.experts, inputs, weights, most, readable)
                return device_mixtures(self.experts, inputs, weights, most, path)
            if self.dispatch == "grouped" or (self.dispatch == "sorted" and readable):
                return device_mixtures(self.experts, inputs, weights, most, self.dispatch)
        choosing = self.dispatch == "auto" and readable
        path = self.dispatch
        if choosing:
            # What modules cost is not known, so none runs on a sample that it is not for.
            path = "sorted"
            if isinstance(self.experts, StackedExperts):
                path = fastest_dispatch(self.experts, union_of(weights))
        elif path == "auto" or is_exporting() or not (readable or torch.compiler.is_compiling()):
            # No exported graph, and no map over batches, holds sizes that depend on the weights.
            path = "dense"
        if path == "dense":
            outputs = self.expert_outputs(inputs)
            mixtures = [self.combine(expert_weights, outputs) for expert_weights in weights]
            if not choosing or all(map(_finite, mixtures)):
                return mixtures
            # What is infinite may be an expert on samples that give it weight 0, and 0 times infinity is NaN.
        mix = self._mix_pairs
        if torch.compiler.is_compiling():
            # Else it would be compiled again and again, for the counts of every batch.
            mix = torch.compiler.disable(mix)  # type: ignore[no-untyped-call]
        return mix(inputs, weights, gates, path == "grouped")

    def _mix_pairs(
        self, inputs: Tensor, weights: Sequence[Tensor], gates: Sequence[Gate], grouped: bool
    ) -> list[Tensor]:
        pairs = union_of(weights)
        if inputs.is_cpu:
            union = Dispatch.of(pairs)
        else:
            union = DeviceDispatch.of(pairs, most_experts(gates, len(self.experts))).read()
        outputs = outputs_of_pairs(self.experts, union.gather(inputs), union.counts, grouped=grouped)
        return [union.scatter(outputs)] if len(weights) == 1 else [union.mix_part(w, outputs) for w in weights]

    def expert_outputs(self, inputs: Tensor) -> Tensor:
        """Run every expert on every row of inputs of shape [..., in_features].

        Returns
        -------
        Tensor
            Shape [B, n, ...], B the number of rows.

        Raises
        ------
        TypeError, ValueError
            As in `forward`.
        """
        require_rows(inputs)
        rows = rows_of(inputs)
        if isinstance(self.experts, StackedExperts):
            return self.experts(rows)
        return torch.stack(_outputs((e, expert, rows) for e, expert in enumerate(self.experts)), 1)

    def shared_outputs(self, inputs: Tensor) -> Tensor | None:
        """Return what is added to the mixture of every row, shape [R, ...], or None if nothing is shared."""
        if self.shared is None:
            return None
        outputs: Tensor = self.shared(inputs)
        if isinstance(self.shared, StackedExperts):
            outputs = outputs.sum(-2)
        return outputs if self.shared_gate is None else self.shared_gate(inputs).sigmoid() * outputs

    def combine(self, expert_weights: Tensor, expert_outputs: Tensor) -> Tensor:
        """Mix given outputs of the experts with given weights, without what is shared.

        Parameters
        ----------
        expert_weights : Tensor
            Shape [B, n].
        expert_outputs : Tensor
            Shape [B, n, ...].

        Returns
        -------
        Tensor
            Shape [B, ...].

        Raises
        ------
        ValueError
            If the shapes do not fit.
        """
        n = len(self.experts)
        if expert_weights.shape[1:] != (n,) or expert_outputs.shape[:2] != expert_weights.shape:
            raise ValueError(
                f"expert_weights and expert_outputs must have shapes [B, {n}] and [B, {n}, ...], "
                f"got {tuple(expert_weights.shape)} and {tuple(expert_outputs.shape)}"
            )
        return torch.einsum("bn,bn...->b...", expert_weights.to(expert_outputs.dtype), expert_outputs)

    def regularization(self) -> Tensor:
        """Return the gate's penalty for the last forward in training mode, a scalar to be added to the loss.

        It is 0 in eval mode, and before any forward.

        Raises
        ------
        ValueError
            If that forward ran with gradients off, so that the penalty would have none: under `torch.no_grad`, or in a
            `torch.utils.checkpoint` with ``use_reentrant=True``. Under `torch.no_grad` it is returned all the same.
        """
        if self.training and self.routing is not None:
            penalty = self.gate.penalty(self.routing)
            if type(self.gate).penalty is not Gate.penalty and not penalty.requires_grad:
                self.routing.require_gradient()
            return penalty
        return torch.zeros((), device=self.gate.expert_map.experts.device)

    def __getstate__(self) -> dict[str, Any]:
        # Tensors inside a graph cannot be copied, and a copy has made no forward.
        return {**self.__dict__, "routing": None}


def outputs_of_pairs(
    experts: StackedExperts | nn.ModuleList, inputs: Tensor, counts: Sequence[int], grouped: bool = False
) -> Tensor:
    """Return what experts make of samples of their own, shape [P, ...], for inputs sorted by expert, shape [P, ...].

    An expert without samples, by the ``counts`` of all, is not called. ``grouped`` is as in
    `StackedExperts.forward_sorted`, and means nothing for modules.
    """
    if not len(inputs):
        if isinstance(experts, StackedExperts):
            return experts.no_outputs(inputs)
        # What modules would return is not known.
        raise ValueError("expert_weights must be other than 0 for at least one sample and expert, got zeros only")
    if isinstance(experts, StackedExperts):
        return experts.forward_sorted(inputs, counts, grouped=grouped)
    parts = zip(experts, torch.split(inputs, list(counts)), strict=True)
    return torch.cat(_outputs((e, expert, part) for e, (expert, part) in enumerate(parts) if len(part)))


def _finite(mixture: Tensor) -> bool:
    """Return whether no entry is NaN or infinite, by their sum: one number to read, at 1 to 3 % of a small layer."""
    # The sum is of single precision, whatever the entries are: if it overflows, they are only computed anew.
    return math.isfinite(mixture.sum(dtype=torch.float32).item())


def _outputs(calls: Iterable[tuple[int, nn.Module, Tensor]]) -> list[Tensor]:
    """Call experts, given with their number and inputs, and check that what they return fits together."""
    outputs: list[Tensor] = []
    for e, expert, inputs in calls:
        output = expert(inputs)
        if not isinstance(output, Tensor):
            raise TypeError(f"experts must return tensors, got {type(output).__name__} from expert {e}")
        if output.ndim == 0 or output.shape[0] != inputs.shape[0]:
            raise ValueError(
                f"experts must return one output for each of their {len(inputs)} samples, "
                f"got shape {tuple(output.shape)} from expert {e}"
            )
        if outputs and output.shape[1:] != outputs[0].shape[1:]:
            raise ValueError(
                "experts must return outputs of one shape, "
                f"got samples of shape {tuple(outputs[0].shape[1:])} and, from expert {e}, {tuple(output.shape[1:])}"
            )
        outputs.append(output)
    return outputs
