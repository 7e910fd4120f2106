"""Mixture assignment: the loss of a sparse mixture itself, as a function of the expert map."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from moe_search.problems.arrays import largest_magnitude, numeric_array, read_only, require_fits
from moe_search.problems.kernels import compiled, kernel
from moe_search.problems.moves import (
    DeltaMatrix,
    commit_swap,
    commit_swap_and_deltas,
    exchange_seats,
    fill_deltas,
    find_least,
    swap_delta,
)
from moe_search.problems.pair_costs import PairCosts
from moe_search.problems.pairwise import PairwiseAssignment
from moe_search.problems.permutation_problem import Permutation, PermutationProblem, inverse

LossName = Literal["squared", "bce", "cross_entropy"]
SQUARED, BCE, CROSS_ENTROPY = range(3)
# These stand in for targets that a loss has not, read-only as real ones, so that one compiled kernel serves all losses.
NO_TARGET = read_only(np.zeros((0, 0)))
NO_LABEL = read_only(np.zeros((0, 0), dtype=np.int64))


@dataclass(frozen=True, eq=False, repr=False)
class MixtureAssignment(PermutationProblem):
    """Give every slot one expert such that the loss of the mixture is least, gate weights and expert outputs frozen.

    ``value(p) = sum_b w[b] * loss(z[b], y[b])`` with ``z[b] = sum_{t, s} g[b, t, s] * F[b, e(t, s)]`` and
    ``e(t, s) = (p[t m + s] - t m) // c``.

    Parameters
    ----------
    slot_weights : array_like, shape (B, T, m)
        Weights g of samples over selectors and slots, not negative. Held sparse by slot: zeros cost nothing.
    outputs : array_like, shape (B, n, D)
        Output F[b, e] of every expert on every sample; m is a multiple of n.
    targets : array_like
        ``squared``: real, shape (B, D). ``bce``: in [0, 1], shape (B, D). ``cross_entropy``: class indices, shape (B,)
        with D classes, or (B, G) with G groups of D / G classes each.
    loss : {"squared", "bce", "cross_entropy"}
        ``squared`` is ``sum_d (z_d - y_d)^2``; ``bce`` the sum over d of the binary cross-entropy of logits z_d;
        ``cross_entropy`` the sum over the groups of the cross-entropy of logits.
    sample_weights : array_like, shape (B,), optional
        Weights w, not negative; 1 / B by default, so that the value is the mean loss.

    Raises
    ------
    ValueError
        If shapes do not fit, a number is NaN or infinite, a weight is negative, a class or probability is out of range,
        or totals could overflow.

    Notes
    -----
    A swap of two slots touches only the samples with weight on either, each in O(D).

    Examples
    --------
    >>> import numpy as np
    >>> import moe_search as ms
    >>> weights = np.eye(2)[:, None, :]  # sample b has slot b
    >>> outputs = np.array([[[5.0], [1.0]], [[2.0], [6.0]]])  # of two experts on two samples
    >>> problem = ms.MixtureAssignment(weights, outputs, targets=[[1.0], [2.0]], loss="squared")
    >>> problem.value([0, 1]), problem.value([1, 0])
    (16.0, 0.0)
    """

    slot_weights: npt.NDArray[np.float64]
    outputs: npt.NDArray[np.float64]
    targets: npt.NDArray[Any]
    loss: LossName
    sample_weights: npt.NDArray[np.float64] = None  # type: ignore[assignment]  # set below
    by_slot: SparseWeights = field(init=False)
    by_sample: SparseWeights = field(init=False)
    integral: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.loss not in get_args(LossName):
            raise ValueError(f"loss must be one of {', '.join(get_args(LossName))}, got {self.loss!r}")
        weights = _floats("slot_weights", self.slot_weights, 3)
        outputs = _floats("outputs", self.outputs, 3)
        if weights.shape[0] != outputs.shape[0]:
            raise ValueError(
                f"slot_weights and outputs must have one batch size, got shapes {weights.shape} and {outputs.shape}"
            )
        if weights.shape[2] % outputs.shape[1]:
            raise ValueError(
                f"the number of slots must be a multiple of the number of experts, got {weights.shape[2]} slots"
                f" (slot_weights) and {outputs.shape[1]} experts (outputs)"
            )
        if weights.min() < 0:
            raise ValueError(f"slot_weights must not be negative, got {weights.min()}")
        batch = weights.shape[0]
        if self.sample_weights is None:
            sample_weights = read_only(np.full(batch, 1.0 / batch))
        else:
            sample_weights = _floats("sample_weights", self.sample_weights, 1)
            if sample_weights.shape != (batch,):
                raise ValueError(f"sample_weights must have shape ({batch},), got shape {sample_weights.shape}")
            if sample_weights.min() < 0:
                raise ValueError(f"sample_weights must not be negative, got {sample_weights.min()}")
        targets = _checked_targets(self.targets, self.loss, batch, outputs.shape[2])
        # These are products of the largest numbers, each one at least, so that no product of some of them overflows.
        size, one = weights[0].size, Decimal(1)
        mixture = size * max(largest_magnitude(weights), one) * max(largest_magnitude(outputs), one)
        square = outputs.shape[2] * (mixture + largest_magnitude(targets)) ** 2
        # Summed over the pairs of slots too, as it is in the pairwise problem.
        weight = max(batch * largest_magnitude(sample_weights), one)
        require_fits("a sum of squared mixtures", 8 * size**2 * weight * square)
        for name, array in (
            ("slot_weights", weights),
            ("outputs", outputs),
            ("targets", targets),
            ("sample_weights", sample_weights),
        ):
            object.__setattr__(self, name, array)
        flat = weights.reshape(batch, -1)
        object.__setattr__(self, "by_slot", _sparse(flat.T))
        object.__setattr__(self, "by_sample", _sparse(flat))

    def traits(self) -> list[str]:
        """Return the loss and the numbers of samples and outputs; see `repr`."""
        return [self.loss, f"num_samples={len(self.outputs)}", f"num_outputs={self.outputs.shape[2]}"]

    @property
    def size(self) -> int:
        """Number of slots of all selectors, T m."""
        return self.slot_weights.shape[1] * self.slot_weights.shape[2]

    @property
    def block_size(self) -> int:
        """Slots m of one selector."""
        return self.slot_weights.shape[2]

    @property
    def num_experts(self) -> int:
        """Number of experts n."""
        return self.outputs.shape[1]

    @property
    def sweep_cost(self) -> int:
        """Operations that bring the deltas of all swaps up to date, the cheaper of two ways."""
        return min(self._sweep_costs())

    def _sweep_costs(self) -> tuple[int, int]:
        """Return what it costs to compute all deltas, and to correct them for the samples that a swap touches."""
        width = self.outputs.shape[2] * (2 if self.loss == "squared" else 16)
        entries = self.by_slot.weight.size
        afresh = 2 * self.block_size * entries * width
        # A slot's samples take out and add again their part in the deltas of all their slots; each part costs about
        # five times what it costs in one pass over all.
        slots_squared = int((np.diff(self.by_sample.start) ** 2).sum())
        return afresh, 20 * self.block_size * (slots_squared + entries) * width // self.size

    def predictions(self, permutation: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return the mixtures z, shape (B, D), under a permutation."""
        membership = np.zeros((self.size, self.num_experts))
        membership[np.arange(self.size), self.experts(permutation)] = 1.0
        return self.mixtures(membership)

    def mixtures(self, membership: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the mixtures, shape (B, D), where slot s goes to expert e by the share ``membership[s, e]``."""
        expert_weights = self.slot_weights.reshape(len(self.slot_weights), -1) @ membership
        return np.matmul(expert_weights[:, None, :], self.outputs)[:, 0]

    def mean_loss(self, predictions: npt.NDArray[np.float64]) -> float:
        """Return the loss of mixtures of shape (B, D), weighted over the samples."""
        return float(self.sample_weights @ self.sample_losses(predictions))

    def sample_losses(self, predictions: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the loss of every sample, shape (B,), not weighted, for mixtures of shape (B, D)."""
        z, y = predictions, self.targets
        if self.loss == "squared":
            return ((z - y) ** 2).sum(axis=1)
        if self.loss == "bce":
            return (np.logaddexp(0.0, z) - y * z).sum(axis=1)
        groups = z.reshape(len(z), y.shape[1], -1)
        chosen = np.take_along_axis(groups, y[:, :, None], axis=2)[:, :, 0]
        top = groups.max(axis=2)
        return (top + np.log(np.exp(groups - top[:, :, None]).sum(axis=2)) - chosen).sum(axis=1)

    def value(self, permutation: npt.ArrayLike) -> float:
        """Return the weighted loss of a permutation; see `PermutationProblem.value`."""
        return self.mean_loss(self.predictions(permutation))

    def state(self, permutation: npt.ArrayLike) -> MixtureState:
        """Return the arrays of the kernels; see `PermutationProblem.state`."""
        p = self.check_solution(permutation)
        predictions = self.predictions(p)
        is_class = self.loss == "cross_entropy"
        return MixtureState(
            permutation=p,
            order=inverse(p),
            expert=self.experts(p),
            start=self.by_slot.start,
            sample=self.by_slot.column,
            weight=self.by_slot.weight,
            outputs=self.outputs,
            target=NO_TARGET if is_class else self.targets,
            label=self.targets if is_class else NO_LABEL,
            sample_weight=self.sample_weights,
            prediction=predictions,
            sample_loss=self.sample_losses(predictions),
            trial=np.empty(self.outputs.shape[2]),
            loss=get_args(LossName).index(self.loss),
            sample_start=self.by_sample.start,
            sample_slot=self.by_sample.column,
            sample_slot_weight=self.by_sample.weight,
            row=np.zeros(self.size),
            corrects=int(np.argmin(self._sweep_costs())),
        )

    def as_pairwise(self) -> PairwiseAssignment:
        """Return the same problem as a `PairwiseAssignment`; exact for the squared loss.

        Its costs sum ``G_b[s, t] = g_s g_t`` times ``F_b[e, f] = <f_e, f_f>`` over the samples; the part that no
        permutation changes is spread over the slots. They take memory (T m)^2 n^2.

        Raises
        ------
        ValueError
            If the loss is not ``squared``.
        """
        if self.loss != "squared":
            raise ValueError(f"only a squared loss is a sum over pairs of slots, got loss {self.loss!r}")
        batch, (size, n) = len(self.outputs), (self.size, self.num_experts)
        g = self.slot_weights.reshape(batch, size)
        pairs = (g[:, :, None] * g[:, None, :]).reshape(batch, -1)
        products = np.matmul(self.outputs, self.outputs.transpose(0, 2, 1)).reshape(batch, -1)
        cost = ((pairs * self.sample_weights[:, None]).T @ products).reshape(size, size, n, n)
        cross = np.matmul(self.outputs, self.targets[:, :, None])[:, :, 0] * self.sample_weights[:, None]
        constant = self.sample_weights @ (self.targets**2).sum(axis=1)
        slot, expert = np.ix_(np.arange(size), np.arange(n))
        cost[slot, slot, expert, expert] += constant / size - 2.0 * (g.T @ cross)
        return PairwiseAssignment(cost, block_size=self.block_size)

    def value_range(self) -> tuple[float, float]:
        """Return 0 and, the losses being convex, the loss if the worst expert answered every sample alone."""
        # A mixture is a convex combination of the experts' outputs, each times all the weight of the sample.
        weight = self.slot_weights.sum(axis=(1, 2))[:, None]
        alone = [self.sample_losses(weight * self.outputs[:, e]) for e in range(self.num_experts)]
        return 0.0, float(self.sample_weights @ np.max(alone, axis=0))

    def pair_costs(self) -> PairCosts | None:
        """Return the costs of a squared loss, made at first use; the other losses are no sums over pairs."""
        if self.loss != "squared":
            return None
        shape = self.size, self.num_experts
        products = len(self.outputs) * (self.size**2 + self.num_experts**2)
        return PairCosts(shape, self.block_size, False, make_pairwise=self.as_pairwise, products=products)


class SparseWeights(NamedTuple):
    """Weights without zeros: those of row i, and their columns in order, are ``start[i] .. start[i + 1]``."""

    start: npt.NDArray[np.int64]
    column: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float64]


