"""The page of the demo: what was done, what came out, and how to repeat it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
from matplotlib.figure import Figure

from moe_search.bench.datasets.two_images import load_two_digits
from moe_search.bench.demo.scenarios import ScenarioResult
from moe_search.bench.demo.settings import SEARCHED, DemoSettings
from moe_search.bench.demo.tables import (
    every_search_table,
    findings,
    headline,
    results_table,
    runs_by_gate,
    searches_table,
)
from moe_search.bench.experiments.two_image_model import EXPERTS_PER_SAMPLE, NUM_EXPERTS
from moe_search.bench.machine_facts import versions
from moe_search.plotting.canvases import canvases
from moe_search.plotting.expert_maps import MapPanel, NamedMap, expert_maps
from moe_search.plotting.loss_curves import LossCurve, LossPanel, loss_curves
from moe_search.plotting.palette import MUTED, OKABE_ITO
from moe_search.plotting.report import Report, ReportFigure, Section, figure_svg

SEARCH_COLOUR = OKABE_ITO[0]
INTACT_COLOUR = OKABE_ITO[5]

FROM_SCRATCH = "Trained from scratch"
BAD_INITIALIZATION = "Bad initialization: specialists under a scrambled map"

HOW_TO_READ = (
    "Means over the seeds ± standard error. Test values are those of the epoch with the least validation loss. "
    "Experts a sample: those with weight above 0. Found: searches that improved on their own samples; committed: "
    "confirmed by the batch after them and put into the gate; refused: not confirmed. Gap: the value the search ended "
    f"at against the least value of all {NUM_EXPERTS}! = {math.factorial(NUM_EXPERTS):,} maps of the very same "
    "problem, (found - optimum) / found. Share of time: searches and their verification in the time of training, "
    "evaluation apart."
)


@dataclass(frozen=True)
class DemoResult:
    """All that the demo measured."""

    settings: DemoSettings
    from_scratch: ScenarioResult
    bad_initialization: ScenarioResult
    device: str
    seconds: float


def caution(seeds: int) -> str:
    """Return what a reader must know of differences over so few seeds."""
    if seeds == 1:
        return "One seed: there is no standard error, and no difference can be told from chance."
    return (
        f"Differences are paired: same data, first weights and batches with and without search. {seeds} seeds describe "
        "what happened here; this is no significance test. We call it a gain or harm if all seeds agree and the mean "
        "difference exceeds two standard errors."
    )


def make_report(result: DemoResult, command: str) -> Report:
    """Return the page; `command` is the command line that made it."""
    settings = result.settings
    scratch, bad = result.from_scratch, result.bad_initialization
    return Report(
        title="moe-search demo",
        lead=(
            "Sparse mixtures of experts, trained on real images with and without permutation search, and every search "
            "held against the exact optimum of its problem."
        ),
        headlines=(headline(bad),),
        picture=_curves(bad),
        sections=(
            _section(
                BAD_INITIALIZATION,
                bad,
                (
                    f"The data is cut into {NUM_EXPERTS} parts (k-means clusters of the images; for Hash, its own "
                    "buckets). Expert j is trained on part j alone, the gate to send part j to the slot of expert j. "
                    "Then the map from slots to experts is scrambled, and all weights are trained on, once with "
                    f"search (every {bad.schedule.period} steps up to step {bad.schedule.until}) and once without. "
                    f"The learning rate is then {settings.tuning_learning_rate:g}, after {settings.learning_rate:g} "
                    "for the specialists: the faster the weights learn, the sooner they make up for a wrong map by "
                    "themselves. The curves stand on top of the page."
                ),
                (_maps(bad),),
            ),
            _section(
                FROM_SCRATCH,
                scratch,
                (
                    "All weights are fresh. With identical fresh experts a permutation only relabels them, so little "
                    "is to be expected of search here. The gates with a plus search every "
                    f"{scratch.schedule.period} steps up to step {scratch.schedule.until}."
                ),
                (_curves(scratch), _maps(scratch)),
            ),
            _task(settings),
            Section("How to read the results", paragraphs=(HOW_TO_READ, caution(settings.seeds))),
        ),
        facts={
            "Command": command,
            "Seeds": ", ".join(map(str, range(settings.seeds))),
            "Device": result.device,
            "Duration": f"{result.seconds:.0f} s in all",
            "Settings": "; ".join(f"{name} {_setting(value)}" for name, value in asdict(settings).items()),
            "Versions": versions("moe-search", "torch", "numpy", "scipy", "numba", "ortools", "scikit-learn"),
        },
    )


def validation_curves(result: ScenarioResult) -> Figure:
    """Draw each sparse gate with and without search; dashed, where the intact specialists stood."""
    by_gate = runs_by_gate(result)
    panels = []
    for gate in SEARCHED:
        curves = [
            LossCurve(name, np.stack([run.losses for run in by_gate[name]]), colour)
            for name, colour in ((gate, MUTED), (f"{gate}+", SEARCH_COLOUR))
        ]
        intact = [each.validation_loss for each in result.intact if each.gate == gate]
        if intact:
            level = np.full((1, curves[0].losses.shape[1]), np.mean(intact))
            curves.append(LossCurve("before scrambling", level, INTACT_COLOUR, dashed=True))
        panels.append(LossPanel(gate, tuple(curves)))
    return loss_curves(panels)


def map_pictures(result: ScenarioResult, seed: int = 0) -> Figure:
    """Draw the maps of the searched gates of one seed: before scrambling if there was any, first and last."""
    panels = []
    for gate in SEARCHED:
        (run,) = (run for run in runs_by_gate(result)[f"{gate}+"] if run.seed == seed)
        intact = [each.expert_map for each in result.intact if (each.gate, each.seed) == (gate, seed)]
        rows = [NamedMap("before scrambling", expert_map) for expert_map in intact]
        rows += [NamedMap("scrambled" if intact else "first", run.first_map), NamedMap("last", run.last_map)]
        panels.append(MapPanel(run.gate, tuple(rows)))
    return expert_maps(panels, NUM_EXPERTS)


def _task(settings: DemoSettings) -> Section:
    examples = load_two_digits(10, 1, 1, canvas=settings.canvas, seed=0).train
    captions = [f"{first} and {second}" for first, second in examples.labels.tolist()]
    return Section(
        "The task",
        paragraphs=(
            f"Two handwritten digits on one canvas of {settings.canvas} x {settings.canvas} pixels, made from the "
            "1,797 real images of scikit-learn. Two tasks: name the digit in the upper left corner and the one in the "
            f"lower right. {settings.num_train:,} canvases for training, {settings.num_validation:,} for validation, "
            f"{settings.num_test:,} for testing; no source image occurs in two of them.",
            f"The model: {NUM_EXPERTS} experts with one hidden layer, a gate, and one linear head for both tasks. "
            f"Top-k uses {EXPERTS_PER_SAMPLE} experts a sample, COMET {EXPERTS_PER_SAMPLE} trees with one map, Hash "
            "one expert, Softmax all of them. The loss is the cross-entropy, mean over samples and tasks.",
        ),
        figures=(
            ReportFigure(
                figure_svg(canvases(examples.images, captions), "examples of canvases with two overlaid digits"),
                "Training canvases of seed 0 and their labels.",
            ),
        ),
    )


def _section(heading: str, result: ScenarioResult, paragraph: str, figures: tuple[ReportFigure, ...]) -> Section:
    return Section(
        heading,
        paragraphs=(paragraph,),
        tables=(results_table(result), searches_table(result)),
        findings=findings(result),
        figures=figures,
        folded=(every_search_table(result),),
    )


def _curves(result: ScenarioResult) -> ReportFigure:
    dashed = " The dashed line is the loss before the map was scrambled." if result.intact else ""
    return ReportFigure(
        figure_svg(validation_curves(result), "validation loss over epochs with and without search"),
        f"Validation loss: the mean over the seeds, and each seed as a thin line.{dashed}",
    )


def _maps(result: ScenarioResult) -> ReportFigure:
    return ReportFigure(
        figure_svg(map_pictures(result), "the expert on every slot, by colour and number"),
        "Which expert sits on which slot, seed 0, in the runs with search.",
    )


def _setting(value: object) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {each}" for name, each in value.items()) + ")"
    return str(value)
