"""moe-search: the discrete half of sparse Mixture-of-Experts models, solved as a combinatorial search problem."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe_search import bench, datasets, gates, layers, plotting, problems, solvers, training
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
        CpSat,
        Enumeration,
        Hungarian,
        LocalSearch,
        MaxIterations,
        MaxRuntime,
        MinCostFlow,
        NoImprovement,
        Result,
        Solver,
        StoppingCriterion,
        TabuSearch,
        TargetValue,
    )
    from moe_search.training import Lowering, PermutationSearch, SearchRecord, SinkhornPermutation, lower

__version__ = "0.1.0"

# Names are imported when first asked for, so that a solver's user waits for no torch and no matplotlib.
_SUBPACKAGES = ("bench", "datasets", "gates", "layers", "plotting", "problems", "solvers", "training")
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
        "CpSat",
        "Enumeration",
        "Hungarian",
        "LocalSearch",
        "MaxIterations",
        "MaxRuntime",
        "MinCostFlow",
        "NoImprovement",
        "Result",
        "Solver",
        "StoppingCriterion",
        "TabuSearch",
        "TargetValue",
    ),
    "training": ("Lowering", "PermutationSearch", "SearchRecord", "SinkhornPermutation", "lower"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "COMET",
    "AnyOf",
    "CpSat",
    "DSelectK",
    "Enumeration",
    "ExpertMap",
    "Gate",
    "HashRouting",
    "Hungarian",
    "LinearAssignment",
    "LoadLimited",
    "LocalSearch",
    "Lowering",
    "MaxIterations",
    "MaxRuntime",
    "MinCostFlow",
    "MixtureAssignment",
    "MixtureOfExperts",
    "MultiGateMixtureOfExperts",
    "NoImprovement",
    "PairwiseAssignment",
    "PermutationSearch",
    "Problem",
    "QuadraticAssignment",
    "Result",
    "SearchRecord",
    "SinkhornPermutation",
    "SlotWeights",
    "Softmax",
    "Solver",
    "StackedExperts",
    "StoppingCriterion",
    "TabuSearch",
    "TargetValue",
    "TopK",
    "__version__",
    "bench",
    "datasets",
    "gates",
    "layers",
    "load_official_comet",
    "load_official_dselect_k",
    "lower",
    "plotting",
    "problems",
    "random_linear",
    "random_mixture",
    "random_pairwise",
    "random_quadratic",
    "read_qaplib",
    "read_qaplib_solution",
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
