"""Search the tables of a student's layers: every token of the vocabulary goes where its distillation loss is least."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from moe_search.bench.experiments.token_states import TokenStates
from moe_search.bench.experiments.token_student import TokenStudent
from moe_search.bench.experiments.training import SearchSchedule
from moe_search.problems.linear import LinearAssignment
from moe_search.solvers.engine.stop import MaxRuntime
from moe_search.solvers.exact.transport import Transport

LONGEST = 60.0
"""Seconds that no assignment of these sizes comes near to: `Transport` ends at the optimum, so that runs repeat."""

COST_SHARE = 0.75
"""Of the snippets a search looks at, that part makes the costs; rare tokens need many."""

TIE = 1e-9
"""Of the mean cost: what a slot gains by staying, so that slots without samples do."""


class TokenTableSearch:
    """Search the tables while the student is trained, on some snippets at a time.

    With one expert a token the distillation loss of a layer is a linear assignment: the loss of every expert on every
    token, added up by slot. Most of the snippets make the costs, the others verify: a layer's table is taken if
    the loss there falls by more than the standard error, snippets being the independent units.

    Parameters
    ----------
    student : TokenStudent
    data : TokenStates
        The snippets for training.
    strata : sequence of ndarray
        Groups of slots; every expert holds equally many of each group.
    schedule : SearchSchedule
        Its period and end.
    snippets : int
        That a search looks at.
    seed : int
        Decides which they are, and which of them verify.

    Attributes
    ----------
    committed : int
        Tables taken, all layers together.
    seconds : float
    """

    def __init__(
        self,
        student: TokenStudent,
        data: TokenStates,
        strata: Sequence[NDArray[np.int64]],
        schedule: SearchSchedule,
        snippets: int,
        seed: int,
    ) -> None:
        self._student = student
        self._data = data
        self._strata = strata
        self._schedule = schedule
        self._snippets = min(snippets, len(data))
        self._generator = torch.Generator().manual_seed(seed)
        self.committed = 0
        self.seconds = 0.0

    def step(self, step: int) -> None:
        """Search if it is time to."""
        if step % self._schedule.period == 0 and step <= self._schedule.until:
            start = time.perf_counter()
            self._search()
            self.seconds += time.perf_counter() - start

    def _search(self) -> None:
        self._student.eval()
        rows = torch.randperm(len(self._data), generator=self._generator)[: self._snippets]
        for layer in range(len(self._student.mixtures)):
            self._search_layer(layer, rows)

    def _search_layer(self, layer: int, rows: torch.Tensor) -> None:
        gate = self._student.gate(layer)
        old = gate.expert_map.experts[0].numpy().copy()
        costs, gains = np.zeros((gate.num_slots, gate.num_experts)), []
        part = round(COST_SHARE * len(rows))
        for chunk in self._data.chunks(rows[:part]):
            slots, losses, _ = self._losses(layer, chunk)
            np.add.at(costs, slots, losses)
        new = balanced_table(costs, old, self._strata)
        for chunk in self._data.chunks(rows[part:]):
            slots, losses, owners = self._losses(layer, chunk)
            tokens = np.arange(len(slots))
            gains.append(np.bincount(owners, losses[tokens, old[slots]] - losses[tokens, new[slots]]))
        by_snippet = np.concatenate(gains)
        if by_snippet.mean() > by_snippet.std(ddof=1) / np.sqrt(len(by_snippet)):
            gate.expert_map.assign(new[None])
            self.committed += 1

    def _losses(
        self, layer: int, rows: torch.Tensor
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
        """Return the slot of every token, the loss of every expert on it, and the number of its snippet."""
        batch = self._data.batch(rows)
        gate = self._student.gate(layer)
        losses = self._student.expert_losses(batch, layer)
        return gate.table[batch.ids].numpy(), losses, batch.owners.numpy()


def balanced_table(
    costs: NDArray[np.float64], old: NDArray[np.int64], strata: Sequence[NDArray[np.int64]]
) -> NDArray[np.int64]:
    """Return the experts of slots at the least total cost, every expert holding equally many slots of every group.

    Parameters
    ----------
    costs : ndarray, shape (m, n)
        Of every slot under every expert.
    old : ndarray of int64, shape (m,)
        The experts there are; a slot that loses nothing by it stays.
    strata : sequence of ndarray
        The groups, that together hold every slot once.
    """
    costs = costs.copy()
    costs[np.arange(len(costs)), old] -= TIE * (np.abs(costs).mean() or 1.0)
    new = np.empty_like(old)
    for group in strata:
        problem = LinearAssignment(costs[group])
        new[group] = Transport().solve(problem, MaxRuntime(LONGEST)).permutation // problem.capacity
    return new


def random_table(
    strata: Sequence[NDArray[np.int64]], num_experts: int, generator: torch.Generator
) -> NDArray[np.int64]:
    """Return a table drawn uniformly from those that give every expert equally many slots of every group."""
    table = np.empty(sum(map(len, strata)), dtype=np.int64)
    for group in strata:
        table[group] = torch.randperm(len(group), generator=generator).numpy() % num_experts
    return table
