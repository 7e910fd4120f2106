"""What benchopt sees of a data set: a file with a class ``Dataset``, written for each name of one table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from benchopt import BaseDataset

from moe_search.bench.comparison.solver_files import write_once
from moe_search.bench.datasets.qaplib import VARIABLE, best_known_values, qaplib_folder
from moe_search.problems import random_instances as made
from moe_search.problems.linear import LinearAssignment
from moe_search.problems.mixture import MixtureAssignment
from moe_search.problems.qaplib import read_qaplib

GATE_FILES = Path(__file__).parent / "datasets"
DATASET_FILE = '''"""Written by `moe-search bench`."""

from moe_search.bench.comparison.dataset_files import DATASETS, TableDataset


class Dataset(TableDataset):
    name = {name!r}
    parameters = DATASETS[name].parameters
    parameter_template = DATASETS[name].template
'''


class Kind(NamedTuple):
    """Data sets of one name.

    Attributes
    ----------
    parameters : dict of str to list
        The values of every parameter, where a pattern names none.
    template : str
        What stands in brackets after the name.
    load : callable
        Takes the parameters, and returns the ``problem``, with its ``best_known`` value if there is one; or the
        ``reason`` why it is not there.
    """

    parameters: dict[str, list[Any]]
    template: str
    load: Callable[..., dict[str, Any]]


class TableDataset(BaseDataset):
    """A data set of `DATASETS`."""

    requirements = ("pip::moe-search[bench]",)

    def get_data(self) -> dict[str, Any]:
        """Return the problem and its best known value, None where there is none."""
        return {"problem": None, "best_known": None} | DATASETS[self.name].load(**self._parameters)


def dataset_files(folder: Path) -> list[Path]:
    """Write the files of `DATASETS` to a folder and return their paths."""
    return [write_once(folder / f"{name}.py", DATASET_FILE.format(name=name)) for name in DATASETS]


def _trained_gate(gate: str) -> dict[str, Any]:
    """Return where to put the experts of a gate trained on two handwritten digits; see `lower_trained_gates`."""
    path = GATE_FILES / f"{gate}.npz"
    if not path.is_file():
        return {"reason": f"there is no file {path.name}"}
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    if "cost" in arrays:
        return {"problem": LinearAssignment(arrays["cost"])}
    loss: Any = str(arrays.pop("loss"))
    return {"problem": MixtureAssignment(loss=loss, **arrays)}


def _qaplib(instance: str, folder: str | None) -> dict[str, Any]:
    """Return the problem of a file NAME.dat in the folder that is given or that MOE_SEARCH_QAPLIB names."""
    place = qaplib_folder(folder)
    if place is None:
        return {"reason": f"no folder of QAPLIB files is given, set {VARIABLE} to one"}
    path = place / f"{instance}.dat"
    if not path.is_file():
        return {"reason": f"there is no file {path}"}
    return {"problem": read_qaplib(path), "best_known": best_known_values(place).get(instance)}


DATASETS = {
    "qaplib": Kind({"instance": ["nug12", "nug30", "tai30a"], "folder": [None]}, "{instance}", _qaplib),
    "random-linear": Kind(
        {"num_experts": [16], "capacity": [16], "seed": [0]},
        "n={num_experts}, c={capacity}, seed={seed}",
        lambda num_experts, capacity, seed: {
            "problem": made.random_linear(num_experts * capacity, num_experts, seed=seed)
        },
    ),
    "random-mixture": Kind(
        {"num_experts": [16], "num_samples": [256], "loss": ["cross_entropy"], "k": [2], "seed": [0]},
        "n={num_experts}, B={num_samples}, k={k}, {loss}, seed={seed}",
        lambda num_experts, num_samples, loss, k, seed: {
            "problem": made.random_mixture(num_experts, num_samples=num_samples, seed=seed, k=k, loss=loss)
        },
    ),
    "random-pairwise": Kind(
        {"num_experts": [12], "capacity": [1], "seed": [0]},
        "n={num_experts}, c={capacity}, seed={seed}",
        lambda num_experts, capacity, seed: {
            "problem": made.random_pairwise(num_experts * capacity, num_experts, seed=seed)
        },
    ),
    "random-quadratic": Kind(
        {"size": [30], "seed": [0]},
        "n={size}, seed={seed}",
        lambda size, seed: {"problem": made.random_quadratic(size, seed=seed)},
    ),
    "trained-gate": Kind({"gate": ["top-k", "comet", "hash"]}, "{gate}", _trained_gate),
}
