"""Exact search with OR-Tools' CP-SAT."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from moe_search.checks import require_integer
from moe_search.problems.arrays import EXACT_IN_FLOAT64, grid_scale, largest_magnitude
from moe_search.problems.kernel_cache import compile_time
from moe_search.problems.pair_costs import NO_PAIR_COSTS, PairCosts
from moe_search.problems.permutation_problem import Permutation, seats_by_expert
from moe_search.problems.problem import Problem
from moe_search.solvers.bounds.gilmore_lawler import gilmore_lawler, pairwise_gilmore_lawler
from moe_search.solvers.engine.background import run_watched
from moe_search.solvers.engine.random_state import random_state
from moe_search.solvers.engine.result import Result, reached
from moe_search.solvers.engine.run import Run
from moe_search.solvers.engine.solver import Solver
from moe_search.solvers.engine.stop import Allowance, Stopper

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

MOST_TERMS = 200_000
MOST_PRODUCTS = 20_000_000
# Floats become integers on a grid of this many steps, without load limits and with: with them CP-SAT errs on models of
# larger coefficients. At 2**36 and beyond, presolving loses the optimum of 2 to 8 % of them, and without it
# many are called infeasible where a limit forces a slot; at 2**34 neither was seen.
COST_STEPS, LIMITED_COST_STEPS = 2.0**38, 2.0**34
# The grid becomes finer as values are found, until it errs by no more than this part of the value.
PRECISION = 1e-8
# Integers have no grid to choose. Larger ones are not presolved.
LARGEST_PRESOLVED_SUM = 2**31
# CP-SAT calls models invalid somewhat above; their sums could overflow its arithmetic.
LARGEST_SUM = 2**62


@dataclass(frozen=True)
class CpSat(Solver):
    """Solve any problem but a mixture of logits exactly, or bound it, with OR-Tools' CP-SAT.

    Parameters
    ----------
    workers : int, default 1
        Search threads. With one, a run that no time limit cuts short is reproducible.

    Notes
    -----
    Sparse problems: one table of allowed assignments, with its cost, for each pair of slots that pays anything. Dense
    ones: one variable ``w_s >= sum cost(s, t, e, f) x_tf`` if ``x_se`` for each slot, after Kaufman and Broeckx,
    tightened by the Gilmore-Lawler bound. Squared mixtures are solved as pairwise ones, and load limits are linear
    constraints. An iteration is one conflict.

    Float costs are rounded to a grid of 2^-38 of their range, of 2^-34 under load limits, and the bound takes the
    rounding in. What costs more than the best value found leaves room for counts as no more than that, so that costs of
    a wide range are solved again on a finer grid, until it errs by 1e-8 of the value at most. Where positive and
    negative costs cancel out to less than they can be told apart, the gap says what is left; it is called optimal where
    it is within 1e-8 of an ordinary value.

    Proofs take a minute for n = 9 dense and n = 12 sparse facilities; larger problems get a bound and what was found.

    References
    ----------
    L. Kaufman, F. Broeckx, "An algorithm for the quadratic assignment problem using Benders' decomposition", European
    Journal of Operational Research 2 (1978), 207-211.

    Examples
    --------
    >>> import moe_search as ms
    >>> ms.solve(ms.random_quadratic(5, seed=0), ms.CpSat(), ms.MaxRuntime(60.0)).status
    'optimal'
    """

    exact: ClassVar[bool] = True
    workers: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_integer("workers", self.workers)

    def refuses(self, problem: Problem) -> str | None:
        """Refuse values that are not sums over pairs of slots, and models or integers too large."""
        costs = problem.pair_costs()
        if costs is None:
            return NO_PAIR_COSTS
        if costs.products > MOST_PRODUCTS:
            return f"its pairs of slots cost {costs.products:,} products, {MOST_PRODUCTS:,} at most; take fewer samples"
        terms = number_of_terms(costs)
        if terms > MOST_TERMS:
            return f"the model would have {terms:,} terms, {MOST_TERMS:,} at most; LocalSearch takes any size"
        if costs.integral and largest_sum(costs) > LARGEST_SUM:
            return (
                f"its integer costs add up to {largest_sum(costs):.3e} over all slots and experts,"
                f" {LARGEST_SUM:.3e} at most; scale them down or pass floats"
            )
        return None

    def search(self, run: Run) -> Result:
        """Build the model and solve it in a thread of its own; see `Solver.search`."""
        # The import takes longer than many a limit.
        with compile_time():
            importlib.import_module("ortools.sat.python.cp_model")
        run.take_initial()
        try:
            proved = self._solve(run)
        except KeyboardInterrupt:
            run.interrupted, proved = True, False
        # An optimum on the grid is one of the problem up to the grid: its bound may be less than its value.
        return run.result(moves=len(run.trajectory) - 1, proved=proved, bound=run.bound)

    def _solve(self, run: Run) -> bool:
        """Solve as long as the run may last; return whether the incumbent is proved optimal."""
        from ortools.sat.python import cp_model

        stopper = run.stop.start()
        if stopper.stops(run.progress()):
            return False
        run.show()
        error = math.inf
        while True:
            model = _Model(cp_model.CpModel(), run.problem, run.value)
            # Building a large model in Python takes long: look at the clock after every table.
            for _ in model.build():
                if stopper.stops(run.progress()):
                    return False
            optimal = self._solve_model(run, model, stopper)
            if not optimal or run.problem.integral:
                return optimal
            # An optimum on the grid is one of the problem, up to the grid. The value found may allow for a finer one.
            before, error = error, model.error
            left = math.inf if run.bound is None else run.value - run.bound
            if left <= PRECISION * abs(run.value) or run.interrupted or error >= before / 2:
                return left <= PRECISION * max(abs(run.value), run.problem.ordinary_value())

    def _solve_model(self, run: Run, model: _Model, stopper: Stopper) -> bool:
        """Solve a model that is built, and set the bound of the run; return whether the model is solved."""
        from ortools.sat.python import cp_model

        model.hint(run.incumbent)
        solver = cp_sat_solver(run, self.workers, stopper.allowance(run.progress()))
        solver.parameters.cp_model_presolve = model.presolved
        before = run.iterations
        found = _solutions(run, model)
        status = None

        def work() -> None:
            nonlocal status
            status = solver.solve(model.model, found)
            if status == cp_model.INFEASIBLE:
                # Every problem has a solution: presolving lost it, or the lack of presolving did.
                solver.parameters.cp_model_presolve = not model.presolved
                status = solver.solve(model.model, found)

        def look() -> None:
            run.show()
            if stopper.stops(run.progress()):
                solver.stop_search()

        run.interrupted = run_watched(work, look, solver.stop_search)
        run.iterations = before + solver.num_conflicts
        # CP-SAT reports its integer bound as a float, which holds the last digits of none beyond 2**53.
        exact = status == cp_model.OPTIMAL and run.problem.integral
        reported = reported_bound(status, solver.best_objective_bound)
        bounds = (run.bound, run.value if exact else _below_value(run, model.lower_bound(reported)))
        run.bound = max((bound for bound in bounds if bound is not None), default=None)
        return status == cp_model.OPTIMAL


def number_of_terms(costs: PairCosts) -> int:
    """Return how many costs a model lists."""
    m, n = costs.shape
    if costs.make_pairwise is not None:
        return (m * n) ** 2
    return m * n if costs.factors is None else (1 + int(np.count_nonzero(costs.factors[0]))) * n**2


def largest_sum(costs: PairCosts) -> int | Decimal:
    """Return a number that no sum of all costs in the objective, or in the row of a slot, of a model exceeds."""
    m, n = costs.shape
    unary = m * n * largest_magnitude(costs.unary)
    if costs.pairwise is not None:
        return unary + m * m * n * largest_magnitude(costs.pairwise.coupling)
    if costs.factors is None:
        return unary
    flow, distance = costs.factors
    return unary + m * m * n * largest_magnitude(flow) * largest_magnitude(distance)


def reported_bound(status: cp_model.CpSolverStatus, bound: float) -> float | None:
    """Return the bound on the objective that CP-SAT reports; None if it has none.

    Its answer reads 0 where none is set: while it presolves, and of a model that it calls invalid or infeasible.
    """
    from ortools.sat.python.cp_model import FEASIBLE, OPTIMAL, UNKNOWN

    set_ = status in (OPTIMAL, FEASIBLE) or (status == UNKNOWN and bound != 0)
    return bound if set_ and math.isfinite(bound) else None


def _below_value(run: Run, bound: int | float | None) -> int | float | None:
    if bound is None or bound <= run.value:
        return bound
    # Above a value that was reached a bound can only be by rounding; beyond that it is none.
    return run.value if reached(bound, run.value, run.problem) else None


class _Model:
    """The CP-SAT model of a problem, in integers."""

    def __init__(self, model: cp_model.CpModel, problem: Problem, known: int | float) -> None:
        self.model = model
        costs = problem.pair_costs()
        assert costs is not None
        self.costs = costs
        m, n = costs.shape
        self.x = [[model.new_bool_var(f"x{s},{e}") for e in range(n)] for s in range(m)]
        self.pairs = self._paying_pairs()
        self.sparse = len(self.pairs) * 4 <= m * (m - 1) // 2
        self.scale = 1.0
        # What every permutation pays is left out of the costs, and what no permutation that is better than the known
        # value can pay more.
        self.offset, self.most = 0.0, math.inf
        # What rounding to the grid has added at most to the objective of any permutation, or taken, in grid steps.
        self.rounded = self.lost = 0.0
        self.root_bound: int | None = None
        loads = 0 if costs.limits is None else int(costs.limits.slot_load.sum())
        self.presolved = costs.integral and max(largest_sum(costs), loads) <= LARGEST_PRESOLVED_SUM
        if not costs.integral:
            ranges = [(row.min(), row.max()) for row in costs.unary]
            ranges += [(table.min(), table.max()) for table in self._paid_once()]
            self.offset = math.fsum(least for least, _ in ranges)
            self.most = max(known - self.offset, 0.0)
            reach = math.fsum(min(float(most - least), self.most) for least, most in ranges)
            self.scale = grid_scale(reach, COST_STEPS if costs.limits is None else LIMITED_COST_STEPS)

    def _paid_once(self) -> Iterator[npt.NDArray[Any]]:
        """Return the tables of which every permutation pays one entry."""
        if self.sparse:
            return (self._table(s, t) for s, t in self.pairs.tolist())
        slots = range(self.costs.shape[0])
        return (self._half(s, t) for s in slots for t in slots if s != t)

    def _paying_pairs(self) -> npt.NDArray[np.int64]:
        """Return the pairs of slots s < t that pay anything, shape (P, 2)."""
        if self.costs.pairwise is not None:
            pays = self.costs.pairwise.coupling.any(axis=(1, 3))
        elif self.costs.factors is not None:
            flow, _ = self.costs.factors
            pays = (flow != 0) | (flow.T != 0)
        else:
            pays = np.zeros((0, 0), dtype=bool)
        return np.argwhere(np.triu(pays, 1))

    def _table(self, s: int, t: int) -> npt.NDArray[Any]:
        """Return the cost of slots s and t under every pair of experts, shape (n, n)."""
        if self.costs.pairwise is not None:
            return self.costs.pairwise.coupling[s, :, t, :]
        assert self.costs.factors is not None
        flow, distance = self.costs.factors
        return flow[s, t] * distance + flow[t, s] * distance.T

    def build(self) -> Iterator[None]:
        """Add constraints and objective, a table or a row at a time."""
        m, n = self.costs.shape
        model, x = self.model, self.x
        for s in range(m):
            model.add_exactly_one(x[s])
        for start in range(0, m, self.costs.block_size):
            for e in range(n):
                column = [x[s][e] for s in range(start, start + self.costs.block_size)]
                if self.costs.capacity == 1:
                    model.add_exactly_one(column)
                else:
                    model.add(sum(column) == self.costs.capacity)
        if self.costs.limits is not None:
            for e, limit in enumerate(self.costs.limits.limit.tolist()):
                loads = zip(x, self.costs.limits.slot_load.tolist(), strict=True)
                model.add(sum(load * slot[e] for slot, load in loads) <= limit)
        terms, coefficients = [], []
        unary = self._integers(self.costs.unary, each_slot=True)
        for s in range(m):
            terms += x[s]
            coefficients += unary[s].tolist()
        yield
        parts = self._tables() if self.sparse else self._rows(unary)
        for part in parts:
            terms += part
            coefficients += [1] * len(part)
            yield
        from ortools.sat.python import cp_model

        model.minimize(cp_model.LinearExpr.weighted_sum(terms, coefficients))

    def _tables(self) -> Iterator[list[cp_model.IntVar]]:
        m, n = self.costs.shape
        expert = []
        for s in range(m):
            variable = self.model.new_int_var(0, n - 1, f"e{s}")
            for e in range(n):
                self.model.add(variable == e).only_enforce_if(self.x[s][e])
            expert.append(variable)
        for s, t in self.pairs.tolist():
            table = self._integers(self._table(s, t))
            share = self.costs.capacity > 1 or s // self.costs.block_size != t // self.costs.block_size
            allowed = [(e, f, int(table[e, f])) for e in range(n) for f in range(n) if e != f or share]
            low, high = min(row[2] for row in allowed), max(row[2] for row in allowed)
            cost = self.model.new_int_var(low, high, f"w{s},{t}")
            self.model.add_allowed_assignments([expert[s], expert[t], cost], allowed)
            yield [cost]

    def _rows(self, unary: npt.NDArray[np.int64]) -> Iterator[list[cp_model.IntVar]]:
        from ortools.sat.python import cp_model

        m, n = self.costs.shape
        least, self.root_bound = self._row_bounds()
        rows = []
        for s in range(m):
            others = [t for t in range(m) if t != s]
            tables = np.stack([self._integers(self._half(s, t)) for t in others], axis=1)
            low, high = int(tables.min(axis=2).sum(axis=1).min()), int(tables.max(axis=2).sum(axis=1).max())
            row = self.model.new_int_var(low, high, f"w{s}")
            variables = [self.x[t][f] for t in others for f in range(n)]
            for e in range(n):
                expression = cp_model.LinearExpr.weighted_sum(variables, tables[e].ravel().tolist())
                self.model.add(row >= expression).only_enforce_if(self.x[s][e])
            if least is not None:
                self.model.add(row >= cp_model.LinearExpr.weighted_sum(self.x[s], least[s].tolist()))
            rows.append(row)
            yield [row]
        if self.root_bound is not None:
            slots = [variable for variables in self.x for variable in variables]
            alone = cp_model.LinearExpr.weighted_sum(slots, unary.ravel().tolist())
            self.model.add(sum(rows) + alone >= self.root_bound)

    def _half(self, s: int, t: int) -> npt.NDArray[Any]:
        """Return what row s pays for its pair with t; the rows of s and t together pay the pair."""
        if self.costs.factors is not None:
            flow, distance = self.costs.factors
            return flow[s, t] * distance
        return self._table(s, t) if s < t else np.zeros_like(self._table(s, t))

    def _row_bounds(self) -> tuple[npt.NDArray[np.int64] | None, int | None]:
        if not self.costs.integral:
            return None, None
        if self.costs.pairwise is not None:
            return None, int(pairwise_gilmore_lawler(self.costs.pairwise, 1.0))
        total, rows = gilmore_lawler(self.costs)
        return rows - self.costs.unary, int(total)

    def _integers(self, costs: npt.NDArray[Any], each_slot: bool = False) -> npt.NDArray[np.int64]:
        """Return costs of which one is paid, or one of each row, as integers; keep account of the rounding."""
        if self.costs.integral:
            return costs.astype(np.int64)
        axis = 1 if each_slot else None
        scaled = np.minimum(costs - costs.min(axis=axis, keepdims=True), self.most) * self.scale
        on_grid = np.rint(scaled)
        added = on_grid - scaled
        self.rounded += float(added.max(axis=axis).sum())
        self.lost -= float(added.min(axis=axis).sum())
        return on_grid.astype(np.int64)

    def lower_bound(self, objective: float | None) -> int | float | None:
        """Return a bound on the problem's values from one on the model's objective; the bound at the root if None."""
        if objective is None:
            return self.root_bound
        if self.costs.integral:
            bound = round(objective if abs(objective) < EXACT_IN_FLOAT64 else math.nextafter(objective, -math.inf))
            return bound if self.root_bound is None else max(bound, self.root_bound)
        return self.offset + (objective - self.rounded) / self.scale

    @property
    def error(self) -> float:
        """How far rounding can put two permutations out of order at most."""
        return (self.rounded + self.lost) / self.scale

    def hint(self, permutation: Permutation) -> None:
        """Give CP-SAT a permutation to start from."""
        experts = permutation % self.costs.block_size // self.costs.capacity
        for s, variables in enumerate(self.x):
            for e, variable in enumerate(variables):
                self.model.add_hint(variable, e == experts[s])

    def permutation(self, value_of: Any) -> Permutation:
        """Return the permutation of a solution, given the function that reads a variable."""
        experts = np.array([[value_of(variable) for variable in row].index(True) for row in self.x])
        return seats_by_expert(experts, self.costs.block_size)


def _solutions(run: Run, model: _Model) -> cp_model.CpSolverSolutionCallback:
    from ortools.sat.python import cp_model

    class Solutions(cp_model.CpSolverSolutionCallback):  # type: ignore[misc]
        def on_solution_callback(self) -> None:
            permutation = model.permutation(self.boolean_value)
            run.iterations = self.num_conflicts
            run.offer(permutation, run.problem.value(permutation), run.iterations)

    return Solutions()


def cp_sat_solver(run: Run, workers: int, allowance: Allowance) -> Any:
    """Return OR-Tools' solver, which ends as the run may last."""
    from ortools.sat.python import cp_model

    solver = cp_model.CpSolver()
    solver.parameters.num_workers = workers
    solver.parameters.random_seed = int(random_state(run.seed)[0] % 2**31)
    # Ctrl-C is Python's; a handler inside the library would end the process's own.
    solver.parameters.catch_sigint_signal = False
    if math.isfinite(allowance.seconds):
        solver.parameters.max_time_in_seconds = max(allowance.seconds, 0.0)
    if math.isfinite(allowance.iterations):
        solver.parameters.max_number_of_conflicts = int(max(allowance.iterations, 0))
    return solver