class MixtureState(NamedTuple):
    """Arrays of the mixture kernels; `prediction`, `sample_loss` and `expert` follow the permutation."""

    permutation: Permutation
    order: Permutation
    expert: Permutation
    start: npt.NDArray[np.int64]
    sample: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float64]
    outputs: npt.NDArray[np.float64]
    target: npt.NDArray[np.float64]
    label: npt.NDArray[np.int64]
    sample_weight: npt.NDArray[np.float64]
    prediction: npt.NDArray[np.float64]
    sample_loss: npt.NDArray[np.float64]
    trial: npt.NDArray[np.float64]
    loss: int
    sample_start: npt.NDArray[np.int64]
    sample_slot: npt.NDArray[np.int64]
    sample_slot_weight: npt.NDArray[np.float64]
    row: npt.NDArray[np.float64]
    corrects: int


def _floats(name: str, values: npt.ArrayLike, ndim: int) -> npt.NDArray[np.float64]:
    array = numeric_array(name, values, ndim)
    return array if array.dtype == np.float64 else read_only(array.astype(np.float64))


def _checked_targets(targets: npt.ArrayLike, loss: LossName, batch: int, width: int) -> npt.NDArray[Any]:
    if loss == "cross_entropy":
        raw = np.asarray(targets)
        labels = numeric_array("targets", raw[:, None] if raw.ndim == 1 else raw, 2)
        if labels.dtype.kind != "i":
            raise TypeError(f"targets of cross_entropy must be integer class indices, got dtype {raw.dtype}")
        if labels.shape[0] != batch or width % labels.shape[1]:
            raise ValueError(
                f"targets of cross_entropy must have shape ({batch},) or ({batch}, G) with G a divisor of the"
                f" {width} outputs, got shape {raw.shape}"
            )
        classes = width // labels.shape[1]
        if labels.min() < 0 or labels.max() >= classes:
            raise ValueError(f"targets must be classes 0 .. {classes - 1}, got {labels.min()} .. {labels.max()}")
        return labels
    values = _floats("targets", targets, 2)
    if values.shape != (batch, width):
        raise ValueError(f"targets must have shape ({batch}, {width}) to match outputs, got shape {values.shape}")
    if loss == "bce" and (values.min() < 0 or values.max() > 1):
        raise ValueError(f"targets of bce must lie in [0, 1], got {values.min()} .. {values.max()}")
    return values


