"""Every solver, and the instances on which each is held to the contract."""

import pytest
from instances import INSTANCES

from moe_search import solvers

# A new solver is one line.
SOLVERS = {
    "swap first": solvers.LocalSearch(),
    "swap best": solvers.LocalSearch("swap", "best"),
    "insertion first": solvers.LocalSearch("insertion", "first"),
    "insertion best": solvers.LocalSearch("insertion", "best"),
    "both first": solvers.LocalSearch("both", "first"),
    "both best": solvers.LocalSearch("both", "best"),
    "one descent": solvers.LocalSearch(restarts=False),
    "tabu": solvers.TabuSearch(),
    "breakout": solvers.BreakoutLocalSearch(),
    "memetic": solvers.MemeticSearch(population=4, moves=5.0),
    "iterated": solvers.IteratedLocalSearch(),
    "iterated insertion annealing": solvers.IteratedLocalSearch("insertion", "best", acceptance="annealing"),
    "iterated both restart": solvers.IteratedLocalSearch("both", "best", acceptance="restart", patience=9),
    "iterated without bits": solvers.IteratedLocalSearch(acceptance="better", dont_look=False),
    "annealing": solvers.SimulatedAnnealing(),
    "multi-start": solvers.MultiStart(solvers.LocalSearch(), runs=3, n_jobs=2),
    "enumeration": solvers.Enumeration(),
    "hungarian": solvers.Hungarian(),
    "min-cost flow": solvers.MinCostFlow(),
    "cp-sat": solvers.CpSat(),
    "branch and bound": solvers.BranchAndBound(),
    "transport": solvers.Transport(),
    "frank-wolfe": solvers.FrankWolfe(),
}

PROBLEMS = {name: build(11) for name, build in INSTANCES.items()}

# Compiling a search for a class takes seconds. These instances are of every kind of number, of block and of capacity;
# that the kernels of all the others return the right deltas is tested in tests/problems.
ONE_OF_EACH_KIND = (
    "linear",
    "quadratic",
    "quadratic general float",
    "quadratic, sparse flow",
    "pairwise",
    "mixture squared",
    "mixture cross-entropy",
    "mixture, load-limited",
    "callable",
)
# These compile nothing, or kernels that do not depend on the class.
SAME_FOR_ALL = {"hungarian", "min-cost flow", "cp-sat", "transport"}
PAIRS = [
    (solver, name) for solver in SOLVERS for name in PROBLEMS if solver in SAME_FOR_ALL or name in ONE_OF_EACH_KIND
]
TAKEN = [(solver, name) for solver, name in PAIRS if SOLVERS[solver].refuses(PROBLEMS[name]) is None]


def marks(solver, name="linear"):
    """Return the marks of a test of a solver on an instance.

    Those of a solver run in one process, or each would compile the same kernels. On all instances but the linear one,
    which nearly every solver takes, they are slow.
    """
    runs = solver.solver if isinstance(solver, solvers.MultiStart) else solver
    group = pytest.mark.xdist_group(type(runs).__name__)
    # The kernels of branch and bound take the longest to compile.
    quick = name == "linear" and not isinstance(runs, solvers.BranchAndBound)
    return (group,) if quick else (group, pytest.mark.slow)
