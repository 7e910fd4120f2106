"""Gates: torch modules from inputs to slot weights, each with its expert map."""

from moe_search.gates.comet import COMET
from moe_search.gates.expert_map import ExpertMap
from moe_search.gates.gate import Gate
from moe_search.gates.hash_routing import HashRouting
from moe_search.gates.slot_weights import SlotWeights
from moe_search.gates.softmax import Softmax
from moe_search.gates.top_k import TopK

__all__ = ["COMET", "ExpertMap", "Gate", "HashRouting", "SlotWeights", "Softmax", "TopK"]
