from .cluster_neurons import cluster_neurons as cluster_neurons
from .mixture_of_experts import MixtureOfExperts as MixtureOfExperts
from .multi_gate_mixture_of_experts import MultiGateMixtureOfExperts as MultiGateMixtureOfExperts
from .split_feed_forward import (
    deal_neurons as deal_neurons,
    split_feed_forward as split_feed_forward,
)
from .stacked_experts import StackedExperts as StackedExperts
