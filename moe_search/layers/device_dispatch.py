"""From samples to experts and back on a device that computes while Python goes on: without waiting for what it finds.

`moe_search.layers.dispatch` is the way on a CPU, whose numbers can be looked at for nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from moe_search.gates.batch_checks import has_memory, is_recomputing
from moe_search.gates.gate import Gate
from moe_search.layers.dispatch import Dispatch, union_of
from moe_search.layers.stacked_experts import StackedExperts, product_dtype

DENSE_BYTES = 1 << 28
"""All experts on all samples are tried up to so many bytes of what they make: a layer as large wastes its time so."""

BURSTS, CALLS = 3, 3
"""A way is timed by the fastest of so many bursts of so many calls."""


@dataclass(frozen=True, eq=False)
class DeviceDispatch:
    """Pairs of a sample and an expert as in `Dispatch`, as many as there can be: spare ones of weight 0 stand last.

    How many are spare, only the device knows.

    Parameters
    ----------
    samples, weights : Tensor
        Shape [P]: the sample of every pair, int64, and its weight with its gradient.
    experts : Tensor
        Shape [P], int64: the expert of every pair, n for a spare one.
    ends : Tensor
        Shape [n], int32: how many pairs the experts up to each have together.
    num_samples : int
        Number of samples B.
    """

    samples: Tensor
    weights: Tensor
    experts: Tensor
    ends: Tensor
    num_samples: int

    @classmethod
    def of(cls, expert_weights: Tensor, most: int) -> DeviceDispatch:
        """Return the pairs of expert weights of shape [B, n], of which no sample has more than `most` other than 0."""
        size, n = expert_weights.shape
        weights, experts = expert_weights, torch.arange(n, device=expert_weights.device).expand(size, n)
        if most < n:
            # A NaN counts as the largest: it goes to its expert and shows in the output. Masks cannot be sorted.
            of_numbers = expert_weights.float() if expert_weights.dtype == torch.bool else expert_weights
            weights, experts = of_numbers.topk(most, dim=1, sorted=False)
        found = experts.masked_fill(weights == 0, n).flatten()
        # Stable: the samples of an expert stand in their order, on every run.
        of_experts, order = found.sort(stable=True)
        ends = torch.searchsorted(of_experts, torch.arange(n, device=of_experts.device), right=True)
        samples = order.div(weights.shape[1], rounding_mode="floor")
        return cls(samples, weights.flatten().index_select(0, order), of_experts, ends.to(torch.int32), size)

    @property
    def spare(self) -> Tensor:
        """Whether a pair is spare, shape [P, 1]."""
        return (self.experts == len(self.ends)).unsqueeze(1)

    def mixtures(self, experts: StackedExperts, inputs: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
        """Return a mixture of every sample for each of some weights of experts, of which these are the pairs of all."""
        gathered = inputs.index_select(0, self.samples).masked_fill(self.spare, 0.0)
        outputs = experts.forward_grouped(gathered, self.ends, self.experts)
        if len(weights) == 1:
            return [self._scatter(self.weights, outputs)]
        of_experts = self.experts.clamp(max=len(self.ends) - 1)
        of_pairs = (each[self.samples, of_experts] for each in weights)
        return [self._scatter(each.masked_fill(self.spare.squeeze(1), 0.0), outputs) for each in of_pairs]

    def _scatter(self, weights: Tensor, outputs: Tensor) -> Tensor:
        # Left out, not multiplied by 0: outputs that another weight asked for may be infinite.
        weighted = outputs.masked_fill((weights == 0).unsqueeze(1), 0.0) * weights.to(outputs.dtype).unsqueeze(1)
        return outputs.new_zeros(self.num_samples, outputs.shape[1]).index_add(0, self.samples, weighted)

    def read(self) -> Dispatch:
        """Wait once for the device, and return the pairs that are not spare."""
        ends = [0, *self.ends.tolist()]
        counts = tuple(after - before for before, after in pairwise(ends))
        return Dispatch(self.samples[: ends[-1]], self.weights[: ends[-1]], counts, self.num_samples)


def most_experts(gates: Sequence[Gate], num_experts: int) -> int:
    """Return the most experts that a row may have by some gates together."""
    most = 0
    for gate in gates:
        most += num_experts if gate.most_slots is None else gate.most_slots
    return min(most, num_experts)


def spared_mixture(expert_weights: Tensor, outputs: Tensor) -> Tensor:
    """Mix outputs of all experts, [B, n, D], by weights [B, n], where no expert spoils a sample that gives it weight 0.

    On the CPU the mixture is looked at instead, which costs less there.
    """
    spared = outputs.masked_fill((expert_weights == 0).unsqueeze(2), 0.0)
    return torch.einsum("bn,bnd->bd", expert_weights.to(outputs.dtype), spared)


def device_mixtures(
    experts: StackedExperts, inputs: Tensor, weights: Sequence[Tensor], most: int, path: str
) -> list[Tensor]:
    """Return a mixture of every row for each of some weights of experts, by the path "dense", "sorted" or "grouped".

    Only "sorted" waits for the device: Python cuts the rows for one expert after another.
    """
    if path == "dense":
        outputs = experts(inputs)
        return [spared_mixture(each, outputs) for each in weights]
    pairs = DeviceDispatch.of(union_of(weights), most)
    if path == "grouped":
        return pairs.mixtures(experts, inputs, weights)
    here = pairs.read()
    gathered = here.gather(inputs)
    outputs = experts.forward_sorted(gathered, here.counts) if len(gathered) else experts.no_outputs(gathered)
    return [here.scatter(outputs)] if len(weights) == 1 else [here.mix_part(each, outputs) for each in weights]


_kept: dict[tuple[Any, ...], str] = {}


def chosen_path(
    experts: StackedExperts, inputs: Tensor, weights: Sequence[Tensor], most: int, readable: bool = True
) -> str:
    """Return the path that "auto" takes on a device: the fastest of a trial at the first batch of such a shape.

    Trials run forward, and backward where there are gradients, on what the batch holds, and leave no trace but the time
    that they take. What they find is kept for the process: by device, layer, dtype, the most experts of a sample,
    whether there are gradients, and the number of samples up to a factor of 2.

    There is no trial, and "grouped" is taken where it is possible, under `torch.use_deterministic_algorithms`, which
    asks for the same numbers in every run; inside of `torch.func`, forward derivatives and checkpoints that run anew;
    and where no number can be read (``readable``), which rules out "sorted" too.
    """
    paths = possible_paths(experts, inputs, readable)
    widths = experts.num_experts, experts.in_features, experts.hidden_features, experts.out_features
    shape = (*widths, experts.gated, len(experts.biases) > 0, type(experts.activation), len(weights), most)
    gradients = torch.is_grad_enabled(), inputs.requires_grad
    key = (inputs.device, product_dtype(inputs), len(inputs).bit_length(), paths[0] == "grouped", *gradients, *shape)
    if _kept.get(key) in paths:
        return _kept[key]
    on_trial = (
        readable
        and len(paths) > 1
        and has_memory(inputs)
        and forward_ad._current_level < 0
        and not is_recomputing()
        and not torch.are_deterministic_algorithms_enabled()
    )
    if not on_trial:
        return paths[0]
    times = trial(experts, inputs, weights, most, paths)
    _kept[key] = min(times, key=times.__getitem__) if times else paths[0]
    return _kept[key]


def possible_paths(experts: StackedExperts, inputs: Tensor, readable: bool) -> list[str]:
    """Return the paths that "auto" may take, the one without a trial first."""
    paths = ["grouped"] if experts.refuses_grouped() is None else []
    widest = max(experts.hidden_features or 0, experts.out_features) * (1 + experts.gated)
    fits = len(inputs) * experts.num_experts * widest * product_dtype(inputs).itemsize <= DENSE_BYTES
    if readable:
        paths.append("sorted")
    if fits or not paths:
        paths.append("dense")
    return paths


class _Trial(nn.Module):
    """The experts in a module, so that `torch.func.functional_call` lends them other parameters."""

    def __init__(self, experts: StackedExperts) -> None:
        super().__init__()
        self.experts = experts

    def forward(self, *given: Any) -> list[Tensor]:
        return device_mixtures(self.experts, *given)


def trial(
    experts: StackedExperts, inputs: Tensor, weights: Sequence[Tensor], most: int, paths: Sequence[str]
) -> dict[str, float]:
    """Return the seconds of each path; one that raises is left out, as where the memory does not suffice for it."""
    kind, backward = inputs.device.type, torch.is_grad_enabled()
    autocast = torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), False)
    stream = torch.cuda.stream(torch.cuda.current_stream(inputs.device)) if inputs.is_cuda else nullcontext()
    generators = torch.random.fork_rng(devices=[inputs.device.index] if inputs.is_cuda else [])

    def run() -> dict[str, float]:
        with generators, stream, autocast, torch.set_grad_enabled(backward):
            return _seconds_of_paths(_Trial(experts), inputs, weights, most, paths)

    # On a thread of its own, no checkpoint around the layer, and nothing else that looks at what is computed, sees it.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run).result()


def _seconds_of_paths(
    module: nn.Module, inputs: Tensor, weights: Sequence[Tensor], most: int, paths: Sequence[str]
) -> dict[str, float]:
    backward = torch.is_grad_enabled()

    def own(tensor: Tensor) -> Tensor:
        return tensor.detach().requires_grad_(backward and tensor.requires_grad)

    # No gradient and no hook of the model's own tensors takes part.
    inputs, *weights = map(own, (inputs, *weights))
    parameters = {name: own(parameter) for name, parameter in module.named_parameters()}
    leaves = [each for each in (inputs, *weights, *parameters.values()) if each.requires_grad]

    def run(path: str) -> None:
        mixtures = torch.func.functional_call(module, parameters, (inputs, weights, most, path))
        if leaves:
            torch.autograd.grad(mixtures, leaves, [torch.ones_like(each) for each in mixtures], allow_unused=True)

    times = {}
    for path in paths:
        with suppress(RuntimeError):
            times[path] = seconds_of(partial(run, path), inputs.device)
    return times


def seconds_of(call: Callable[[], None], device: torch.device) -> float:
    """Return the seconds of a call, which a device may work at after it has returned."""
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else getattr(torch, device.type).synchronize
    call()
    found = []
    for _ in range(BURSTS):
        wait()
        started = time.perf_counter()
        for _ in range(CALLS):
            call()
        wait()
        found.append((time.perf_counter() - started) / CALLS)
    return min(found)
