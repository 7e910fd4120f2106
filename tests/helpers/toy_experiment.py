"""An experiment without training: its trials are counted, and can be made to fail."""

from dataclasses import dataclass, replace
from pathlib import Path

from moe_search.bench.experiments.experiment import LOSS, Experiment, Measure


@dataclass(frozen=True)
class ToySettings:
    """Where trials leave a trace, and which one fails."""

    size: int = 3
    path: str | None = None
    failing_seed: int | None = None


def run_trial(settings, seed, gate, search):
    """Leave a trace; the other search needs a tenth of the steps."""
    if settings.failing_seed == seed:
        raise ZeroDivisionError("told to fail")
    if settings.path is not None:
        with (Path(settings.path) / f"{seed}-{gate}-{search}").open("a") as file:
            file.write("x")
    steps = 100.0 + seed if search == "none" else 5.0
    losses = [2.0, 1.0 + seed / 10, 0.5 if search == "none" else 0.25]
    return {
        "needed": steps,
        LOSS: losses[-1] + 0.01 * seed,
        "steps": [0.0, 1.0, 8.0],
        "cpu_seconds": [0.0, 1.0, 8.0],
        "validation_losses": losses,
        "first_map": [0.0, 1.0, 2.0],
        "last_map": [1.0, 0.0, 2.0],
    }


TOY = Experiment(
    name="toy",
    title="A toy",
    question="Does it work?",
    gates=("Hash", "Top-k"),
    searches=("none", "search"),
    settings=ToySettings(),
    smoke=ToySettings(size=1),
    run_trial=run_trial,
    seeds=3,
    measures=(Measure("needed", "steps needed", digits=0, factor=10.0), Measure(LOSS, "test loss")),
)


def space(gate):
    """Draw a rate for both gates, and a number for one of them."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    rate = {"rate": FloatDistribution(0.1, 10.0, log=True)}
    return rate if gate == "Hash" else rate | {"number": CategoricalDistribution((1, 2, 3))}


DRAWN = replace(TOY, space=space)
"""The same, its seeds draws of a random search."""
