"""Problems lowered from gates that were trained on real images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from benchopt import BaseDataset

from moe_search.problems.linear import LinearAssignment
from moe_search.problems.mixture import MixtureAssignment


class Dataset(BaseDataset):
    """Where to put the experts of a trained gate, by the loss on canvases of two handwritten digits.

    The files stand beside this one and were written by `moe_search.bench.comparison.lower_trained_gates`, which names
    the source and the licence of the images.
    """

    name = "trained-gate"
    requirements = ("pip::moe-search[bench]",)
    parameters = {"gate": ["top-k", "comet", "hash"]}  # noqa: RUF012
    parameter_template = "{gate}"

    gate: str

    def get_data(self) -> dict[str, Any]:
        """Return the problem."""
        path = Path(__file__).parent / f"{self.gate}.npz"
        if not path.is_file():
            return {"problem": None, "best_known": None, "reason": f"there is no file {path.name}"}
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        if "cost" in arrays:
            return {"problem": LinearAssignment(arrays["cost"]), "best_known": None}
        loss: Any = str(arrays.pop("loss"))
        return {"problem": MixtureAssignment(loss=loss, **arrays), "best_known": None}
