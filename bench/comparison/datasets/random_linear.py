"""Random linear assignment problems with capacity."""

from __future__ import annotations

from typing import Any

from benchopt import BaseDataset

from moe_search.problems.random_instances import random_linear


class Dataset(BaseDataset):
    """Independent integer costs of `capacity` slots an expert."""

    name = "random-linear"
    requirements = ("pip::moe-search[bench]",)
    parameters = {"num_experts": [16], "capacity": [16], "seed": [0]}  # noqa: RUF012
    parameter_template = "n={num_experts}, c={capacity}, seed={seed}"

    num_experts: int
    capacity: int
    seed: int

    def get_data(self) -> dict[str, Any]:
        """Return the problem."""
        problem = random_linear(self.num_experts * self.capacity, self.num_experts, seed=self.seed)
        return {"problem": problem, "best_known": None}
