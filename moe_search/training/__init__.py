"""The alternation of training and search: lowering, verification, permutation search."""

from moe_search.training.lowering import Lowering, lower
from moe_search.training.permutation_search import PermutationSearch
from moe_search.training.search_record import SearchRecord
from moe_search.training.sinkhorn import SinkhornPermutation

__all__ = ["Lowering", "PermutationSearch", "SearchRecord", "SinkhornPermutation", "lower"]
