"""Random quadratic assignment problems."""

from __future__ import annotations

from typing import Any

from benchopt import BaseDataset

from moe_search.problems.random_instances import random_quadratic


class Dataset(BaseDataset):
    """Two symmetric matrices of independent integers, as Taillard's tai*a instances."""

    name = "random-quadratic"
    requirements = ("pip::moe-search[bench]",)
    parameters = {"size": [30], "seed": [0]}  # noqa: RUF012
    parameter_template = "n={size}, seed={seed}"
    test_config = {"size": 8}  # noqa: RUF012

    size: int
    seed: int

    def get_data(self) -> dict[str, Any]:
        """Return the problem."""
        return {"problem": random_quadratic(self.size, seed=self.seed), "best_known": None}
