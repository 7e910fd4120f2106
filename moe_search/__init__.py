"""moe-search: the discrete half of sparse Mixture-of-Experts models, solved as a combinatorial search problem."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe_search import bench, datasets, gates, integrations, layers, plotting, problems, solvers, training
    from moe_search._solve import solve
    from moe_search.gates import (
        COMET,
        DSelectK,
        ExpertMap,
        Gate,
        HashRouting,
        SlotWeights,
        Softmax,
        TopK,
        load_official_comet,
        load_official_dselect_k,
    )
    from moe_search.layers import MixtureOfExperts, MultiGateMixtureOfExperts, StackedExperts
    from moe_search.problems import (
        InfeasibleLimitsError,
        LinearAssignment,
        LoadLimited,
        MixtureAssignment,
        PairwiseAssignment,
        Problem,
        QuadraticAssignment,
        random_linear,
        random_mixture,
        random_pairwise,
        random_quadratic,
        read_qaplib,
        read_qaplib_solution,
        write_qaplib,
        write_qaplib_solution,
    )
    from moe_search.solvers import (
        AnyOf,
        BranchAndBound,
        CpSat,
        Enumeration,
        FrankWolfe,
        Hungarian,
        Incumbent,
        IteratedLocalSearch,
        LocalSearch,
        MaxIterations,
        MaxRuntime,
        MinCostFlow,
        MultiStart,
        NoImprovement,
        Result,
        SimulatedAnnealing,
        Solver,
        StoppingCriterion,
        TabuSearch,
        TargetValue,
        Transport,
    )
    from moe_search.training import (
        LossFreeBalancing,
        Lowering,
        PermutationSearch,
        RoutingStatistics,
        RoutingSummary,
        SearchRecord,
        SinkhornPermutation,
        importance_loss,
        limit_load,
        load_balancing_loss,
        load_state,
        lower,
        router_z_loss,
        save_state,
        smooth_load_loss,
    )

__version__ = "0.1.0"

# Names are imported when first asked for, so that a solver's user waits for no torch and no matplotlib.
_SUBPACKAGES = ("bench", "datasets", "gates", "integrations", "layers", "plotting", "problems", "solvers", "training")
_HOMES = {
    # A module of the name of its function would take the function's place once it is imported.
    "_solve": ("solve",),
    "gates": (
        "COMET",
        "DSelectK",
        "ExpertMap",
        "Gate",
        "HashRouting",
        "SlotWeights",
        "Softmax",
        "TopK",
        "load_official_comet",
        "load_official_dselect_k",
    ),
    "layers": ("MixtureOfExperts", "MultiGateMixtureOfExperts", "StackedExperts"),
    "problems": (
        "InfeasibleLimitsError",
        "LinearAssignment",
        "LoadLimited",
        "MixtureAssignment",
        "PairwiseAssignment",
        "Problem",
        "QuadraticAssignment",
        "random_linear",
        "random_mixture",
        "random_pairwise",
        "random_quadratic",
        "read_qaplib",
        "read_qaplib_solution",
        "write_qaplib",
        "write_qaplib_solution",
    ),
    "solvers": (
        "AnyOf",
        "BranchAndBound",
        "CpSat",
        "Enumeration",
        "FrankWolfe",
        "Hungarian",
        "Incumbent",
        "IteratedLocalSearch",
        "LocalSearch",
        "MaxIterations",
        "MaxRuntime",
        "MinCostFlow",
        "MultiStart",
        "NoImprovement",
        "Result",
        "SimulatedAnnealing",
        "Solver",
        "StoppingCriterion",
        "TabuSearch",
        "TargetValue",
        "Transport",
    ),
    "training": (
        "LossFreeBalancing",
        "Lowering",
        "PermutationSearch",
        "RoutingStatistics",
        "RoutingSummary",
        "SearchRecord",
        "SinkhornPermutation",
        "importance_loss",
        "limit_load",
        "load_balancing_loss",
        "smooth_load_loss",
        "lower",
        "router_z_loss",
        "load_state",
        "save_state",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "COMET",
    "AnyOf",
    "BranchAndBound",
    "CpSat",
    "DSelectK",
    "Enumeration",
    "ExpertMap",
    "FrankWolfe",
    "Gate",
    "HashRouting",
    "Hungarian",
    "Incumbent",
    "InfeasibleLimitsError",
    "IteratedLocalSearch",
    "LinearAssignment",
    "LoadLimited",
    "LocalSearch",
    "LossFreeBalancing",
    "Lowering",
    "MaxIterations",
    "MaxRuntime",
    "MinCostFlow",
    "MixtureAssignment",
    "MixtureOfExperts",
    "MultiGateMixtureOfExperts",
    "MultiStart",
    "NoImprovement",
    "PairwiseAssignment",
    "PermutationSearch",
    "Problem",
    "QuadraticAssignment",
    "Result",
    "RoutingStatistics",
    "RoutingSummary",
    "SearchRecord",
    "SimulatedAnnealing",
    "SinkhornPermutation",
    "SlotWeights",
    "Softmax",
    "Solver",
    "StackedExperts",
    "StoppingCriterion",
    "TabuSearch",
    "TargetValue",
    "TopK",
    "Transport",
    "__version__",
    "bench",
    "datasets",
    "gates",
    "importance_loss",
    "integrations",
    "layers",
    "limit_load",
    "load_balancing_loss",
    "load_official_comet",
    "load_official_dselect_k",
    "load_state",
    "lower",
    "plotting",
    "problems",
    "random_linear",
    "random_mixture",
    "random_pairwise",
    "random_quadratic",
    "read_qaplib",
    "read_qaplib_solution",
    "router_z_loss",
    "save_state",
    "smooth_load_loss",
    "solve",
    "solvers",
    "training",
    "write_qaplib",
    "write_qaplib_solution",
]


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        value: Any = importlib.import_module(f"moe_search.{name}")
    elif name in _HOME_OF:
        value = getattr(importlib.import_module(f"moe_search.{_HOME_OF[name]}"), name)
    else:
        raise AttributeError(f"module 'moe_search' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
