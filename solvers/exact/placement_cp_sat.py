"""Small placements to optimality with OR-Tools' CP-SAT."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from moe_search.checks import require_integer
from moe_search.problems.arrays import grid_scale
from moe_search.problems.kernel_cache import compile_time
from moe_search.problems.placement import ExpertPlacement, Experts
from moe_search.problems.problem import Problem
from moe_search.solvers.engine.background import run_watched
from moe_search.solvers.engine.random_state import random_state
from moe_search.solvers.engine.result import Result
from moe_search.solvers.engine.run import Run
from moe_search.solvers.engine.solver import Solver
from moe_search.solvers.heuristic.longest_processing_time import constructed

MOST_TERMS = 50_000
# Loads become integers on a grid of this many steps: CP-SAT errs on models of much larger coefficients.
LOAD_STEPS = 2.0**34


@dataclass(frozen=True)
class PlacementCpSat(Solver):
    """Solve a small `ExpertPlacement` exactly, or bound it, layer by layer, with OR-Tools' CP-SAT.

    Parameters
    ----------
    workers : int, default 1
        Search threads. With one, a run that no time limit cuts short is reproducible.

    Notes
    -----
    A variable says that an expert has k replicas, and one for each device that one of these k is there. Layers whose
    construction, or `initial`, reaches the bound are left as they are. Loads are rounded down to a grid of 2^-34 of
    their sum, and an optimum is one up to that. An iteration is one conflict.

    Examples
    --------
    >>> import moe_search as ms
    >>> problem = ms.ExpertPlacement([9, 4, 7, 3], ms.Cluster(num_devices=3, slots_per_device=2))
    >>> result = ms.solve(problem, ms.PlacementCpSat(), ms.MaxRuntime(30.0))
    >>> result.value, result.status
    (8.0, 'optimal')
    """

    exact: ClassVar[bool] = True
    takes: ClassVar[type] = ExpertPlacement
    workers: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_integer("workers", self.workers)

    def refuses(self, problem: Problem) -> str | None:
        """Refuse models that are too large."""
        assert isinstance(problem, ExpertPlacement)
        terms = problem.load.shape[1] * problem.cluster.num_devices * most_copies(problem)
        if terms > MOST_TERMS:
            return f"the model of a layer would have {terms:,} terms, {MOST_TERMS:,} at most; PlacementSearch takes any"
        return None

    def search(self, run: Run) -> Result:
        """Solve one layer after the other; see `Solver.search`."""
        # The import takes longer than many a limit.
        with compile_time():
            importlib.import_module("ortools.sat.python.cp_model")
        problem = run.problem
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

    def _solve_layer(self, run: Run, problem: ExpertPlacement, layer: int, experts: Experts, bounds: Any) -> bool:
        """Solve a layer as long as the run may last; return whether it is proved optimal."""
        from ortools.sat.python import cp_model

        if problem.largest_loads(experts)[layer] <= bounds[layer] * (1 + 1e-9):
            return True
        allowance = run.stop.start().allowance(run.progress())
        if allowance.spent:
            return False
        model = _Model(problem, layer, float(bounds[layer]))
        model.hint(experts[layer])
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = self.workers
        solver.parameters.random_seed = int(random_state(run.seed)[0] % 2**31)
        # Ctrl-C is Python's; a handler inside the library would end the process's own.
        solver.parameters.catch_sigint_signal = False
        if math.isfinite(allowance.seconds):
            solver.parameters.max_time_in_seconds = allowance.seconds
        if math.isfinite(allowance.iterations):
            solver.parameters.max_number_of_conflicts = int(allowance.iterations)
        done = run.iterations

        class Solutions(cp_model.CpSolverSolutionCallback):  # type: ignore[misc]
            def on_solution_callback(self) -> None:
                better = experts.copy()
                better[layer] = model.experts(self.boolean_value)
                run.iterations = done + self.num_conflicts
                if problem.value(better) < run.value:
                    experts[layer] = better[layer]
                    run.offer(problem.placed(better), problem.value(better), run.iterations)

        status = None

        def work() -> None:
            nonlocal status
            status = solver.solve(model.model, Solutions())

        def look() -> None:
            run.show()
            if run.stop.start().stops(run.progress()):
                solver.stop_search()

        if run_watched(work, look, solver.stop_search):
            raise KeyboardInterrupt
        run.iterations = done + solver.num_conflicts
        bounds[layer] = max(bounds[layer], solver.best_objective_bound / model.scale)
        return status == cp_model.OPTIMAL


def most_copies(problem: ExpertPlacement) -> int:
    """Return the most replicas that an expert may have."""
    if problem.anywhere:
        return min(problem.cluster.num_devices, problem.cluster.num_slots - problem.load.shape[1] + 1)
    regions, first = problem.regions, problem.cluster.first_slots
    room = np.diff(first[regions]).max() - problem.load.shape[1] // problem.num_regions + 1
    return int(min(np.diff(regions).max(), room))


class _Model:
    """The model of one layer: ``here[e][g][k]`` says that one of the k + 1 replicas of expert e is on device g."""

    def __init__(self, problem: ExpertPlacement, layer: int, bound: float) -> None:
        from ortools.sat.python import cp_model

        self.model = model = cp_model.CpModel()
        self.problem = problem
        load, cluster = problem.load[layer], problem.cluster
        self.scale = grid_scale(float(load.sum()), LOAD_STEPS)
        copies, devices = range(most_copies(problem)), range(cluster.num_devices)
        self.here = [[[model.new_bool_var(f"x{e},{g},{k}") for k in copies] for g in devices] for e in range(len(load))]
        largest = model.new_int_var(math.floor(bound * self.scale), math.ceil(load.sum() * self.scale), "largest")
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
        model.minimize(largest)

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
