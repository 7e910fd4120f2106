"""Random mixture assignment problems."""

from __future__ import annotations

from typing import Any

from benchopt import BaseDataset

from moe_search.problems.random_instances import random_mixture


class Dataset(BaseDataset):
    """Gaussian expert outputs on a batch, softmax weights over k random slots a sample."""

    name = "random-mixture"
    requirements = ("pip::moe-search[bench]",)
    parameters = {"num_experts": [16], "num_samples": [256], "loss": ["cross_entropy"], "k": [2], "seed": [0]}  # noqa: RUF012

    parameter_template = "n={num_experts}, B={num_samples}, k={k}, {loss}, seed={seed}"

    num_experts: int
    num_samples: int
    loss: Any
    k: int
    seed: int

    def get_data(self) -> dict[str, Any]:
        """Return the problem."""
        problem = random_mixture(self.num_samples, self.num_experts, seed=self.seed, k=self.k, loss=self.loss)
        return {"problem": problem, "best_known": None}
