"""Random numbers for kernels: xoshiro256** on a small state array.

A numpy Generator handed to a kernel costs some 20 microseconds a call; four integers cost nothing.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_search.problems.kernels import compiled


def random_state(seed: int | np.random.SeedSequence) -> npt.NDArray[np.uint64]:
    """Return a generator state, shape (4,), from a seed."""
    sequence = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    # A SeedSequence of a non-zero pool gives the all-zero state, the only bad one, with probability 2**-256.
    return sequence.generate_state(4, np.uint64).astype(np.uint64)


@compiled
def next_uint64(state: Any) -> Any:
    """Advance the state and return 64 random bits; Blackman and Vigna (2021), xoshiro256**."""
    five, nine = np.uint64(5), np.uint64(9)
    x = state[1] * five
    result = ((x << np.uint64(7)) | (x >> np.uint64(57))) * nine
    shifted = state[1] << np.uint64(17)
    state[2] ^= state[0]
    state[3] ^= state[1]
    state[1] ^= state[2]
    state[0] ^= state[3]
    state[2] ^= shifted
    state[3] = (state[3] << np.uint64(45)) | (state[3] >> np.uint64(19))
    return result


@compiled
def random_unit(state: Any) -> float:
    """Return a float uniform in [0, 1)."""
    return float(next_uint64(state) >> np.uint64(11)) * 2.0**-53


@compiled
def random_below(state: Any, n: int) -> int:
    """Return an integer uniform in 0 .. n - 1 (up to a bias of n / 2**53)."""
    return int(random_unit(state) * n)


@compiled
def metropolis(state: Any, delta: Any, temperature: float) -> bool:
    """Return whether a change in value is accepted: a loss with probability ``exp(-delta / temperature)``."""
    if delta <= 0:
        return True
    return temperature > 0 and random_unit(state) < math.exp(-float(delta) / temperature)
