"""A trace of traffic played through: how balanced the next window is, and how much migrates, by the policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from moe_search.checks import require_choice, require_integer, require_number, store_plain
from moe_search.plotting.table import Table
from moe_search.problems.arrays import numeric_array
from moe_search.problems.placement import LEAST_LOAD, Cluster, ExpertPlacement, Experts
from moe_search.problems.rebalancing import Rebalancing
from moe_search.serving.eplb import TOLERANCE, TURNS, without_idle_layers
from moe_search.serving.greedy_eplb import eplb
from moe_search.solvers.engine.stop import MaxIterations
from moe_search.solvers.heuristic.placement_search import PlacementSearch

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Algorithm = Literal["static", "eplb", "search"]
Floats = npt.NDArray[np.float64]
# A difference in balance of less than this is not worth a migration.
CLOSE = 0.01


@dataclass(frozen=True)
class Policy:
    """How a placement follows the traffic.

    Parameters
    ----------
    algorithm : {"static", "eplb", "search"}
        ``static`` keeps the placement. ``eplb`` is DeepSeek's algorithm, run anew at every rebalance. ``search`` is
        `PlacementSearch`: of the fewest migrations within `tolerance`, of the best balance within `budget`, or anew.
    tolerance : float, optional
        How far a layer may be above its bound before experts migrate.
    budget : float, optional
        The part of all slots whose experts may migrate at a rebalance.
    last : int or None, default 1
        How many of the windows seen are planned with; None is all of them.
    decay : float, default 1.0
        What a window counts one rebalance later: 0.8 and all windows are a moving average.

    Examples
    --------
    >>> import moe_search as ms
    >>> print(ms.serving.Policy(tolerance=0.02, last=None, decay=0.8))
    tolerance 2%, average .8
    """

    algorithm: Algorithm = "search"
    tolerance: float | None = None
    budget: float | None = None
    last: int | None = 1
    decay: float = 1.0

    def __post_init__(self) -> None:
        store_plain(self)
        require_choice("algorithm", self.algorithm, get_args(Algorithm))
        for name, value in (("tolerance", self.tolerance), ("budget", self.budget)):
            if value is not None:
                require_number(name, value)
        if self.algorithm != "search" and (self.tolerance, self.budget) != (None, None):
            raise ValueError(f"tolerance and budget must be given to the algorithm search only, got {self.algorithm!r}")
        if None not in (self.tolerance, self.budget):
            raise ValueError("tolerance and budget exclude each other, got both")
        if self.last is not None:
            require_integer("last", self.last)
        if require_number("decay", self.decay) > 1:
            raise ValueError(f"decay must be a number from 0 to 1, got {self.decay:g}")

    @property
    def limit(self) -> str:
        """The tolerance or the budget in words; empty if there is none."""
        given = self.budget if self.tolerance is None else self.tolerance
        return "" if given is None else f"{100 * given:g}%"

    @property
    def family(self) -> str:
        """What policies have in common that differ in their limit."""
        return self._named("")

    def __str__(self) -> str:
        return self._named(f" {self.limit}" if self.limit else "")

    def _named(self, limit: str) -> str:
        if self.algorithm == "static":
            return "static"
        kind = "tolerance" if self.tolerance is not None else "budget" if self.budget is not None else "search anew"
        average = "" if self.decay == 1 else f", average {self.decay:g}".replace("0.", ".")
        last = "" if self.last in (None, 1) else f", last {self.last}"
        return ("EPLB anew" if self.algorithm == "eplb" else kind) + limit + average + last

    def planned_for(self, seen: Floats) -> Floats:
        """Return the loads that are planned for, of shape (layers, experts), given the windows seen."""
        recent = seen if self.last is None else seen[-self.last :]
        return np.tensordot(self.decay ** np.arange(len(recent))[::-1], recent, axes=1)


DEFAULT_POLICIES = (
    Policy("static"),
    Policy("eplb"),
    Policy("search"),
    *(Policy(tolerance=tolerance) for tolerance in (0.01, 0.02, 0.05, 0.1)),
    *(Policy(budget=budget) for budget in (0.01, 0.05)),
    *(Policy(tolerance=tolerance, last=None, decay=0.8) for tolerance in (0.01, 0.02, 0.05, 0.1)),
)


@dataclass(frozen=True, eq=False)
class PolicyOutcome:
    """What came of a policy, a number for every rebalance.

    Parameters
    ----------
    policy : Policy
        The policy.
    balance : ndarray of float64, shape (rebalances,)
        The balancedness in the window that follows the rebalance, the mean over layers.
    planned : ndarray of float64, shape (rebalances,)
        That of the loads that were planned for.
    migrations : ndarray of int64, shape (rebalances,)
        How many experts went to devices that did not hold them before, in all layers.

    Examples
    --------
    >>> import numpy as np
    >>> import moe_search as ms
    >>> outcome = ms.serving.PolicyOutcome(ms.serving.Policy("eplb"), np.array([0.8]), np.array([0.99]), np.array([7]))
    >>> outcome
    PolicyOutcome(EPLB anew: balance 0.8000, 7 migrations a rebalance)
    """

    policy: Policy
    balance: Floats
    planned: Floats
    migrations: npt.NDArray[np.int64]

    def __repr__(self) -> str:
        moved = f"{self.migrations.mean():.6g} migrations a rebalance"
        return f"PolicyOutcome({self.policy}: balance {self.balance.mean():.4f}, {moved})"


@dataclass(frozen=True, eq=False)
class Simulation:
    """What came of some policies on a trace.

    Parameters
    ----------
    outcomes : tuple of PolicyOutcome
        One for each policy.
    best : ndarray of float64, shape (rebalances,)
        The balancedness that the bounds allow in the following window, had it been known.
    num_layers, num_slots : int
        The layers with any load, and the slots of one.

    Examples
    --------
    >>> import numpy as np
    >>> import moe_search as ms
    >>> static = ms.serving.PolicyOutcome(ms.serving.Policy("static"), np.array([0.8]), np.array([0.9]), np.array([0]))
    >>> anew = ms.serving.PolicyOutcome(ms.serving.Policy("eplb"), np.array([0.82]), np.array([1.0]), np.array([9]))
    >>> print(ms.serving.Simulation((static, anew), np.array([1.0]), 1, 10).advised.policy)
    EPLB anew
    """

    outcomes: tuple[PolicyOutcome, ...]
    best: Floats = field(repr=False)
    num_layers: int
    num_slots: int

    @property
    def advised(self) -> PolicyOutcome:
        """The outcome of fewest migrations among those whose balance is within .01 of the best one."""
        good = max(outcome.balance.mean() for outcome in self.outcomes) - CLOSE
        close = [outcome for outcome in self.outcomes if outcome.balance.mean() >= good]
        return min(close, key=lambda outcome: outcome.migrations.sum())

    def part_moved(self, outcome: PolicyOutcome) -> float:
        """Return the part of all slots whose experts migrate at a rebalance."""
        return float(outcome.migrations.mean()) / (self.num_layers * self.num_slots)

    def table(self) -> Table:
        """Return balance and migrations of all policies."""
        rows = [
            (
                str(outcome.policy) + (" *" if outcome is self.advised else ""),
                f"{outcome.balance.mean():.4f}",
                f"{outcome.balance.min():.4f}",
                f"{outcome.planned.mean():.4f}",
                f"{self.part_moved(outcome):.2%}",
                f"{outcome.migrations.sum():,}",
            )
            for outcome in self.outcomes
        ]
        rows.append(("had it been known", f"{self.best.mean():.4f}", f"{self.best.min():.4f}", "-", "-", "-"))
        return Table(
            "Balance on the next window, and migrations",
            ("policy", "balance", "worst window", "as planned", "slots moved", "in all"),
            tuple(rows),
            rules=(len(rows) - 2,),
            note=f"{len(self.best)} rebalances. Balance is the mean load of a device over the largest, in the window"
            f" after the one that was planned with. * moves least among those within {CLOSE:g} of the best.",
        )

    def advice(self) -> tuple[str, ...]:
        """Return what moves least among the good policies, and the others beside it, a sentence each."""
        advised = self.advised
        beside = [each for each in self.outcomes if each.policy.algorithm != "search" and each is not advised]
        told = [
            f"{'Advised: ' if each is advised else ''}{each.policy}, balance {each.balance.mean():.3f} on the next"
            f" window, {self.part_moved(each):.1%} of slots moved."
            for each in (advised, *beside)
        ]
        if not advised.migrations.any():
            told.append(f"Nothing to gain: without migrations, balance is within {CLOSE:g} of the best policy's.")
        return tuple(told)

    def families(self) -> dict[str, list[tuple[str, float, float]]]:
        """Return limit, part of all slots moved and balance of all policies, by what they have in common."""
        found: dict[str, list[tuple[str, float, float]]] = {}
        for outcome in self.outcomes:
            policy, balance = outcome.policy, float(outcome.balance.mean())
            found.setdefault(policy.family, []).append((policy.limit, self.part_moved(outcome), balance))
        return found

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the balance on the next window against the migrations.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; by default on axes of its own.

        Returns
        -------
        matplotlib Axes
        """
        import matplotlib.pyplot as plt

        from moe_search.plotting.placements import draw_trade_off

        if ax is None:
            ax = plt.subplots(layout="constrained")[1]
        draw_trade_off(ax, self.families())
        ax.legend(frameon=False)
        return ax


