"""What `warm_up` compiles, no later process does."""

import os
import subprocess
import sys

import pytest

import moe_search as ms
from moe_search.compilation import cases

SOLVE = """
import moe_search as ms
from numba.core import event
problem = ms.random_pairwise(5, seed={seed})
{warm_up}
with event.install_recorder("numba:compile") as recorder:
    result = ms.solve(problem, stop=ms.MaxRuntime(1.0))
assert not recorder.buffer
print(result.compile_seconds, result.status)
"""


def test_what_was_compiled_ahead_is_not_compiled_again_in_this_process_or_another(tmp_path):
    for seed, ahead in ((0, "assert ms.warm_up(problem) > 0"), (1, "")):
        code = SOLVE.format(seed=seed, warm_up=ahead)
        environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        seconds, status = done.stdout.split() or [done.stderr, ""]
        # Loading is part of it, where nothing was compiled in this process.
        assert (float(seconds) > 0) == (not ahead), seconds
        assert status == "optimal"


def test_what_is_compiled_for_what():
    quadratic, linear = ms.random_quadratic(30, seed=0), ms.random_linear(6, 3, seed=0)
    assert [str(each) for each in cases(quadratic, linear)] == [
        "TabuSearch for QuadraticAssignment",
        "MemeticSearch for QuadraticAssignment",
        "Hungarian for LinearAssignment",
    ]
    assert [str(each) for each in cases(quadratic, linear, ms.Transport(), ms.FrankWolfe())] == [
        "Transport for LinearAssignment",
        "FrankWolfe for QuadraticAssignment",
    ]
    assert {str(each) for each in cases(ms.Transport())} == {"Transport for LinearAssignment"}
    of_all = {str(each) for each in cases()}
    assert {"BranchAndBound for PairwiseAssignment", "LocalSearch for LoadLimited"} < of_all
    assert {"PlacementSearch for ExpertPlacement", "PlacementSearch for Rebalancing"} < of_all
    assert ms.warm_up(linear, ms.Hungarian()) < 60  # imports alone


def test_what_cannot_be_compiled_is_refused():
    with pytest.raises(TypeError, match="must be a Problem or a Solver, got str"):
        ms.warm_up("everything")
    with pytest.raises(ValueError, match=r"no solver given can take this QuadraticAssignment: Transport: it solves"):
        ms.warm_up(ms.random_quadratic(5, seed=0), ms.Transport())
