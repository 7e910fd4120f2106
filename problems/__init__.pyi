from .balanced_routing import BalancedRouting as BalancedRouting
from .callable_problem import CallableProblem as CallableProblem
from .co_activation import CoActivation as CoActivation
from .expert_subset import ExpertSubset as ExpertSubset
from .linear import LinearAssignment as LinearAssignment
from .load_limited import LoadLimited as LoadLimited
from .load_limits import InfeasibleLimitsError as InfeasibleLimitsError
from .mixture import MixtureAssignment as MixtureAssignment
from .neuron_partition import NeuronPartition as NeuronPartition
from .pairwise import PairwiseAssignment as PairwiseAssignment
from .permutation_problem import PermutationProblem as PermutationProblem
from .placement import (
    Cluster as Cluster,
    ExpertPlacement as ExpertPlacement,
    Placement as Placement,
    Transfer as Transfer,
)
from .problem import Problem as Problem
from .problem_files import read_problem as read_problem
from .qaplib import (
    read_qaplib as read_qaplib,
    read_qaplib_solution as read_qaplib_solution,
    write_qaplib as write_qaplib,
    write_qaplib_solution as write_qaplib_solution,
)
from .quadratic import QuadraticAssignment as QuadraticAssignment
from .random_instances import (
    random_linear as random_linear,
    random_mixture as random_mixture,
    random_pairwise as random_pairwise,
    random_quadratic as random_quadratic,
)
from .rebalancing import Rebalancing as Rebalancing
