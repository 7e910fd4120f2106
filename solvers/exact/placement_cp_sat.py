"""Small placements, and small ways to rebalance them, to optimality with OR-Tools' CP-SAT."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from moe_search.checks import require_integer
from moe_search.problems.arrays import grid_scale
from moe_search.problems.kernel_cache import compile_time
from moe_search.problems.placement import ExpertPlacement, Experts
from moe_search.problems.problem import Problem
from moe_search.problems.rebalancing import Rebalancing
from moe_search.solvers.bounds.replica_counts import ReplicaCounts, conditions, has_two_slots, paired, possible_counts
from moe_search.solvers.engine.background import run_watched
from moe_search.solvers.engine.result import Result
from moe_search.solvers.engine.run import Run
from moe_search.solvers.engine.solver import Solver
from moe_search.solvers.exact.cp_sat import cp_sat_solver
from moe_search.solvers.heuristic.longest_processing_time import constructed

MOST_TERMS = 50_000
# Loads become integers on a grid of this many steps: CP-SAT errs on models of much larger coefficients.
LOAD_STEPS = 2.0**34
# Where loads and migrations are added up, on one of these many, and a step of the largest load costs so many units.
REBALANCING_STEPS, SLOPE_STEPS = 2.0**28, 2.0**14
# Limits of two slots a device are bisected to this part at first, and what CP-SAT spends on one is about a second; then
# to a tenth of it, at four times the effort, and so on to the last.
FIRST_PRECISION, LAST_PRECISION = 1e-3, 1e-9
FIRST_EFFORT, MORE_EFFORT = 1.0, 4.0
# At first it is given the numbers of replicas that cost so many slots more at most, then all of them.
LIKELY_SLOTS = 0.15


@dataclass(frozen=True)
class PlacementCpSat(Solver):
    """Solve a small `ExpertPlacement` or `Rebalancing` exactly, or bound it, with OR-Tools' CP-SAT.

    Parameters
    ----------
    workers : int, default 1
        Search threads. With one, a run that no time limit cuts short is reproducible.

    Notes
    -----
    A variable says that an expert has k replicas, and one for each device that one of these k is there. Placements are
    solved layer by layer; migrations of all layers together, on a grid of loads that is 64 times as wide. Layers whose
    construction, or `initial`, reaches the bound are left as they are. Loads are rounded down to a grid of 2^-34 of
    their sum, and an optimum is one up to that. An iteration is one conflict.

    Where every device has two slots, and no groups stay on nodes, layers of hundreds of experts are within reach: no
    device is above a limit if the replicas that bear more than half of it have light enough partners, which is a matter
    of numbers of replicas alone. The limit is bisected between a proof by CP-SAT, or by the linear relaxation, and a
    placement.

    Examples
    --------
    >>> import moe_search as ms
    >>> problem = ms.ExpertPlacement([9, 4, 7, 3], ms.Cluster(num_devices=3, slots_per_device=2))
    >>> result = ms.solve(problem, ms.PlacementCpSat(), ms.MaxRuntime(30.0))
    >>> result.value, result.status
    (8.0, 'optimal')
    """

    exact: ClassVar[bool] = True
    takes: ClassVar[type | tuple[type, ...]] = (ExpertPlacement, Rebalancing)
    workers: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_integer("workers", self.workers)

    def refuses(self, problem: Problem) -> str | None:
        """Refuse what is no placement, and models that are too large."""
        if isinstance(problem, Rebalancing):
            terms = terms_of(problem.placement) * len(problem.previous)
            if terms > MOST_TERMS:
                return f"its model would have {terms:,} terms, {MOST_TERMS:,} at most; PlacementSearch takes any"
            return None
        if not isinstance(problem, ExpertPlacement):
            return super().refuses(problem)
        if has_two_slots(problem):
            return None
        terms = terms_of(problem)
        if terms > MOST_TERMS:
            return f"the model of a layer would have {terms:,} terms, {MOST_TERMS:,} at most; PlacementSearch takes any"
        return None

    def search(self, run: Run) -> Result:
        """Solve one layer after the other; see `Solver.search`."""
        # The import takes longer than many a limit.
        with compile_time():
            importlib.import_module("ortools.sat.python.cp_model")
        problem = run.problem
        if isinstance(problem, Rebalancing):
            return self._rebalance(run, problem)
        assert isinstance(problem, ExpertPlacement)
        start = run.take_initial(problem.placed(constructed(problem)) if run.initial is None else None)
        experts, bounds = start.physical_to_logical.copy(), problem.load_bounds.copy()
        proved = True
        try:
            run.show()
            for layer in range(len(experts)):
                proved = self._solve_layer(run, problem, layer, experts, bounds) and proved
        except KeyboardInterrupt:
            run.interrupted, proved = True, False
        run.bound = min(float(bounds.sum()), float(run.value))
        return run.result(moves=len(run.trajectory) - 1, proved=proved, bound=run.bound)

    def _rebalance(self, run: Run, problem: Rebalancing) -> Result:
        """Solve one model of all layers."""
        from ortools.sat.python import cp_model

        start = run.take_initial(problem.placed(problem.start) if run.initial is None else None).physical_to_logical
        placement, slopes = problem.placement, problem.slopes
        scale = grid_scale(float(placement.load.sum()), REBALANCING_STEPS)
        # A step of the objective is so many units of value: loads and migrations cost whole steps.
        steps = scale * SLOPE_STEPS / float(slopes.min())
        model, costs, moved, layers = cp_model.CpModel(), [], [], []
        for layer, before in enumerate(problem.held_before):
            layers.append(_Model(model, placement, layer, float(placement.load_bounds[layer]), scale))
            layers[layer].hint(start[layer])
            excess = model.new_int_var(0, math.ceil(float(placement.load[layer].sum()) * scale), "")
            model.add(excess >= layers[layer].largest - math.ceil(float(problem.limits[layer]) * scale))
            costs.append(math.floor(float(slopes[layer]) / scale * steps) * excess)
            moved += [
                x for e, held in enumerate(layers[layer].here) for g in np.flatnonzero(~before[:, e]) for x in held[g]
            ]
        model.minimize(sum(costs) + math.floor(problem.price * steps) * sum(moved))
        if problem.budget is not None:
            model.add(sum(moved) <= problem.budget)
        run.bound = problem.value_range()[0]

        class Solutions(cp_model.CpSolverSolutionCallback):  # type: ignore[misc]
            def on_solution_callback(self) -> None:
                run.iterations = self.num_conflicts
                found = problem.placed(np.stack([each.experts(self.boolean_value) for each in layers]))
                run.offer(found, problem.value(found), run.iterations)

        proved = False
        try:
            run.show()
            if not run.stop.start().stops(run.progress()):
                solver, status = self._run_cp_sat(run, model, Solutions())
                proved = status == cp_model.OPTIMAL
                run.bound = max(run.bound, min(solver.best_objective_bound / steps, float(run.value)))
        except KeyboardInterrupt:
            run.interrupted = True
        return run.result(moves=len(run.trajectory) - 1, proved=proved)

    def _solve_layer(self, run: Run, problem: ExpertPlacement, layer: int, experts: Experts, bounds: Any) -> bool:
        """Solve a layer as long as the run may last; return whether it is proved optimal."""
        from ortools.sat.python import cp_model

        if problem.largest_loads(experts)[layer] <= bounds[layer] * (1 + 1e-9):
            return True
        allowance = run.stop.start().allowance(run.progress())
        if allowance.spent:
            return False
        if has_two_slots(problem) and (
            self._bisect_limit(run, problem, layer, experts, bounds) or terms_of(problem) > MOST_TERMS
        ):
            return problem.largest_loads(experts)[layer] <= bounds[layer] * (1 + LAST_PRECISION)
        scale = grid_scale(float(problem.load[layer].sum()), LOAD_STEPS)
        model = _Model(cp_model.CpModel(), problem, layer, float(bounds[layer]), scale)
        model.model.minimize(model.largest)
        model.hint(experts[layer])
        done = run.iterations

        class Solutions(cp_model.CpSolverSolutionCallback):  # type: ignore[misc]
            def on_solution_callback(self) -> None:
                run.iterations = done + self.num_conflicts
                take_layer(run, problem, layer, experts, model.experts(self.boolean_value))

        solver, status = self._run_cp_sat(run, model.model, Solutions())
        bounds[layer] = max(bounds[layer], solver.best_objective_bound / model.scale)
        return status == cp_model.OPTIMAL

    def _run_cp_sat(self, run: Run, model: Any, callback: Any = None, effort: float = math.inf) -> tuple[Any, Any]:
        """Solve a model as long as the run may last, and at most an effort; return the solver and its status."""
        solver = cp_sat_solver(run, self.workers, run.stop.start().allowance(run.progress()))
        if math.isfinite(effort):
            solver.parameters.max_deterministic_time = effort
            # Conditions on numbers of replicas are nearly tight as linear programs.
            solver.parameters.linearization_level = 2
        done, status = run.iterations, None

        def work() -> None:
            nonlocal status
            status = solver.solve(model, callback)

        def look() -> None:
            run.show()
            if run.stop.start().stops(run.progress()):
                solver.stop_search()

        if run_watched(work, look, solver.stop_search):
            raise KeyboardInterrupt
        run.iterations = done + solver.num_conflicts
        return solver, status

    def _bisect_limit(self, run: Run, problem: ExpertPlacement, layer: int, experts: Experts, bounds: Any) -> bool:
        """Bisect what a device of a layer bears at most; return whether this ended, and not for want of a pairing."""
        precision, effort = FIRST_PRECISION, FIRST_EFFORT
        while True:
            below, out_of_effort, unpaired = effort > FIRST_EFFORT, False, False
            open_limits: list[float] = []
            # Above the limits that are left open a placement may be easier to find, and below them a proof.
            for upwards in (True, False):
                low, high = float(bounds[layer]), float(problem.largest_loads(experts)[layer])
                if not upwards:
                    high = min([high, *open_limits])
                while high - low > precision * high:
                    if run.stop.start().stops(run.progress()):
                        return True
                    limit = 0.5 * (low + high)
                    if below and not upwards and not open_limits:
                        # What was found is optimal if there is nothing right below.
                        limit, below = high * (1 - 0.5 * LAST_PRECISION), False
                    answer, placed = self._within_limit(
                        run, problem.load[layer], problem.cluster.num_devices, limit, effort
                    )
                    if answer == "none":
                        low = bounds[layer] = limit
                    elif placed is not None:
                        take_layer(run, problem, layer, experts, placed)
                        high = float(problem.largest_loads(experts)[layer])
                    else:
                        out_of_effort, unpaired = out_of_effort or answer == "open", unpaired or answer == "unpaired"
                        open_limits.append(limit)
                        low, high = (limit, high) if upwards else (low, limit)
            if problem.largest_loads(experts)[layer] <= bounds[layer] * (1 + LAST_PRECISION):
                return True
            if unpaired and not out_of_effort:
                return False
            precision, effort = max(0.1 * precision, LAST_PRECISION), MORE_EFFORT * effort

    def _within_limit(
        self, run: Run, load: Any, devices: int, limit: float, effort: float
    ) -> tuple[Literal["none", "some", "unpaired", "open"], Experts | None]:
        """Return whether no device need be above a limit, and if so the experts in the slots."""
        from ortools.sat.python import cp_model

        counts = possible_counts(load, devices, limit)
        if counts is None:
            return "none", None
        status = None
        for extra in (LIKELY_SLOTS, math.inf):
            rows = counts.within(extra)
            model, chosen = counting_model(rows, devices)
            solver, status = self._run_cp_sat(run, model, effort=effort)
            if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
                taken = np.array(solver.boolean_values(chosen))
                copies = np.zeros(len(load), dtype=np.int64)
                copies[rows.expert[taken]] = rows.copies[taken]
                experts = paired(load, copies, counts.limit)
                return ("unpaired" if experts is None else "some"), experts
            if len(rows.expert) == len(counts.expert):
                break
        return ("none" if status == cp_model.INFEASIBLE else "open"), None


def take_layer(run: Run, problem: ExpertPlacement, layer: int, experts: Experts, better: Experts) -> None:
    """Take the experts in the slots of a layer if they are better."""
    changed = experts.copy()
    changed[layer] = better
    value = problem.value(changed)
    if value < run.value:
        experts[layer] = better
        run.offer(problem.placed(changed), value, run.iterations)
        run.show()


def terms_of(problem: ExpertPlacement) -> int:
    """Return the number of terms of the model of a layer."""
    return problem.load.shape[1] * problem.cluster.num_devices * most_copies(problem)


def counting_model(rows: ReplicaCounts, devices: int) -> tuple[Any, list[Any]]:
    """Return the model that chooses a row for each expert, and its variables."""
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    chosen = [model.new_bool_var("") for _ in rows.expert]
    for expert in range(int(rows.expert.max()) + 1):
        model.add_exactly_one([chosen[row] for row in np.flatnonzero(rows.expert == expert)])
    model.add(cp_model.LinearExpr.weighted_sum(chosen, rows.copies.tolist()) == 2 * devices)
    for needed in conditions(rows.share, rows.copies, rows.limit):
        used = np.flatnonzero(needed)
        model.add(cp_model.LinearExpr.weighted_sum([chosen[row] for row in used], needed[used].tolist()) <= 0)
    return model, chosen


def most_copies(problem: ExpertPlacement) -> int:
    """Return the most replicas that an expert may have."""
    if problem.anywhere:
        return min(problem.cluster.num_devices, problem.cluster.num_slots - problem.load.shape[1] + 1)
    regions, first = problem.regions, problem.cluster.first_slots
    room = np.diff(first[regions]).max() - problem.load.shape[1] // problem.num_regions + 1
    return int(min(np.diff(regions).max(), room))


class _Model:
    """The model of one layer: ``here[e][g][k]`` says that one of the k + 1 replicas of expert e is on device g."""

    def __init__(self, model: Any, problem: ExpertPlacement, layer: int, bound: float, scale: float) -> None:
        from ortools.sat.python import cp_model

        self.model, self.problem, self.scale = model, problem, scale
        load, cluster = problem.load[layer], problem.cluster
        copies, devices = range(most_copies(problem)), range(cluster.num_devices)
        self.here = [[[model.new_bool_var(f"x{e},{g},{k}") for k in copies] for g in devices] for e in range(len(load))]
        self.largest = largest = model.new_int_var(
            math.floor(bound * self.scale), math.ceil(load.sum() * self.scale), "largest"
        )
        for on_devices in self.here:
            count = [model.new_bool_var("") for _ in copies]
            model.add_exactly_one(count)
            for k in copies:
                model.add(sum(each[k] for each in on_devices) == (k + 1) * count[k])
            for each in on_devices:
                # That there is at most one replica of an expert on a device is a part of this.
                model.add_at_most_one(each)
                for k in copies:
                    model.add_implication(each[k], count[k])
        for g in devices:
            held = [(e, k) for e in range(len(load)) for k in copies]
            variables = [self.here[e][g][k] for e, k in held]
            model.add(sum(variables) == int(cluster.first_slots[g + 1] - cluster.first_slots[g]))
            shares = [math.floor(load[e] / (k + 1) * self.scale) for e, k in held]
            model.add(largest >= cp_model.LinearExpr.weighted_sum(variables, shares))
        if problem.num_regions > 1:
            self._keep_groups_on_nodes()

    def _keep_groups_on_nodes(self) -> None:
        model, problem, near = self.model, self.problem, self.problem.cluster.devices_per_node
        groups, nodes = range(problem.num_groups or 1), range(problem.num_regions)
        home = [[model.new_bool_var("") for _ in nodes] for _ in groups]
        for group in groups:
            model.add_exactly_one(home[group])
        for node in nodes:
            model.add(sum(each[node] for each in home) == len(groups) // len(nodes))
        size = len(self.here) // len(groups)
        for e, on_devices in enumerate(self.here):
            if problem.anywhere:
                for node in nodes:
                    own = [here for each in on_devices[node * near : (node + 1) * near] for here in each]
                    model.add_bool_or(own).only_enforce_if(home[e // size][node])
                continue
            for g, each in enumerate(on_devices):
                for here in each:
                    model.add_implication(here, home[e // size][g // near])

    def hint(self, experts: Experts) -> None:
        """Give CP-SAT a placement to start from."""
        copies = np.bincount(experts)
        on = {(int(e), int(g)) for e, g in zip(experts, self.problem.cluster.device_of_slot, strict=True)}
        for e, on_devices in enumerate(self.here):
            for g, each in enumerate(on_devices):
                for k, variable in enumerate(each):
                    self.model.add_hint(variable, (e, g) in on and copies[e] == k + 1)

    def experts(self, value_of: Any) -> Experts:
        """Return the expert in every slot of a solution, given the function that reads a variable."""
        devices = range(self.problem.cluster.num_devices)
        return np.array(
            [e for g in devices for e, each in enumerate(self.here) if any(map(value_of, each[g]))], dtype=np.int64
        )
