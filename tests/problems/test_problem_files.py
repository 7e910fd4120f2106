import dataclasses

import numpy as np
import pytest

from moe_search.problems import random_linear, random_mixture, random_pairwise, random_quadratic, read_problem


def write_problem(path, problem):
    if path.suffix == ".csv":
        np.savetxt(path, problem.cost, fmt="%d", delimiter=",")
    else:
        given = {each.name: getattr(problem, each.name) for each in dataclasses.fields(problem) if each.init}
        np.savez(path, **{name: value for name, value in given.items() if value is not None})


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("x.csv", random_linear(6, 3, seed=1)),
        ("x.npz", random_linear(6, 3, seed=1, integral=False)),
        ("x.npz", random_pairwise(4, 2, seed=1, num_selectors=2)),
        ("x.npz", random_quadratic(5, seed=1, linear=True)),
        ("x.npz", random_mixture(4, 2, num_samples=9, seed=1)),
    ],
    ids=repr,
)
def test_problems_of_every_class_are_read(tmp_path, name, problem):
    write_problem(tmp_path / name, problem)
    read = read_problem(tmp_path / name)
    assert repr(read) == repr(problem)
    p = problem.random_solution(np.random.default_rng(0))
    assert read.value(p) == problem.value(p)


def test_files_that_hold_no_problem(tmp_path):
    arrays = {
        "other.npz": {"costs": np.ones((2, 2))},
        "half.npz": {"flow": np.ones((2, 2))},
        "more.npz": {"cost": np.ones((2, 2)), "flow": np.ones((2, 2))},
        "objects.npz": {"cost": np.array([[None, {}]], dtype=object)},
        "flat.npz": {"cost": np.ones(3)},
    }
    for name, given in arrays.items():
        np.savez(tmp_path / name, **given)
    texts = {
        "no.npz": "cost",
        "empty.csv": "\n",
        "head.csv": "a,b\n1,2",
        "ragged.csv": "1,2\n3",
        "nan.csv": "1.0,2\n3,nan",
        "word.csv": "1_0,2\n3,4",
        "large.csv": "99999999999999999999,1\n1,1",
        "x.txt": "1",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "flat.npz").read_bytes()[:-30])
    with (tmp_path / "single.npz").open("wb") as file:
        np.save(file, np.ones((2, 2)))
    for name in (*arrays, *texts, "cut.npz", "single.npz"):
        with pytest.raises(ValueError, match=name):
            read_problem(tmp_path / name)
    for name, got in {"half.npz": "flow", "other.npz": "costs"}.items():
        with pytest.raises(ValueError, match="its arrays must be those of a LinearAssignment: cost") as error:
            read_problem(tmp_path / name)
        assert "a QuadraticAssignment: flow, distance, linear (optional); " in str(error.value)
        assert str(error.value).endswith(f"got {got}")
    with pytest.raises(ValueError, match="numbers alone, a line a slot, without a heading"):
        read_problem(tmp_path / "head.csv")
    with pytest.raises(FileNotFoundError):
        read_problem(tmp_path / "none.npz")
