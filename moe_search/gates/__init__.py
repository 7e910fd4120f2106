"""Gates: torch modules from inputs to slot weights, each with its expert map."""

from moe_search.gates.comet import COMET
from moe_search.gates.dselect_k import DSelectK
from moe_search.gates.expert_map import ExpertMap
from moe_search.gates.gate import Gate
from moe_search.gates.hash_routing import HashRouting
from moe_search.gates.official_comet import load_official_comet
from moe_search.gates.official_dselect_k import load_official_dselect_k
from moe_search.gates.slot_weights import SlotWeights
from moe_search.gates.softmax import Softmax
from moe_search.gates.top_k import TopK

__all__ = [
    "COMET",
    "DSelectK",
    "ExpertMap",
    "Gate",
    "HashRouting",
    "SlotWeights",
    "Softmax",
    "TopK",
    "load_official_comet",
    "load_official_dselect_k",
]
