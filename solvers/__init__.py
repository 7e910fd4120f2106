"""How problems are minimized: solvers, stopping criteria, results and bounds."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe_search.solvers.branch_and_bound import BranchAndBound
    from moe_search.solvers.cp_sat import CpSat
    from moe_search.solvers.enumeration import Enumeration
    from moe_search.solvers.frank_wolfe import FrankWolfe
    from moe_search.solvers.hungarian import Hungarian
    from moe_search.solvers.incumbent import Incumbent
    from moe_search.solvers.iterated_local_search import IteratedLocalSearch
    from moe_search.solvers.local_search import LocalSearch
    from moe_search.solvers.min_cost_flow import MinCostFlow
    from moe_search.solvers.multi_start import MultiStart
    from moe_search.solvers.result import Result, TrajectoryPoint
    from moe_search.solvers.simulated_annealing import SimulatedAnnealing
    from moe_search.solvers.solver import Solver
    from moe_search.solvers.stop import AnyOf, MaxIterations, MaxRuntime, NoImprovement, StoppingCriterion, TargetValue
    from moe_search.solvers.tabu_search import TabuSearch
    from moe_search.solvers.transport import Transport

# Imported when first asked for: the kernels of all solvers take longer to declare than one solver takes to load.
_HOME_OF = {
    "AnyOf": "stop",
    "BranchAndBound": "branch_and_bound",
    "CpSat": "cp_sat",
    "Enumeration": "enumeration",
    "FrankWolfe": "frank_wolfe",
    "Hungarian": "hungarian",
    "Incumbent": "incumbent",
    "IteratedLocalSearch": "iterated_local_search",
    "LocalSearch": "local_search",
    "MaxIterations": "stop",
    "MaxRuntime": "stop",
    "MinCostFlow": "min_cost_flow",
    "MultiStart": "multi_start",
    "NoImprovement": "stop",
    "Result": "result",
    "SimulatedAnnealing": "simulated_annealing",
    "Solver": "solver",
    "StoppingCriterion": "stop",
    "TabuSearch": "tabu_search",
    "TargetValue": "stop",
    "TrajectoryPoint": "result",
    "Transport": "transport",
}

__all__ = [
    "AnyOf",
    "BranchAndBound",
    "CpSat",
    "Enumeration",
    "FrankWolfe",
    "Hungarian",
    "Incumbent",
    "IteratedLocalSearch",
    "LocalSearch",
    "MaxIterations",
    "MaxRuntime",
    "MinCostFlow",
    "MultiStart",
    "NoImprovement",
    "Result",
    "SimulatedAnnealing",
    "Solver",
    "StoppingCriterion",
    "TabuSearch",
    "TargetValue",
    "TrajectoryPoint",
    "Transport",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'moe_search.solvers' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"moe_search.solvers.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