def _sparse(weights: npt.NDArray[np.float64]) -> SparseWeights:
    row, column = np.nonzero(np.ascontiguousarray(weights))
    start = np.searchsorted(row, np.arange(len(weights) + 1))
    arrays = start.astype(np.int64), column.astype(np.int64), weights[row, column]
    return SparseWeights(*(read_only(array) for array in arrays))


# Between two moves ``prediction[x] = sum_s g[x, s] outputs[x, expert[s]]``, and ``sample_loss[x]`` is its loss, for all
# samples x. A swap of slots a and b with experts e and f moves the mixture of x by (g_a - g_b) (F[f] - F[e]): only the
# samples with weight on a or b count, whose two sorted lists are merged. `trial` is scratch space.
# Arrays are passed one by one and indexed in place: a view of a row would cost two atomic operations a sample.


@compiled
def loss_of_sample(z: Any, target: Any, label: Any, x: int, loss: int) -> float:
    """Return the loss of sample x, not weighted, if its mixture were z."""
    total = 0.0
    if loss == SQUARED:
        for d in range(z.shape[0]):
            difference = z[d] - target[x, d]
            total += difference * difference
    elif loss == BCE:
        for d in range(z.shape[0]):
            # log(1 + exp(z)) in the form that cannot overflow.
            total += max(z[d], 0.0) + math.log1p(math.exp(-abs(z[d]))) - target[x, d] * z[d]
    else:
        classes = z.shape[0] // label.shape[1]
        for group in range(label.shape[1]):
            first = group * classes
            top = z[first]
            for d in range(first + 1, first + classes):
                top = max(top, z[d])
            exponentials = 0.0
            for d in range(first, first + classes):
                exponentials += math.exp(z[d] - top)
            total += top + math.log(exponentials) - z[first + label[x, group]]
    return total


