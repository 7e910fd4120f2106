"""Random pairwise assignment problems."""

from __future__ import annotations

from typing import Any

from benchopt import BaseDataset

from moe_search.problems.random_instances import random_pairwise


class Dataset(BaseDataset):
    """Independent integer costs of pairs of slots under pairs of experts; `capacity` slots an expert."""

    name = "random-pairwise"
    requirements = ("pip::moe-search[bench]",)
    parameters = {"num_experts": [12], "capacity": [1], "seed": [0]}  # noqa: RUF012
    parameter_template = "n={num_experts}, c={capacity}, seed={seed}"

    num_experts: int
    capacity: int
    seed: int

    def get_data(self) -> dict[str, Any]:
        """Return the problem."""
        problem = random_pairwise(self.num_experts * self.capacity, self.num_experts, seed=self.seed)
        return {"problem": problem, "best_known": None}
