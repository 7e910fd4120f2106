"""moe-search: the discrete half of sparse Mixture-of-Experts models, solved as a combinatorial search problem."""

import lazy_loader

from moe_search import gates, huggingface, layers, problems, solvers, training

__version__ = "0.2.0"

# A name is listed once, in the stub of its package, and imported when it is first asked for, so that a solver's user
# waits for no torch and no matplotlib.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [
        "analysis",
        "gates",
        "huggingface",
        "integrations",
        "layers",
        "plotting",
        "problems",
        "serving",
        "solvers",
        "training",
    ],
    {"api": ["lower_bound", "solve"], "compilation": ["warm_up"], "installation": ["show_versions"]}
    | {
        package.__name__.removeprefix("moe_search."): package.__all__
        for package in (gates, huggingface, layers, problems, solvers, training)
    },
)
