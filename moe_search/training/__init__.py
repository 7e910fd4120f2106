"""The alternation of training and search: lowering, verification, permutation search."""

from moe_search.training.lowering import Lowering, lower
from moe_search.training.permutation_search import PermutationSearch
from moe_search.training.saved_state import load_state, save_state
from moe_search.training.search_record import SearchRecord

__all__ = ["Lowering", "PermutationSearch", "SearchRecord", "load_state", "lower", "save_state"]
