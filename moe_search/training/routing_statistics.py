"""How samples are spread over experts, added up over batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from moe_search.checks import require_integer
from moe_search.gates.batch_checks import is_recomputing
from moe_search.gates.expert_map import ExpertMap
from moe_search.gates.gate import SlotWeights
from moe_search.huggingface.mixture_layers import MoELayer, TokenRows, moe_layers
from moe_search.plotting.table import Table
from moe_search.training.lowering.frozen import as_written, searching
from moe_search.training.lowering.tasks import Layer, mixtures_of

if TYPE_CHECKING:
    import rich.console
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class RoutingSummary:
    """What `RoutingStatistics` added up, with ``w[b, e]`` the weight of expert e for sample b.

    Parameters
    ----------
    num_samples : int
        Number of samples B.
    load : Tensor of int64
        Number of samples with ``w > 0``, shape [n].
    importance : Tensor of float64
        ``sum_b w``, shape [n].
    co_activation : Tensor of int64
        Number of samples with ``w > 0`` for both experts, shape [n, n]; the diagonal is the load.
    experts_per_sample : Tensor of int64
        Shape [n + 1]: entry j is the number of samples with j experts.
    sample_entropy : float
        Mean over samples of ``-sum_e w log w``, in nats, w in parts of all weight of the sample: 0 if every sample has
        one expert, log n at most.
    k : int or None
        How many slots a sample should come down to, by the gate that was watched; None if it does not say.

    Examples
    --------
    >>> import torch
    >>> import moe_search as ms
    >>> gate, statistics = ms.HashRouting(3, vocabulary=6), ms.RoutingStatistics()
    >>> ids = torch.arange(6)
    >>> statistics.update(gate(torch.randn(6, 8), ids), gate.expert_map)
    >>> summary = statistics.summary()
    >>> summary.num_samples, summary.mean_experts, summary.dead_experts.tolist()
    (6, 1.0, [])
    >>> summary
    RoutingSummary(num_samples=6, num_experts=3, mean_experts=1, max_load=1, num_dead=0, k=None)
    """

    num_samples: int
    load: Tensor
    importance: Tensor
    co_activation: Tensor
    experts_per_sample: Tensor
    sample_entropy: float
    k: int | None = None

    @property
    def mean_experts(self) -> float:
        """Mean number of experts of a sample."""
        return int(self.load.sum()) / self.num_samples

    @property
    def mean_entropy(self) -> float:
        """Entropy of the importance in parts of its sum, in nats: log n if experts are used evenly."""
        return float(torch.special.entr(self.importance / self.importance.sum()).sum())

    @property
    def dead_experts(self) -> Tensor:
        """The experts without any sample, int64, in order."""
        return (self.load == 0).nonzero().flatten()

    def __repr__(self) -> str:
        n, total = len(self.load), int(self.load.sum())
        return (
            f"RoutingSummary(num_samples={self.num_samples}, num_experts={n}, mean_experts={self.mean_experts:.3g},"
            f" max_load={int(self.load.max()) * n / max(total, 1):.3g}, num_dead={len(self.dead_experts)}, k={self.k})"
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the shares of every expert in load and importance, and the even share.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; by default on axes of its own, with the numbers of samples and experts as their title.

        Returns
        -------
        matplotlib Axes
        """
        import matplotlib.pyplot as plt

        from moe_search.plotting.routing import draw_expert_loads

        if ax is None:
            ax = plt.subplots(layout="constrained")[1]
            ax.set_title(f"{self.num_samples:,} samples, {self.mean_experts:.2f} experts a sample")
        draw_expert_loads(ax, self.load, self.importance)
        ax.legend(frameon=False)
        return ax

    def table(self) -> rich.console.Group:
        """Return load and importance of every expert for the terminal; print it with `rich.print`."""
        total, weight = max(int(self.load.sum()), 1), float(self.importance.sum())
        columns = zip(self.load.tolist(), self.importance.tolist(), strict=True)
        rows = tuple(
            (f"expert {e}", f"{load:,}", f"{load / total:.1%}", f"{importance:,.1f}", f"{importance / weight:.1%}")
            for e, (load, importance) in enumerate(columns)
        )
        dead = ", ".join(map(str, self.dead_experts.tolist())) or "none"
        of_k = "" if self.k is None else f" for k = {self.k}"
        note = (
            f"{self.num_samples:,} samples, {self.mean_experts:.2f} experts a sample{of_k}; dead experts: {dead}; "
            f"entropy {self.sample_entropy:.3f} nats a sample, {self.mean_entropy:.3f} of the mean weights"
        )
        return Table(
            "Routing", ("", "load", "share of load", "importance", "share of weight"), rows, note=note
        ).as_rich()