@compiled
def exchange_experts(state: Any, a: int, b: int, commit: bool) -> float:
    """Return the change in weighted loss when slots a and b exchange experts; write it to the state if `commit`."""
    e, f = state.expert[a], state.expert[b]
    if e == f:
        return 0.0
    sample, weight, outputs, target, label = state.sample, state.weight, state.outputs, state.target, state.label
    sample_weight, prediction, sample_loss = state.sample_weight, state.prediction, state.sample_loss
    trial, loss = state.trial, state.loss
    delta = 0.0
    i, i_end = state.start[a], state.start[a + 1]
    j, j_end = state.start[b], state.start[b + 1]
    while i < i_end or j < j_end:
        if j == j_end or (i < i_end and sample[i] < sample[j]):
            x = sample[i]
            g = weight[i]
            i += 1
        elif i == i_end or sample[j] < sample[i]:
            x = sample[j]
            g = -weight[j]
            j += 1
        else:
            x = sample[i]
            g = weight[i] - weight[j]
            i += 1
            j += 1
        for d in range(trial.shape[0]):
            trial[d] = prediction[x, d] + g * (outputs[x, f, d] - outputs[x, e, d])
        new_loss = loss_of_sample(trial, target, label, x, loss)
        delta += sample_weight[x] * (new_loss - sample_loss[x])
        if commit:
            sample_loss[x] = new_loss
            for d in range(trial.shape[0]):
                prediction[x, d] = trial[d]
    return delta


