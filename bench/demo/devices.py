"""Experts on devices: the traffic of a real model replayed under a placement that stays, EPLB's and the search."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from moe_search.plotting.placements import device_loads
from moe_search.plotting.table import Table
from moe_search.problems import Cluster, ExpertPlacement, Rebalancing
from moe_search.serving import Policy, PolicyOutcome, Simulation, simulate
from moe_search.serving.eplb import TURNS
from moe_search.serving.greedy_eplb import eplb
from moe_search.solvers import MaxIterations, PlacementSearch

TRACE = Path(__file__).with_name("routing_trace.npz")
"""Counts of experts that DeepSeek-V2-Lite chose; where they come from and their licence stand in the file."""

CLUSTER = Cluster(num_devices=8, slots_per_device=9)
LAST = 4
"""Windows that a rebalance is planned with: one of 512 tokens is a small sample."""

TOLERANCE = 0.02
TOLERANCES = (0.01, TOLERANCE, 0.05, 0.1)

STATIC = Policy("static", last=LAST)
EPLB = Policy("eplb", last=LAST)
SEARCH = Policy(tolerance=TOLERANCE, last=LAST)
POLICIES = (STATIC, EPLB, *(Policy(tolerance=tolerance, last=LAST) for tolerance in TOLERANCES))


@dataclass(frozen=True)
class Trace:
    """Tokens of every expert.

    Attributes
    ----------
    counts : ndarray of float64, shape (tasks, windows, layers, experts)
    tasks : tuple of str
        What the texts are about.
    source : str
        Where it comes from.
    """

    counts: NDArray[np.float64]
    tasks: tuple[str, ...]
    source: str


@dataclass(frozen=True, eq=False)
class Rebalanced:
    """The placement for the first windows of a trace, brought up to date for the last ones.

    Attributes
    ----------
    before, after : ndarray of float64, shape (layers, devices)
        Loads of the devices in the last windows, which are planned with.
    bounds : ndarray of float64, shape (layers,)
        The largest load of a device can be no less.
    migrations, of_eplb : int
        Experts that migrate, and that would to the placement that EPLB's algorithm makes.
    """

    before: NDArray[np.float64]
    after: NDArray[np.float64]
    bounds: NDArray[np.float64]
    migrations: int
    of_eplb: int


@dataclass(frozen=True, eq=False)
class DevicesResult:
    """What came of the trace: of all tasks one after the other, and of each alone, whose traffic is steady."""

    trace: Trace
    drifting: Simulation
    steady: tuple[Simulation, ...]
    rebalanced: Rebalanced

    def steady_outcomes(self, policy: Policy) -> list[PolicyOutcome]:
        """Return what came of a policy, task by task."""
        return [outcome_of(each, policy) for each in self.steady]


def read_trace(windows: int) -> Trace:
    """Return the first windows of every task."""
    with np.load(TRACE, allow_pickle=False) as arrays:
        counts = arrays["counts"][:, :windows].astype(np.float64)
        return Trace(counts, tuple(arrays["tasks"].tolist()), str(arrays["source"]))


def replay(windows: int) -> DevicesResult:
    """Play so many windows of every task through; the answer has no chance in it."""
    trace = read_trace(windows)
    joined = np.concatenate(trace.counts)
    return DevicesResult(
        trace,
        simulate(joined, CLUSTER, POLICIES),
        tuple(simulate(each, CLUSTER, POLICIES) for each in trace.counts),
        rebalance(joined[:LAST], joined[-LAST:]),
    )


def rebalance(first: NDArray[np.float64], last: NDArray[np.float64]) -> Rebalanced:
    """Place the experts for some windows, and rebalance them for others."""
    stop = MaxIterations(TURNS * first.shape[1])
    old = PlacementSearch().solve(ExpertPlacement(first, CLUSTER), stop).solution.physical_to_logical
    problem = ExpertPlacement(last, CLUSTER)
    near = Rebalancing(problem, old, tolerance=TOLERANCE)
    new = PlacementSearch().solve(near, stop).solution.physical_to_logical
    anew = eplb(problem.load, CLUSTER.num_slots, 0, 1, CLUSTER.num_devices)
    return Rebalanced(
        problem.device_loads(old),
        problem.device_loads(new),
        problem.load_bounds,
        int(near.migrations(new).sum()),
        int(near.migrations(anew).sum()),
    )


def outcome_of(played: Simulation, policy: Policy) -> PolicyOutcome:
    """Return what came of a policy."""
    return next(each for each in played.outcomes if each.policy == policy)


def balance_of(result: DevicesResult, policy: Policy) -> tuple[float, float]:
    """Return the mean balance on the next window of a policy: of all tasks in turn, and of each alone."""
    steady = [each.balance.mean() for each in result.steady_outcomes(policy)]
    return float(outcome_of(result.drifting, policy).balance.mean()), float(np.mean(steady))


def devices_sentence(result: DevicesResult) -> str:
    """Return what the search is worth where traffic drifts."""
    kept, anew, near = (balance_of(result, policy)[0] for policy in (STATIC, EPLB, SEARCH))
    moved, all_moved = (outcome_of(result.drifting, policy).migrations.sum() for policy in (SEARCH, EPLB))
    return (
        f"Devices: on traffic of DeepSeek-V2-Lite, a search within {TOLERANCE:.0%} of the bound balances the next "
        f"window to {near:.3f} by {moved / all_moved:.1%} of the migrations of EPLB's algorithm, which comes to "
        f"{anew:.3f}; a placement that stays comes to {kept:.3f}."
    )


def steady_sentence(result: DevicesResult) -> str:
    """Return what is left to gain where traffic is steady."""
    (drifting, steady), (stale, kept), (_, anew) = (balance_of(result, policy) for policy in (SEARCH, STATIC, EPLB))
    return (
        f"On each task alone, whose traffic is steady, the search gains {steady - kept:+.3f} on a placement that "
        f"stays, and {drifting - stale:+.3f} on all tasks in turn: {steady:.3f} and {kept:.3f}, EPLB's algorithm "
        f"{anew:.3f}."
    )


def rebalanced_sentence(rebalanced: Rebalanced) -> str:
    """Return what a rebalance does to the loads that it is planned with."""
    even = rebalanced.before.mean(axis=1)
    before, after = ((loads.max(axis=1) / even).max() for loads in (rebalanced.before, rebalanced.after))
    return (
        f"From the placement for the first {LAST} windows to the last {LAST}, the most loaded device of all layers "
        f"goes from {before:.2f} times the mean to {after:.3f} times (no placement can have less than "
        f"{(rebalanced.bounds / even).max():.3f}) by {rebalanced.migrations} migrations; EPLB's algorithm makes "
        f"{rebalanced.of_eplb}."
    )


def policies_table(result: DevicesResult) -> Table:
    """Return balance and migrations of all policies."""
    played = result.drifting
    rows: list[tuple[Any, ...]] = []
    for policy in POLICIES:
        outcome = outcome_of(played, policy)
        drifting, steady = balance_of(result, policy)
        rows.append(
            (
                _named(str(policy)),
                f"{drifting:.3f}",
                f"{outcome.planned.mean():.3f}",
                f"{played.part_moved(outcome):.2%}",
                f"{outcome.migrations.sum():,}",
                f"{steady:.3f}",
            )
        )
    bounds = played.best.mean(), np.mean([each.best.mean() for each in result.steady])
    rows.append(("bound, had it been known", f"{bounds[0]:.3f}", "-", "-", "-", f"{bounds[1]:.3f}"))
    return Table(
        "Devices: balance, the mean load of a device over the largest",
        ("policy", "next window", "as planned", "slots moved", "experts moved", "each task alone"),
        tuple(rows),
        rules=(len(rows) - 2,),
    )


def trade_off_families(result: DevicesResult) -> dict[str, list[tuple[str, float, float]]]:
    """Return the points of the picture of balance against slots moved."""
    return {_named(name): points for name, points in result.drifting.families().items()}


def loads_picture(rebalanced: Rebalanced) -> Figure:
    """Draw the loads of the devices before and after a rebalance."""
    return device_loads(before=rebalanced.before, after=rebalanced.after)


def _named(policy: str) -> str:
    name = policy.removesuffix(f", last {LAST}")
    return f"search, {name}" if name.startswith("tolerance") else name
