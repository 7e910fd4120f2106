from .balanced_top_k import BalancedTopK as BalancedTopK
from .comet import COMET as COMET
from .dselect_k import DSelectK as DSelectK
from .even_top_k import EvenTopK as EvenTopK
from .expert_map import ExpertMap as ExpertMap
from .gate import (
    Gate as Gate,
    SlotWeights as SlotWeights,
)
from .hash_routing import HashRouting as HashRouting
from .official import (
    load_official_comet as load_official_comet,
    load_official_dselect_k as load_official_dselect_k,
)
from .softmax import Softmax as Softmax
from .top_k import TopK as TopK