def simulate(
    loads: npt.ArrayLike,
    cluster: Cluster,
    policies: Sequence[Policy] = DEFAULT_POLICIES,
    num_groups: int | None = None,
    turns: int = TURNS,
    seed: int = 0,
) -> Simulation:
    """Play a trace through: after every window the placement is rebalanced, and judged on the next one.

    All policies begin with the same placement, searched for the first windows. Windows without any load are left out,
    and so are layers without any in all of them.

    Parameters
    ----------
    loads : array_like, shape (windows, layers, experts)
        The load of every expert in every window of traffic, a rebalance apart.
    cluster : Cluster
        The devices.
    policies : sequence of Policy
        What is compared; by default the static placement, EPLB anew, the search anew, and with some tolerances and
        budgets.
    num_groups : int, optional
        Groups of experts that stay on nodes, as for `ExpertPlacement`.
    turns : int, default 30
        Descents for each layer at a rebalance, the number of `rebalance_experts` and of the policy for vLLM.
    seed : int, default 0
        The source of all randomness.

    Returns
    -------
    Simulation
        Print its `table`.

    Raises
    ------
    ValueError
        If there are too few windows, or what `ExpertPlacement` refuses.

    Examples
    --------
    >>> import numpy as np
    >>> import moe_search as ms
    >>> rng = np.random.default_rng(0)
    >>> loads = np.exp(rng.normal(size=(2, 32)) + rng.normal(scale=0.1, size=(12, 2, 32)).cumsum(axis=0))
    >>> policies = [ms.serving.Policy("eplb"), ms.serving.Policy(tolerance=0.05)]
    >>> anew, warm = ms.serving.simulate(loads, ms.Cluster(4, 10), policies).outcomes
    >>> bool(warm.migrations.sum() < 0.1 * anew.migrations.sum())
    True
    """
    windows = _windows(loads)
    policies = tuple(policies)
    if not policies:
        raise ValueError("policies must hold one at least, got none")
    for policy in policies:
        if not isinstance(policy, Policy):
            raise TypeError(f"policies must be of Policy, such as Policy('eplb'), got {policy!r}")
    require_integer("turns", turns)
    start = max(policy.last or 1 for policy in policies)
    if len(windows) < start + 2:
        raise ValueError(
            f"loads must hold {start + 2} windows with any load at least: {start} to begin with, one to rebalance"
            f" after and one to judge by; got {len(windows)}"
        )
    slots = cluster.slots
    if slots.min() < slots.max() and any(policy.algorithm == "eplb" for policy in policies):
        raise ValueError(f"devices must have equally many slots for EPLB, got {slots.min()}-{slots.max()}")
    trace = _Trace(windows, cluster, num_groups, turns * windows.shape[1], seed)
    first = trace.searched(trace.problem(windows[:start].sum(axis=0)))
    return Simulation(
        tuple(trace.outcome(policy, first, start) for policy in policies),
        np.array([trace.balance(each, None) for each in windows[start + 1 :]]),
        windows.shape[1],
        cluster.num_slots,
    )


