"""Different pre-trained experts under a gate with fresh weights: search says which slot each of them gets."""

from __future__ import annotations

from moe_search.bench.demo.model import make_model
from moe_search.bench.experiments.experiment import Numbers
from moe_search.bench.experiments.two_image_trials import TwoImageSettings, specialists, train_on, ways_back

SEEDS_APART = 1_000_000
"""Between the seed of the old gate and that of the new one."""


def run_trial(settings: TwoImageSettings, seed: int, gate: str, search: str) -> Numbers:
    """Train specialists, put a fresh gate of the same kind in place of theirs, and train on."""
    model, intact_loss = specialists(settings, seed, gate)
    model.moe.gate = make_model(gate, settings.model, seed + SEEDS_APART).moe.gate
    return train_on(model, settings, seed, search, intact_loss)


EXPERIMENTS = ways_back(
    name="new-gate",
    title="Pre-trained specialists under a new gate",
    question=(
        "Experts are trained as specialists; then their gate is replaced by a fresh one of the same kind. How many "
        "training steps does it take to get back to the validation loss under the old gate?"
    ),
    run_trial=run_trial,
)