@kernel(swap_delta, MixtureState, allocates=False)
def _swap_delta(state: MixtureState, a: int, b: int) -> float:
    return exchange_experts(state, a, b, False)


@kernel(commit_swap, MixtureState, allocates=False)
def _commit_swap(state: MixtureState, a: int, b: int) -> None:
    exchange_experts(state, a, b, True)
    exchange_seats(state.permutation, state.order, a, b)
    expert = state.expert
    expert[a], expert[b] = expert[b], expert[a]


# All swap deltas are kept up to date by the samples that a move touches. A committed swap of a and b moves only the
# mixtures of the samples with weight on a or b, and a sample has a part only in the deltas of swaps with one of its own
# slots. So each touched sample takes its part out of those deltas before the move and adds it again after; the deltas
# with a and b, whose experts have changed, are computed afresh. Where samples have weight on many slots all deltas are.


@kernel(commit_swap_and_deltas, MixtureState, allocates=False)
def _commit_and_correct(state: MixtureState, matrix: DeltaMatrix, block_size: int, a: int, b: int) -> None:
    if state.expert[a] == state.expert[b]:
        commit_swap(state, a, b)
    elif state.corrects == 0:
        commit_swap(state, a, b)
        fill_deltas(state, matrix, block_size, 0, matrix.deltas.shape[0])
    else:
        add_touched_samples(state, matrix.deltas, block_size, a, b, -1.0)
        commit_swap(state, a, b)
        add_touched_samples(state, matrix.deltas, block_size, a, b, 1.0)
        for slot in (a, b):
            start = slot // block_size * block_size
            for other in range(start, start + block_size):
                matrix.deltas[min(slot, other), max(slot, other)] = swap_delta(state, slot, other)
        for i in range(matrix.deltas.shape[0]):
            find_least(matrix.deltas, matrix.least, block_size, i)


@compiled
def add_touched_samples(state: Any, deltas: Any, block_size: int, a: int, b: int, sign: float) -> None:
    """Add `sign` times the part of every sample that a swap of a and b touches to the deltas without a and b."""
    start, sample, row = state.start, state.sample, state.row
    sample_start, sample_slot, sample_slot_weight = state.sample_start, state.sample_slot, state.sample_slot_weight
    for slot in (a, b):
        for i in range(start[slot], start[slot + 1]):
            x = sample[i]
            for k in range(sample_start[x], sample_start[x + 1]):
                row[sample_slot[k]] = sample_slot_weight[k]
            # A sample of both slots comes up twice and counts once.
            if slot == a or row[a] == 0.0:
                add_sample(
                    deltas, state.expert, row, state.outputs, state.target, state.label, state.sample_weight,
                    state.prediction, state.sample_loss, state.trial, state.loss, sample_start, sample_slot,
                    block_size, x, a, b, sign,
                )  # fmt: skip
            for k in range(sample_start[x], sample_start[x + 1]):
                row[sample_slot[k]] = 0.0


@compiled
def add_sample(
    deltas: Any,
    expert: Any,
    row: Any,
    outputs: Any,
    target: Any,
    label: Any,
    sample_weight: Any,
    prediction: Any,
    sample_loss: Any,
    trial: Any,
    loss: int,
    sample_start: Any,
    sample_slot: Any,
    block_size: int,
    x: int,
    a: int,
    b: int,
    sign: float,
) -> None:
    """Add `sign` times the part of sample x, of weights `row`, to the deltas of its slots but those with a or b."""
    for k in range(sample_start[x], sample_start[x + 1]):
        i = sample_slot[k]
        if i in (a, b):
            continue
        e = expert[i]
        start = i // block_size * block_size
        for j in range(start, start + block_size):
            f = expert[j]
            # A pair of two slots of the sample comes up twice and counts once.
            if e == f or j in (a, b) or (j < i and row[j] > 0):
                continue
            g = row[i] - row[j]
            for d in range(trial.shape[0]):
                trial[d] = prediction[x, d] + g * (outputs[x, f, d] - outputs[x, e, d])
            change = loss_of_sample(trial, target, label, x, loss) - sample_loss[x]
            deltas[min(i, j), max(i, j)] += sign * sample_weight[x] * change
