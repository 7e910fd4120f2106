"""Problems under load limits that some of their permutations keep."""

import numpy as np
from instances import INSTANCES
from naive import excess_load, loads_of_experts

from moe_search.problems import LoadLimited

INNER = {name: build for name, build in INSTANCES.items() if name not in ("mixture, load-limited", "callable")}


def limited(inner, seed, slack=1.2, floats=False):
    """With limits that a random permutation keeps, or nearly."""
    rng = np.random.default_rng(seed)
    loads = rng.random(inner.size) if floats else rng.integers(0, 9, inner.size)
    n = inner.block_size // inner.capacity
    borne = loads_of_experts(loads.tolist(), n, inner.block_size, inner.random_solution(rng).tolist())
    return LoadLimited(inner, loads, np.array(borne) * (1.0 if floats else slack))


def naive_excess(problem, p):
    return excess_load(problem.slot_loads.tolist(), problem.limits.tolist(), problem.block_size, p)
