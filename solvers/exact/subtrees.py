"""A search tree in parts that threads search side by side; what they find does not depend on how many threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_search.solvers.exact.branching import BEST, STEP, Tree, branch_slice, open_bound

# So many parts keep some processors busy from one exchange of incumbents to the next.
PARTS = 32
# What a part does between two exchanges, some milliseconds, beside which handing it to a thread takes nothing. It is no
# more because threads wait for each other at the end of a round.
ROUND_OPERATIONS = 8_000_000
# What is done before the tree is split; one that is searched by then never is. Where the tree finds the first
# incumbents itself that is longer, since parts learn only at the end of a round what others have found.
FIRST_OPERATIONS, DIVE_OPERATIONS = 4_000_000, 40_000_000
# A tree with fewer free slots than this has some tens of nodes and is not worth to be split off.
LEAST_FREE = 9
# What all parts only read.
READ_ONLY = frozenset({"slot_maps", "seat_maps", "slot_twin", "seat_twin"})


@dataclass
class Part:
    """A subtree, or what is left of one."""

    costs: Any
    tree: Tree
    left: int  # nodes until the next exchange
    done: bool = False  # as in the counts of the tree, which take long to read

    def search(self, nodes: int, target: float) -> int:
        """Bound at most `nodes` more nodes; return how many."""
        self.tree.counts[0].logged = 0
        done = int(branch_slice(self.costs, self.tree, nodes, target))
        self.left -= done
        self.done = bool(self.tree.counts[0].done)
        return done

    def open_depth(self) -> int:
        """Return the least depth at which there is a child to give up, the number of slots if there is none.

        It waits, its bound does not end it, and something is left without it.
        """
        tree, lowest = self.tree, int(self.tree.counts[0].depth)
        limit = tree.totals[BEST] - tree.totals[STEP]
        ends = tree.children[: lowest + 1].tolist()
        for depth, (child, end) in enumerate(zip(tree.visited.tolist(), ends, strict=False)):
            if child < end and tree.bound[depth, child] <= limit and (depth < lowest or child + 1 < end):
                return depth
        return len(tree.visited)

    def split(self, depth: int) -> Part:
        """Return a part of the later half of the children that wait at a depth, which this one is to give up."""
        tree = self.tree
        copies: dict[str, Any] = {name: _copied(each) for name, each in tree._asdict().items() if name not in READ_ONLY}
        new = tree._replace(**copies)
        first, end = int(tree.visited[depth]), int(tree.children[depth])
        moved = slice(first + (end - first) // 2, end)
        for mine, others in ((tree.slot, new.slot), (tree.seat, new.seat), (tree.bound, new.bound)):
            others[depth, : end - moved.start] = mine[depth, moved]
        new.children[depth], new.visited[depth] = end - moved.start, 0
        new.counts[0].depth, new.counts[0].nodes = depth, 0
        way = np.arange(depth), tree.visited[:depth] - 1
        new.free.slot_is_free[:], new.free.seat_is_free[:] = True, True
        new.free.slot_is_free[tree.slot[way]], new.free.seat_is_free[tree.seat[way]] = False, False
        return Part(self.costs.with_scratch(), new, 0)


def _copied(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.copy()
    return type(value)(*map(_copied, value)) if isinstance(value, tuple) else value


class Subtrees:
    """The open parts of a search tree.

    Each round all of them bound a number of nodes, then they exchange incumbents and split so that there are `PARTS` of
    them. What a part does within a round depends on nothing that the others do meanwhile, and it is taken in part by
    part: nodes, incumbents and proof are the same however many are searched at once.

    Parameters
    ----------
    costs, tree
        What `branch_slice` takes, of the whole tree.
    operations : int
        What a node takes.
    at_once : callable
        ``map``, or one that works on several items at a time.
    dives : bool
        Whether the tree is to find the first incumbents itself.

    Attributes
    ----------
    incumbent, best
        The best permutation met, and its total.
    nodes : int
        Nodes bounded.
    parts : list of Part
        What is open; nothing once the tree has been searched.
    """

    def __init__(
        self,
        costs: Any,
        tree: Tree,
        operations: int,
        at_once: Callable[[Callable[..., int], Any, Any], Iterable[int]],
        dives: bool,
    ) -> None:
        self.quota = max(ROUND_OPERATIONS // operations, 1)
        first = DIVE_OPERATIONS if dives else FIRST_OPERATIONS
        self.parts = [Part(costs, tree, max(first // operations, 1))]
        self.at_once = at_once
        self.incumbent: npt.NDArray[np.int64] = tree.incumbent.copy()
        self.best = tree.totals[BEST]
        self.nodes = 0

    def advance(self, nodes: int, target: float) -> tuple[list[tuple[int, Any]], bool]:
        """Bound at most `nodes` more nodes; return improvements, as number of nodes and total, and whether it ended."""
        improvements: list[tuple[int, Any]] = []
        last = self.nodes + nodes
        while self.parts and self.nodes < last:
            chosen, shares, left = [], [], last - self.nodes
            for part in self.parts:
                if part.left > 0 and left > 0 and not part.done:
                    chosen.append(part)
                    shares.append(min(part.left, left))
                    left -= shares[-1]
            # A part alone is searched in this thread: what it compiles is then off the clock.
            each_in_turn = map if len(chosen) == 1 else self.at_once
            counts = each_in_turn(lambda part, share: part.search(share, target), chosen, shares)
            for part, done in zip(chosen, counts, strict=True):
                improvements += self._take_in(part, done)
                if self.best <= target:
                    return improvements, True
            if all(part.left <= 0 or part.done for part in self.parts):
                self._begin_round()
        return improvements, not self.parts

    def bound(self) -> Any:
        """Return the least bound of what is open, the incumbent's total if nothing is; None before there is one."""
        # One that has reached the target is done, but not proved: something may be open in it.
        bounds = [open_bound(part.tree) for part in self.parts if not part.tree.counts[0].proved]
        return None if None in bounds else min([*bounds, self.best])

    def take_in_all(self) -> None:
        """Take in what parts have found that Ctrl-C kept from being taken in."""
        for part in self.parts:
            self._take_in(part, 0)

    def _take_in(self, part: Part, done: int) -> list[tuple[int, Any]]:
        counts, before, found = part.tree.counts[0], self.nodes, []
        self.nodes += done
        for x in range(counts.logged):
            if part.tree.log_values[x] < self.best:
                self.best = part.tree.log_values[x]
                found.append((before + int(part.tree.log_nodes[x] - counts.nodes) + done, self.best))
        if found:
            self.incumbent[:] = part.tree.incumbent
        return found

    def _begin_round(self) -> None:
        self.parts = [part for part in self.parts if not part.done]
        for part in self.parts:
            part.tree.totals[BEST] = self.best
        depths = [part.open_depth() for part in self.parts]
        while self.parts and len(self.parts) < PARTS:
            # The parts whose children wait at the least depth have most before them.
            largest = depths.index(min(depths))
            part = self.parts[largest]
            if len(part.tree.visited) - depths[largest] < LEAST_FREE:
                break
            other = part.split(depths[largest])
            self.parts.append(other)
            # Only now: children that Ctrl-C leaves in both are in the bound, those in neither would not be.
            part.tree.children[depths[largest]] -= other.tree.children[depths[largest]]
            depths[largest] = part.open_depth()
            depths.append(self.parts[-1].open_depth())
        # Largest first: what threads wait for at the end is then short.
        by_depth = sorted(range(len(self.parts)), key=depths.__getitem__)
        self.parts = [self.parts[x] for x in by_depth]
        for part in self.parts:
            part.left = self.quota
