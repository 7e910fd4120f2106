from .mixture_layers import (
    MoELayer as MoELayer,
    moe_layers as moe_layers,
)
from .pruning import (
    PruningCandidate as PruningCandidate,
    PruningPlan as PruningPlan,
    prune_experts as prune_experts,
)
from .selection import (
    keep_experts as keep_experts,
    permute_experts as permute_experts,
)
