from .eplb import rebalance_experts as rebalance_experts
from .files import (
    read_placement as read_placement,
    write_placement as write_placement,
)
from .vllm_policy import expert_map as expert_map
