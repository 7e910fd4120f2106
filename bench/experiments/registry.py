"""The experiments by name; each is imported when it is asked for."""

from __future__ import annotations

import importlib

from moe_search.bench.experiments.experiment import Experiment
from moe_search.checks import require_choice

HOMES = {
    "scrambled-digits": "recovery_experiments",
    "scrambled-fashion": "recovery_experiments",
    "new-gate-digits": "recovery_experiments",
    "new-gate-fashion": "recovery_experiments",
    "attached-digits": "recovery_experiments",
    "attached-fashion": "recovery_experiments",
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
    """Return the experiment of a name."""
    require_choice("an experiment", name, tuple(HOMES))
    module = importlib.import_module(f"moe_search.bench.experiments.{HOMES[name]}")
    (found,) = (each for each in module.EXPERIMENTS if each.name == name)
    return found
