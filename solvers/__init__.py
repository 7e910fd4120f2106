"""How problems are minimized: solvers, stopping criteria, results and bounds."""

from moe_search.solvers.branch_and_bound import BranchAndBound
from moe_search.solvers.cp_sat import CpSat
from moe_search.solvers.enumeration import Enumeration
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

__all__ = [
    "AnyOf",
    "BranchAndBound",
    "CpSat",
    "Enumeration",
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
]
