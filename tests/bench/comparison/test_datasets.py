import math
import runpy

import numpy as np
import pytest
from qaplib_files import FOLDER, best_known, needs_qaplib

from moe_search.bench.comparison.dataset_files import DATASETS, GATE_FILES, dataset_files
from moe_search.bench.comparison.objective import Objective
from moe_search.bench.comparison.scores import excess
from moe_search.problems import LinearAssignment, MixtureAssignment
from moe_search.problems.qaplib import read_qaplib_solution
from moe_search.solvers.engine.stop import MaxIterations
from moe_search.solvers.heuristic.local_search import LocalSearch


@pytest.fixture
def load(tmp_path):
    """Return what the data set of a name and parameters gives, as benchopt loads it from the file written for it."""
    kinds = {path.stem: runpy.run_path(str(path))["Dataset"] for path in dataset_files(tmp_path / "files")}
    return lambda name, **parameters: kinds[name].get_instance(**parameters).get_data()


@pytest.mark.parametrize("name", [name for name in DATASETS if name.startswith("random-")])
def test_random_data_sets_depend_on_their_seed_alone(load, name):
    first, again, other = (load(name, seed=seed)["problem"] for seed in (0, 0, 1))
    p = first.random_solution(np.random.default_rng(0))
    assert first.value(p) == again.value(p) != other.value(p)


@pytest.mark.parametrize(
    ("gate", "kind"), [("top-k", MixtureAssignment), ("comet", MixtureAssignment), ("hash", LinearAssignment)]
)
def test_the_problems_of_trained_gates_are_small_and_real(load, gate, kind):
    problem = load("trained-gate", gate=gate)["problem"]
    assert isinstance(problem, kind)
    # Trained where its experts are, the gate is far better than with experts at random.
    here = problem.value(np.arange(problem.size))
    random = [problem.value(problem.random_solution(np.random.default_rng(seed))) for seed in range(5)]
    assert LocalSearch().solve(problem, MaxIterations(20_000), seed=0).value <= min(here, *random)
    with np.load(GATE_FILES / f"{gate}.npz", allow_pickle=False) as file:
        assert all(array.dtype.kind in "fiU" for array in dict(file).values())


def test_the_stored_problems_take_less_than_200_kilobytes():
    assert 0 < sum(path.stat().st_size for path in GATE_FILES.glob("*.npz")) < 200_000


@needs_qaplib
def test_qaplib_instances_come_with_their_best_known_value(load):
    data = load("qaplib", instance="nug12", folder=str(FOLDER))
    value, permutation = read_qaplib_solution(FOLDER / "nug12.sln", data["problem"])
    assert data["best_known"] == best_known()["nug12"] == value
    objective = Objective.get_instance(seconds=1.0)
    objective.set_data(**data)
    assert objective.evaluate_result(permutation, value) == {"value": value, "bound": value}


def test_a_missing_qaplib_file_is_skipped_with_its_reason(load, monkeypatch, tmp_path):
    monkeypatch.delenv("MOE_SEARCH_QAPLIB", raising=False)
    objective = Objective.get_instance(seconds=1.0)
    for folder, reason in ((None, "set MOE_SEARCH_QAPLIB"), (str(tmp_path), "there is no file")):
        data = load("qaplib", instance="nug12", folder=folder)
        skipped, why = objective.skip(**data)
        assert skipped
        assert reason in why


def test_excess_by_hand():
    assert excess(11.0, 10.0) == pytest.approx(0.1)
    assert excess(-9.0, -10.0) == pytest.approx(0.1)
    assert excess(0.0, 0.0) == 0.0
    assert math.isinf(excess(1.0, 0.0))
