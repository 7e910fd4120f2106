"""Layers: experts, and their mixture by a gate."""

from moe_search.layers.mixture_of_experts import MixtureOfExperts
from moe_search.layers.multi_gate_mixture_of_experts import MultiGateMixtureOfExperts
from moe_search.layers.split_feed_forward import deal_neurons, split_feed_forward
from moe_search.layers.stacked_experts import StackedExperts

__all__ = ["MixtureOfExperts", "MultiGateMixtureOfExperts", "StackedExperts", "deal_neurons", "split_feed_forward"]
