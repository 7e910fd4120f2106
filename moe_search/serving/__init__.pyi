from .eplb import rebalance_experts as rebalance_experts
from .files import (
    read_loads as read_loads,
    read_placement as read_placement,
    write_placement as write_placement,
)
from .simulation import (
    Policy as Policy,
    PolicyOutcome as PolicyOutcome,
    Simulation as Simulation,
    simulate as simulate,
)
from .vllm_policy import expert_map as expert_map
