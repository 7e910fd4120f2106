"""The value of a subset of experts from outputs, row by row."""

import math

import numpy as np

from moe_search.problems.expert_subset import ExpertSubset


def routed(scores, strengths, kept, k, share, groups=1, open_groups=None, depth=1):
    """The weights of one row by expert, where the router knows the kept experts only."""
    size = len(scores) // groups
    ranked = sorted(kept, key=lambda e: -scores[e])
    best = {g: sum([scores[e] for e in ranked if e // size == g][:depth]) for g in range(groups)}
    opened = sorted(best, key=lambda g: -best[g])[: open_groups or groups]
    chosen = [e for e in ranked if e // size in opened][:k]
    whole = {"chosen": sum(strengths[e] for e in chosen), "kept": sum(strengths[e] for e in kept), "none": 1.0}
    return {e: strengths[e] / whole[share] for e in chosen}


def naive_error(outputs, layer, scores, strengths, kept, k, share, **groups):
    """The squared error of the layer among the kept experts, summed over rows."""
    total = 0.0
    for t in range(len(scores)):
        weights = routed(scores[t], strengths[t], kept, k, share, **groups)
        made = sum(w * outputs[t, e] for e, w in weights.items())
        total += math.fsum((made - layer[t]) ** 2)
    return total


class Instance:
    """A random layer, as outputs and as the problem that knows inner products only."""

    def __init__(self, seed=0, rows=20, n=6, keep=3, k=2, share="chosen", width=3, skewed=False, **groups):
        rng = np.random.default_rng(seed)
        self.outputs = rng.standard_normal((rows, n, width))
        # Distinct numbers, which float32 tells apart.
        self.scores = rng.permuted(np.tile(np.linspace(-1, 1, n), (rows, 1)), axis=1) + 0.01 * rng.random((rows, n))
        if skewed:
            self.scores += 0.5 * rng.standard_normal(n)
        self.strengths = np.exp(self.scores) if share != "none" else 1 / (1 + np.exp(-self.scores))
        names = {"num_groups": "groups", "open_groups": "open_groups", "group_depth": "depth"}
        self.naive = {"k": k, "share": share, **{names[name]: value for name, value in groups.items()}}
        every = range(n)
        self.layer = np.array(
            [
                sum(w * self.outputs[t, e] for e, w in routed(s, g, every, **self.naive).items())
                for t, (s, g) in enumerate(zip(self.scores, self.strengths, strict=True))
            ]
        )
        self.problem = ExpertSubset(
            self.scores,
            self.strengths,
            np.einsum("ted,tfd->tef", self.outputs, self.outputs),
            np.einsum("ted,td->te", self.outputs, self.layer),
            (self.layer**2).sum(1),
            keep=keep,
            k=k,
            share=share,
            **groups,
        )

    def error(self, kept):
        return naive_error(self.outputs, self.layer, self.scores, self.strengths, list(kept), **self.naive)