class RoutingStatistics:
    """Adds up over batches which experts the samples go to.

    Feed it with `update`, or let it `watch` a layer, or all mixture layers of a model of transformers. Sums are kept on
    the device of the weights, in int64 and float64; nothing is synchronized before `summary`.

    Parameters
    ----------
    window : int, optional
        Batches that make a window of `loads`; by default all make one.

    Examples
    --------
    >>> import torch
    >>> import moe_search as ms
    >>> moe = ms.MixtureOfExperts(ms.StackedExperts(4, 8, 3), ms.TopK(8, 4, k=2))
    >>> statistics = ms.RoutingStatistics()
    >>> with statistics.watch(moe):
    ...     for _ in range(3):
    ...         _ = moe(torch.randn(10, 8))
    >>> summary = statistics.summary()
    >>> summary.num_samples, summary.mean_experts, summary.load.sum()
    (30, 2.0, tensor(60))
    """

    def __init__(self, window: int | None = None) -> None:
        self.window = None if window is None else require_integer("window", window)
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self._layers: dict[str, _Sums] = {}
        self._batches = 0

    def update(self, slot_weights: SlotWeights, expert_map: ExpertMap) -> None:
        """Add a batch, without padding.

        Parameters
        ----------
        slot_weights : SlotWeights
            What the gate returned, such as `MixtureOfExperts.routing`.
        expert_map : ExpertMap
            The map of the gate, as it was when it did.

        Raises
        ------
        TypeError
            If an argument is of another type.
        ValueError
            If the weights do not fit the map, or earlier batches had another number of experts.
        """
        if not isinstance(slot_weights, SlotWeights):
            raise TypeError(f"slot_weights must be SlotWeights, got {type(slot_weights).__name__}")
        if not isinstance(expert_map, ExpertMap):
            raise TypeError(f"expert_map must be an ExpertMap, got {type(expert_map).__name__}")
        self._add(slot_weights, expert_map, begins=True)

    @torch.no_grad()
    def _add(self, slot_weights: SlotWeights, expert_map: ExpertMap, begins: bool) -> None:
        """Add what a gate returned, and count a batch if it ``begins`` with that: several gates may see it."""
        weights = expert_map(slot_weights.weights).double()
        sums = self._sums("", expert_map.num_experts)
        self._batches += begins
        sums.add(weights, weights > 0, self._window(), slot_weights.mask)

    @contextmanager
    def watch(self, moe: Layer | nn.Module) -> Iterator[RoutingStatistics]:
        """Within the context, add every batch that goes through the gate of a layer, in training and in eval mode.

        What a search of the layer's map runs through it, under maps that it may refuse, is left out, and so is what a
        `torch.utils.checkpoint` runs anew for the backward pass. Compiled code runs
        as it was written, at its speed uncompiled, all of the process: what was compiled before calls no hook.

        Parameters
        ----------
        moe : MixtureOfExperts, MultiGateMixtureOfExperts or PreTrainedModel
            A layer of several gates counts all its tasks together, a sample once for each. One task of it is
            ``multi.tasks[t]``, with a shared map too. Of a model of transformers all `moe_layers` are watched, each by
            itself. Its samples are tokens, without those that its attention mask says are padding. Experts have the
            numbers of the router, under which `save_pretrained` writes them, also where a layer was searched.
        """
        found = moe_layers(moe) if isinstance(moe, nn.Module) else ()
        with ExitStack() as entered:
            entered.enter_context(as_written())
            if found:
                assert isinstance(moe, nn.Module)
                hooks = self._hooks_of_model(moe, found)
            else:
                gates = [layer.gate for layer in mixtures_of(moe)]  # type: ignore[arg-type]
                hooks = [gate.register_forward_hook(partial(self._take_in, gates[0])) for gate in gates]
            for hook in hooks:
                entered.callback(hook.remove)
            yield self

    def summary(self) -> RoutingSummary:
        """Return what was added up so far, on the CPU; of a model of one layer, or see `summaries`."""
        summaries = self.summaries()
        if len(summaries) > 1:
            raise ValueError(f"there must be one layer for a summary, got {len(summaries)}: call summaries()")
        return next(iter(summaries.values()))

    def summaries(self) -> dict[str, RoutingSummary]:
        """Return what was added up so far, on the CPU, by the name of the layer, in the order of a forward."""
        self._require_batches()
        return {name: sums.summary() for name, sums in self._layers.items()}

    def loads(self) -> npt.NDArray[np.int64]:
        """Return the load of every expert, shape (windows, layers, experts): what `ExpertPlacement` takes."""
        self._require_batches()
        widths = {sums.num_experts for sums in self._layers.values()}
        if len(widths) > 1:
            raise ValueError(f"all layers must have equally many experts, got {sorted(widths)}")
        layers = [sums.windows for sums in self._layers.values()]
        nothing = torch.zeros(widths.pop(), dtype=torch.int64)
        windows = range(self._window() + 1)
        return np.stack([[windowed.get(w, nothing).cpu().numpy() for windowed in layers] for w in windows])

    def save_loads(self, path: str | Path) -> None:
        """Write `loads` and the names of the layers to a file .npz, which ``moe-search place`` reads."""
        if Path(path).suffix != ".npz":
            raise ValueError(f"path must end in .npz, got {path}")
        np.savez_compressed(path, load=self.loads(), layers=np.array(list(self._layers)))

    def _require_batches(self) -> None:
        if not self._layers:
            raise ValueError(
                "there must be at least one batch before a summary, got none: call update, or watch a layer"
            )

    def _sums(self, name: str, num_experts: int) -> _Sums:
        sums = self._layers.setdefault(name, _Sums(num_experts))
        if sums.num_experts != num_experts:
            raise ValueError(
                f"expert_map must have {sums.num_experts} experts as in earlier batches, got {num_experts}"
            )
        return sums

    def _window(self) -> int:
        return 0 if self.window is None else max(self._batches - 1, 0) // self.window

    def _take_in(self, first: nn.Module, gate: Any, _: Any, slot_weights: SlotWeights) -> None:
        if not searching() and not is_recomputing():
            self._add(slot_weights, gate.expert_map, begins=gate is first)
            self._layers[""].k.add(getattr(gate, "k", None))

    def _hooks_of_model(self, model: nn.Module, layers: tuple[MoELayer, ...]) -> list[Any]:
        """Return the hooks by which the layers of a model of transformers are watched."""
        tokens = TokenRows()

        def begin(given: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not searching():
                tokens.see(given, args, kwargs)
                self._batches += 1

        @torch.no_grad()
        def add(layer: MoELayer, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if searching() or is_recomputing():
                return
            hidden, index, weights = (*args, *kwargs.values())
            index, weights = index.long(), weights.double()
            zeros = weights.new_zeros(len(weights), layer.num_experts)
            sums = self._sums(layer.name, layer.num_experts)
            sums.k.add(layer.top_k)
            active = zeros.scatter(1, index, 1.0) > 0
            sums.add(zeros.scatter_add(1, index, weights), active, self._window(), tokens.of(hidden))

        hooks = [model.register_forward_pre_hook(begin, with_kwargs=True)]
        # In front of the expert map of a layer that was searched: experts have the numbers of the router.
        hooks += [
            each.experts.register_forward_pre_hook(partial(add, each), with_kwargs=True, prepend=True)
            for each in layers
        ]
        return hooks


class _Sums:
    """The sums of one layer."""

    def __init__(self, num_experts: int) -> None:
        self.num_experts = num_experts
        self.k: set[int | None] = set()
        self.sums: tuple[Tensor, ...] = ()
        self.windows: dict[int, Tensor] = {}

    def add(self, weights: Tensor, active: Tensor, window: int, mask: Tensor | None) -> None:
        """Add the weights [B, n] of experts, those that a sample has being active, but for samples that are padding."""
        if mask is None or mask.is_cpu:
            weights, active = (weights, active) if mask is None else (weights[mask], active[mask])
            padding = torch.zeros((), dtype=torch.bool, device=weights.device)
        else:
            # How many rows are left would have to be waited for: those of padding stay, and are made to count nothing.
            padding = ~mask.unsqueeze(1)
            weights, active = weights.masked_fill(padding, 0.0), active & ~padding
        experts = active.sum(1)
        # Not by bincount, which looks at the numbers.
        per_sample = experts.new_zeros(self.num_experts + 1).scatter_add(
            0, experts, (~padding).long().expand(len(experts), 1).flatten()
        )
        # Counts are exact in float64, which multiplies matrices on every device, as integers do not.
        together = (active.double().t() @ active.double()).long()
        totals = weights.sum(1, keepdim=True).masked_fill(padding, 1.0)
        sums = (weights.sum(0), together, per_sample, torch.special.entr(weights / totals).sum())
        self.sums = tuple(old + new for old, new in zip(self.sums, sums, strict=True)) if self.sums else sums
        load = together.diagonal()
        self.windows[window] = self.windows[window] + load if window in self.windows else load.clone()

    def summary(self) -> RoutingSummary:
        """Return what was added up so far, on the CPU."""
        importance, together, experts, entropy = (sums.cpu() for sums in self.sums)
        num_samples = int(experts.sum())
        if num_samples == 0:
            raise ValueError("there must be at least one sample before a summary, got padding only")
        return RoutingSummary(
            num_samples=num_samples,
            load=together.diagonal().clone(),
            importance=importance,
            co_activation=together,
            experts_per_sample=experts,
            sample_entropy=float(entropy) / num_samples,
            k=next(iter(self.k)) if len(self.k) == 1 else None,
        )
