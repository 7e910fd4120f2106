from .balance import (
    LossFreeBalancing as LossFreeBalancing,
    importance_loss as importance_loss,
    load_balancing_loss as load_balancing_loss,
    router_z_loss as router_z_loss,
    smooth_load_loss as smooth_load_loss,
)
from .gamma_annealing import GammaAnnealing as GammaAnnealing
from .lowering.lowering import (
    Lowering as Lowering,
    lower as lower,
)
from .lowering.token_lowering import (
    TokenLowering as TokenLowering,
    lower_tokens as lower_tokens,
)
from .neuron_importance import neuron_importance as neuron_importance
from .routing_statistics import (
    RoutingStatistics as RoutingStatistics,
    RoutingSummary as RoutingSummary,
)
from .saved_state import (
    load_state as load_state,
    save_state as save_state,
)
from .search.candidate_map import SearchRecord as SearchRecord
from .search.load_limit import limit_load as limit_load
from .search.permutation_search import PermutationSearch as PermutationSearch
from .search.search_summary import SearchSummary as SearchSummary
from .sinkhorn import SinkhornPermutation as SinkhornPermutation
from .specialization import (
    ExpertSpecialization as ExpertSpecialization,
    SpecializationCheck as SpecializationCheck,
    SpecializationStep as SpecializationStep,
)
from .to_mixture import (
    load_mixtures as load_mixtures,
    to_mixture as to_mixture,
)