def _windows(loads: npt.ArrayLike) -> Floats:
    """Return the windows, and of them the layers, that have any load."""
    if np.ndim(loads) != 3:
        raise ValueError(f"loads must have shape (windows, layers, experts), got shape {np.shape(loads)}")
    windows = numeric_array("loads", loads, 3).astype(np.float64)
    if windows.min() < 0:
        where = tuple(int(k) for k in np.argwhere(windows < 0)[0])
        raise ValueError(f"loads must not be negative, got {windows[where]:g} at index {where}")
    loaded = windows >= LEAST_LOAD
    return windows[loaded.any(axis=(1, 2))][:, loaded.any(axis=(0, 2))]


@dataclass(frozen=True, eq=False)
class _Trace:
    """A trace on a cluster, and how long is searched."""

    windows: Floats
    cluster: Cluster
    num_groups: int | None
    iterations: int
    seed: int

    def problem(self, load: Floats, previous: Experts | None = None) -> ExpertPlacement:
        return ExpertPlacement(without_idle_layers(load, previous), self.cluster, self.num_groups)

    def searched(self, problem: ExpertPlacement | Rebalancing) -> Experts:
        result = PlacementSearch(tolerance=TOLERANCE).solve(problem, MaxIterations(self.iterations), self.seed)
        if result.status == "interrupted":
            raise KeyboardInterrupt
        return result.solution.physical_to_logical

    def balance(self, load: Floats, experts: Experts | None) -> float:
        """Return the mean balancedness of the layers that have any load, or at best what their bounds allow."""
        problem = self.problem(load)
        largest = problem.load_bounds if experts is None else problem.largest_loads(experts)
        active = load.max(axis=1) >= LEAST_LOAD
        return float((load.sum(axis=1) / self.cluster.num_devices / largest)[active].mean())

    def outcome(self, policy: Policy, first: Experts, start: int) -> PolicyOutcome:
        """Play the trace through."""
        experts = first
        balance, planned, migrations = [], [], []
        for now in range(start + 1, len(self.windows)):
            load = policy.planned_for(self.windows[:now])
            problem = self.problem(load, experts)
            new = self.replanned(policy, problem, load, experts)
            migrations.append(int((problem.held(new) & ~problem.held(experts)).sum()))
            planned.append(self.balance(load, new))
            balance.append(self.balance(self.windows[now], new))
            experts = new
        return PolicyOutcome(policy, np.array(balance), np.array(planned), np.array(migrations))

    def replanned(self, policy: Policy, problem: ExpertPlacement, load: Floats, experts: Experts) -> Experts:
        """Return the expert in every slot after a rebalance."""
        cluster = self.cluster
        if policy.algorithm == "static":
            return experts
        if policy.algorithm == "eplb":
            return eplb(load, cluster.num_slots, self.num_groups or 0, cluster.num_nodes, cluster.num_devices)
        limits: dict[str, Any] = {}
        if policy.tolerance is not None:
            limits = {"tolerance": policy.tolerance}
        elif policy.budget is not None:
            most = int(policy.budget * experts.size)
            if most == 0:
                return experts
            limits = {"budget": most}
        return self.searched(Rebalancing(problem, experts, **limits) if limits else problem)
