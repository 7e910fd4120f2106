from .engine.result import (
    Incumbent as Incumbent,
    Result as Result,
    TrajectoryPoint as TrajectoryPoint,
)
from .engine.solver import Solver as Solver
from .engine.stop import (
    AnyOf as AnyOf,
    MaxIterations as MaxIterations,
    MaxRuntime as MaxRuntime,
    NoImprovement as NoImprovement,
    StoppingCriterion as StoppingCriterion,
    TargetValue as TargetValue,
)
from .exact.branch_and_bound import BranchAndBound as BranchAndBound
from .exact.cp_sat import CpSat as CpSat
from .exact.enumeration import Enumeration as Enumeration
from .exact.hungarian import Hungarian as Hungarian
from .exact.min_cost_flow import MinCostFlow as MinCostFlow
from .exact.placement_cp_sat import PlacementCpSat as PlacementCpSat
from .exact.subset_enumeration import SubsetEnumeration as SubsetEnumeration
from .exact.transport import Transport as Transport
from .heuristic.breakout_local_search import BreakoutLocalSearch as BreakoutLocalSearch
from .heuristic.co_activation_search import CoActivationSearch as CoActivationSearch
from .heuristic.frank_wolfe import FrankWolfe as FrankWolfe
from .heuristic.iterated_local_search import IteratedLocalSearch as IteratedLocalSearch
from .heuristic.local_search import LocalSearch as LocalSearch
from .heuristic.longest_processing_time import LongestProcessingTime as LongestProcessingTime
from .heuristic.memetic_search import MemeticSearch as MemeticSearch
from .heuristic.multi_start import MultiStart as MultiStart
from .heuristic.partition_search import PartitionSearch as PartitionSearch
from .heuristic.placement_search import PlacementSearch as PlacementSearch
from .heuristic.simulated_annealing import SimulatedAnnealing as SimulatedAnnealing
from .heuristic.subset_search import SubsetSearch as SubsetSearch
from .heuristic.tabu_search import TabuSearch as TabuSearch
