"""One gate of each kind for the tests of layers. A new gate is one line in GATES."""

import pytest
import torch

from moe_search.gates.comet import COMET
from moe_search.gates.hash_routing import HashRouting
from moe_search.gates.softmax import Softmax
from moe_search.gates.top_k import TopK

FEATURES, OUTPUTS, VOCABULARY = 4, 3, 20

# From the number of experts and of slots: a gate of FEATURES features or of VOCABULARY ids.
GATES = {
    "Softmax": lambda n, m: Softmax(FEATURES, n, m),
    "TopK-1": lambda n, m: TopK(FEATURES, n, 1, m),
    "TopK-2": lambda n, m: TopK(FEATURES, n, min(2, m), m),
    "TopK-DeepSeek": lambda n, m: TopK(FEATURES, n, min(2, m), m, scores="sigmoid", scale=2.5, choice_bias=True),
    "HashRouting-ids": lambda n, m: HashRouting(n, m, vocabulary=VOCABULARY),
    "HashRouting-features": lambda n, m: HashRouting(n, m, in_features=FEATURES),
    "COMET": lambda n, m: COMET(FEATURES, n, min(2, m), m, gamma=0.5, entropy=0.1),
    "COMET-shared": lambda n, m: COMET(FEATURES, n, min(2, m), m, shared_map=True),
}
every_gate = pytest.mark.parametrize("make_gate", GATES.values(), ids=GATES.keys())


def batch(size=9, seed=0, dtype=torch.float64):
    """Samples and their ids."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(size, FEATURES, dtype=torch.float64, generator=generator)
    return inputs.to(dtype), torch.randint(VOCABULARY, (size,), generator=generator)
