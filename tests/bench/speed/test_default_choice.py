import numpy as np

from moe_search.bench.speed import default_choice
from moe_search.problems import random_quadratic


def test_every_candidate_and_the_default_are_measured(monkeypatch):
    problem = random_quadratic(13, seed=0)
    case = default_choice.Case("uniform", "thirteen", problem)
    monkeypatch.setattr(default_choice, "made", lambda: [case])
    measured = default_choice.measure(None, 0.02)
    assert measured["seconds"].tolist() == [0.02, 0.2]
    assert (measured[[*default_choice.CANDIDATES, "solve"]] >= 0).all(axis=None)
    assert measured["solve takes"].tolist() == ["TabuSearch"] * 2
    # What is known ends a run, and gaps are to it.
    found = default_choice.run(case, None, 0.2, 0).value
    (short, _) = default_choice.rows_of(case._replace(known=found), 1.0)
    assert short["memetic"] == short["solve"] == 0
    assert short["as good"]


def test_our_grids_are_grids():
    problem = default_choice.random_grid(12, seed=0)
    assert (problem.flow == problem.flow.T).all()
    assert np.bincount(problem.distance[0]).tolist() == [1, 2, 3, 3, 2, 1]  # three rows of four
