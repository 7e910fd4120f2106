"""Gates of all kinds and settings, for what every gate must do. A new gate is one line in GATES."""

import pytest
import torch

from moe_search.gates.balanced_top_k import BalancedTopK
from moe_search.gates.comet import COMET
from moe_search.gates.dselect_k import DSelectK
from moe_search.gates.even_top_k import EvenTopK
from moe_search.gates.hash_routing import HashRouting
from moe_search.gates.softmax import Softmax
from moe_search.gates.top_k import TopK
from moe_search.training.gamma_annealing import GammaAnnealing
from moe_search.training.sinkhorn import SinkhornPermutation

FEATURES, VOCABULARY = 5, 30

# A function of the numbers of experts and slots makes a gate of FEATURES features or of VOCABULARY ids.
GATES = {
    "Softmax": lambda n, m: Softmax(FEATURES, n, m),
    "TopK-1": lambda n, m: TopK(FEATURES, n, 1, m),
    "TopK-2": lambda n, m: TopK(FEATURES, n, min(2, m), m),
    "TopK-OLMoE": lambda n, m: TopK(FEATURES, n, min(2, m), m, renormalize=False),
    "TopK-sigmoid-1": lambda n, m: TopK(FEATURES, n, 1, m, scores="sigmoid"),
    "TopK-DeepSeek": lambda n, m: TopK(
        FEATURES, n, min(2, m), m, scores="sigmoid", renormalize=True, scale=2.5, choice_bias=True
    ),
    "TopK-groups": lambda n, m: TopK(
        FEATURES, n, 1, m, scores="sigmoid", choice_bias=True, num_groups=n, kept_groups=max(1, n - 1)
    ),
    "EvenTopK-2": lambda n, m: EvenTopK(FEATURES, n, min(2, m), m, start=1.0),
    "BalancedTopK-1": lambda n, m: BalancedTopK(FEATURES, n, 1, m, scores="sigmoid"),
    "BalancedTopK-2": lambda n, m: BalancedTopK(FEATURES, n, min(2, m), m, capacity_factor=1.5),
    "HashRouting-ids": lambda n, m: HashRouting(n, m, vocabulary=VOCABULARY),
    "HashRouting-features": lambda n, m: HashRouting(n, m, in_features=FEATURES),
    "HashRouting-table": lambda n, m: HashRouting(n, m, table=[i * i % (m or n) for i in range(VOCABULARY)]),
    "TopK-noise": lambda n, m: TopK(FEATURES, n, min(2, m), m, noise=True),
    "COMET-1": lambda n, m: COMET(FEATURES, n, 1, m),
    "COMET-2": lambda n, m: COMET(FEATURES, n, min(2, m), m, entropy=0.0),
    "COMET-shared": lambda n, m: COMET(FEATURES, n, min(3, m), m, gamma=0.2, shared_map=True),
    "Sinkhorn-TopK-2": lambda n, m: SinkhornPermutation(TopK(FEATURES, n, min(2, m), m), steps=9),
    "Sinkhorn-COMET-2": lambda n, m: SinkhornPermutation(COMET(FEATURES, n, min(2, m), m, entropy=0.0), steps=9),
    "Annealed-COMET-2": lambda n, m: GammaAnnealing(COMET(FEATURES, n, min(2, m), m), steps=9),
    "Annealed-DSelectK-2": lambda n, m: GammaAnnealing(DSelectK(FEATURES, n, min(2, m), m), steps=9),
    "COMET-torch": lambda n, m: COMET(FEATURES, n, min(2, m), m, convention="torch"),
    "COMET-tensorflow": lambda n, m: COMET(FEATURES, n, min(2, m), m, convention="tensorflow"),
    "DSelectK-static": lambda n, m: DSelectK(None, n, min(2, m), m),
    "DSelectK-1": lambda n, m: DSelectK(FEATURES, n, 1, m, gamma=0.05),
    "DSelectK-2": lambda n, m: DSelectK(FEATURES, n, min(2, m), m),
    "DSelectK-shared": lambda n, m: DSelectK(FEATURES, n, min(3, m), m, entropy=0.0, shared_map=True),
}
every_gate = pytest.mark.parametrize("make", GATES.values(), ids=GATES.keys())


def batch(size=7, seed=0, dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(size, FEATURES, generator=generator, dtype=torch.float64) * scale
    return inputs.to(dtype), torch.randint(VOCABULARY, (size,), generator=generator)


def make_seeded(make, n=3, m=6, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(n, m)
