"""Tables from the slots of tokens to experts, balanced over groups of slots: drawn, solved for, and searched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moe_search.bench.experiments.token_student import TokenStudent
from moe_search.bench.experiments.token_teacher import TokenStates
from moe_search.problems import LinearAssignment
from moe_search.problems.permutation_problem import seats_by_expert
from moe_search.solvers import MaxRuntime, Result, Solver, Transport
from moe_search.solvers.engine.run import Run
from moe_search.training import PermutationSearch
from moe_search.training.lowering.batch import Batch

OWN_SHARE = 0.75
"""Part of the slots that hold one token each."""

LONGEST = 60.0
"""Seconds that no assignment of these sizes comes near to: `Transport` ends at the optimum, so that runs repeat."""

COST_SHARE = 0.75
"""Part of the snippets a search looks at that makes the costs, the others verifying: rare tokens need many."""

TIE = 1e-9
"""Part of the mean cost that a slot gains by staying, so that slots without samples do."""

Strata = Sequence[NDArray[np.int64]]
"""Groups of slots, which together hold every slot once; every expert holds equally many of each group."""


def token_slots(counts: NDArray[np.int64], num_slots: int) -> NDArray[np.int64]:
    """Return the slot of every token: one of its own for the most frequent ones, the others dealt over the rest.

    Counts, shape (vocabulary,), say how often each token occurs.
    """
    if not 1 <= num_slots <= len(counts):
        raise ValueError(f"num_slots must be 1 .. {len(counts)}, the tokens of the vocabulary, got {num_slots}")
    own = int(OWN_SHARE * num_slots)
    ranks = np.arange(len(counts))
    slots = np.empty(len(counts), dtype=np.int64)
    slots[np.argsort(-counts, kind="stable")] = np.where(ranks < own, ranks, own + (ranks - own) % (num_slots - own))
    return slots


def frequency_strata(loads: NDArray[np.int64], num_experts: int) -> list[NDArray[np.int64]]:
    """Return groups of slots of like load, the heaviest first: n, n, 2 n, 4 n, ... of them.

    Where every expert holds equally many slots of every group, loads are about equal: the heaviest slots stand in the
    smallest groups. The slots, whose loads have shape (m,), are a multiple of the n experts.
    """
    order = np.argsort(-loads, kind="stable")
    cuts = [num_experts]
    while cuts[-1] < len(order):
        cuts.append(2 * cuts[-1])
    return [group for group in np.split(order, cuts) if len(group)]


def random_table(strata: Strata, num_experts: int, generator: torch.Generator) -> NDArray[np.int64]:
    """Return a table drawn uniformly from those that give every expert equally many slots of every group."""
    table = np.empty(sum(map(len, strata)), dtype=np.int64)
    for group in strata:
        table[group] = torch.randperm(len(group), generator=generator).numpy() % num_experts
    return table


@dataclass(frozen=True)
class BalancedTransport(Solver):
    """Find the table at the least total cost in which every expert holds equally many slots of every group.

    Groups are solved one by one; a slot that loses nothing by it keeps its expert of the initial table.
    """

    takes: ClassVar[type] = LinearAssignment
    strata: Strata

    def search(self, run: Run) -> Result:
        """Solve group by group; see `Solver.search`."""
        problem = run.problem
        assert isinstance(problem, LinearAssignment)
        costs = problem.cost.copy()
        if run.initial is not None:
            costs[np.arange(len(costs)), run.initial // problem.capacity] -= TIE * (np.abs(costs).mean() or 1.0)
        table = np.empty(problem.size, dtype=np.int64)
        for group in self.strata:
            part = LinearAssignment(costs[group])
            table[group] = Transport().solve(part, MaxRuntime(LONGEST)).permutation // part.capacity
        permutation = seats_by_expert(table)
        run.take_initial(permutation)
        run.offer(permutation, problem.value(permutation), 1)
        return run.result(moves=0)


class TokenTableSearch:
    """Searches the tables of a student's layers on some snippets: a token goes where its distillation loss is least.

    With one expert a token, the loss of a layer is a linear assignment. Most of the snippets make the costs, the others
    verify, snippets being the independent units. `snippets` says how many a search looks at, and the seed decides which
    they are and which of them verify. `of_layers` holds the search of every layer.
    """

    def __init__(self, student: TokenStudent, data: TokenStates, strata: Strata, snippets: int, seed: int) -> None:
        self._student = student
        self._data = data
        self._snippets = min(snippets, len(data))
        self._generator = torch.Generator().manual_seed(seed)
        solver = BalancedTransport(strata)
        self.of_layers = tuple(
            PermutationSearch(layer, layer.moe, loss=nn.MSELoss(), solver=solver, seed=seed) for layer in student.layers
        )

    def search(self) -> None:
        """Search one layer after the other."""
        rows = torch.randperm(len(self._data), generator=self._generator)[: self._snippets]
        cut = round(COST_SHARE * len(rows))
        for index, search in enumerate(self.of_layers):
            search.search_batches(self._batches(rows[:cut], index), verify=self._batches(rows[cut:], index))

    def _batches(self, rows: Tensor, index: int) -> Iterator[Batch]:
        """Yield what a layer takes and what it is to make of it, the layers before it routing as they do."""
        self._student.eval()
        for some in self._data.chunks(rows):
            batch = self._data.batch(some)
            attended = self._student.attended(batch, index)
            yield Batch(attended, batch.targets[index], ids=batch.ids, groups=some[batch.owners])
