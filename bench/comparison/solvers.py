"""The solvers that a comparison holds: ours and the peers, by the names that ``--solver`` takes."""

from __future__ import annotations

from collections.abc import Callable

import moe_search as ms
from moe_search.bench.peers.proposals import RandomPermutations, Scipy2opt


def _sinkhorn() -> ms.Solver:
    # torch takes seconds to import, and benchopt asks every process for all solvers.
    from moe_search.bench.peers.sinkhorn import SinkhornRelaxation

    return SinkhornRelaxation()


SOLVERS: dict[str, Callable[[], ms.Solver]] = {
    "BranchAndBound": ms.BranchAndBound,
    "BreakoutLocalSearch": ms.BreakoutLocalSearch,
    "CpSat": ms.CpSat,
    "Enumeration": ms.Enumeration,
    "FrankWolfe": ms.FrankWolfe,
    "Hungarian": ms.Hungarian,
    "IteratedLocalSearch": ms.IteratedLocalSearch,
    "LocalSearch": ms.LocalSearch,
    "MemeticSearch": ms.MemeticSearch,
    "MinCostFlow": ms.MinCostFlow,
    "MultiStart": lambda: ms.MultiStart(ms.TabuSearch(), runs=4, n_jobs=1),
    "SimulatedAnnealing": ms.SimulatedAnnealing,
    "TabuSearch": ms.TabuSearch,
    "Transport": ms.Transport,
    "random permutations": RandomPermutations,
    "scipy 2opt": Scipy2opt,
    "Sinkhorn": _sinkhorn,
}
