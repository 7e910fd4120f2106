"""The experiments by name; each is imported when it is asked for."""

from __future__ import annotations

import importlib

from moe_search.bench.experiments.experiment import Experiment

HOMES = {
    "scrambled-digits": "scrambled_map",
    "scrambled-fashion": "scrambled_map",
    "new-gate-digits": "new_gate",
    "new-gate-fashion": "new_gate",
    "attached-digits": "attached_experts",
    "attached-fashion": "attached_experts",
    "domains-digits": "domain_experts",
    "domains-fashion": "domain_experts",
    "branched-digits": "domain_experts",
    "fresh-digits": "fresh_experts",
    "hidden-groups": "hidden_groups",
    "user-table": "user_table",
    "token-table": "token_table",
    "load-limit": "load_limit",
    "tuning-budget": "tuning_budget",
    "tuning-budget-slots": "tuning_budget",
}
"""The module of `moe_search.bench.experiments` that holds an experiment in its ``EXPERIMENTS``."""


def find_experiment(name: str) -> Experiment:
    """Return the experiment of a name.

    Raises
    ------
    ValueError
        If there is none.
    """
    if name not in HOMES:
        raise ValueError(f"an experiment must be one of {', '.join(HOMES)}, got {name!r}")
    module = importlib.import_module(f"moe_search.bench.experiments.{HOMES[name]}")
    (found,) = (each for each in module.EXPERIMENTS if each.name == name)
    return found
