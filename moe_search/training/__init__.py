"""The alternation of training and search: lowering, verification, permutation search."""

from moe_search.training.balance import importance_loss, load_balancing_loss, router_z_loss, smooth_load_loss
from moe_search.training.load_limit import limit_load
from moe_search.training.loss_free_balancing import LossFreeBalancing
from moe_search.training.lowering import Lowering, lower
from moe_search.training.neuron_importance import neuron_importance
from moe_search.training.permutation_search import PermutationSearch
from moe_search.training.routing_statistics import RoutingStatistics, RoutingSummary
from moe_search.training.saved_state import load_state, save_state
from moe_search.training.search_record import SearchRecord
from moe_search.training.sinkhorn import SinkhornPermutation

__all__ = [
    "LossFreeBalancing",
    "Lowering",
    "PermutationSearch",
    "RoutingStatistics",
    "RoutingSummary",
    "SearchRecord",
    "SinkhornPermutation",
    "importance_loss",
    "limit_load",
    "load_balancing_loss",
    "load_state",
    "lower",
    "neuron_importance",
    "router_z_loss",
    "save_state",
    "smooth_load_loss",
]
