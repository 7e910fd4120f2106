"""The page of the demo: what came out, what was done, and how to repeat it."""

from __future__ import annotations

import math
from dataclasses import asdict

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from moe_search.bench.datasets.two_images import load_two_digits
from moe_search.bench.demo import devices, neurons
from moe_search.bench.demo.scenarios import ScenarioResult
from moe_search.bench.demo.settings import SEARCHED, DemoSettings
from moe_search.bench.demo.summary import (
    FROM_FRESH_WEIGHTS,
    DemoResult,
    headlines,
    summary_table,
)
from moe_search.bench.demo.tables import (
    every_search_table,
    findings,
    results_table,
    runs_by_gate,
    searches_table,
    slots_sentence,
)
from moe_search.bench.experiments.two_image_model import EXPERTS_PER_SAMPLE, NUM_EXPERTS
from moe_search.bench.machine_facts import versions
from moe_search.plotting.canvases import canvases
from moe_search.plotting.expert_maps import MapPanel, NamedMap, expert_maps
from moe_search.plotting.loss_curves import LossCurve, LossPanel, draw_losses, loss_curves
from moe_search.plotting.palette import MUTED, OKABE_ITO, STYLE
from moe_search.plotting.placements import draw_trade_off
from moe_search.plotting.report import Report, ReportFigure, Section, figure_svg

SEARCH_COLOUR = OKABE_ITO[0]
INTACT_COLOUR = OKABE_ITO[5]

SHOWN_GATE = "Top-k"
"""The gate whose curves stand on top of the page."""

HOW_TO_READ = (
    "Means over the seeds ± standard error. Test values are those of the epoch with the least validation loss. "
    "Experts a sample: those with weight above 0. Found: searches that improved on their own samples; committed: "
    "confirmed by the batch after them and put into the gate; refused: not confirmed. Gap: the value the search ended "
    f"at against the least value of all {NUM_EXPERTS}! = {math.factorial(NUM_EXPERTS):,} maps of the very same "
    "problem, (found - optimum) / found. Share of time: searches and their verification in the time of training, "
    "evaluation apart."
)


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
    return Report(
        title="moe-search demo",
        lead=(
            "The discrete choices of a sparse mixture of experts, each made by search: which expert sits in which "
            "slot of the gate, which device holds which expert, and which neurons form an expert. Beside each answer "
            "stands the optimum, or a bound that no answer can be better than."
        ),
        headlines=headlines(result),
        picture=ReportFigure(
            figure_svg(
                overview(result),
                "three charts: validation loss of a gate after its map was scrambled, with and without search; "
                "balance of devices against the slots that migrate, by policy; accuracy of a split network over the "
                "experts that run, split at random and by search",
            ),
            f"Left: {SHOWN_GATE} with scrambled specialists, the mean over the seeds and each seed as a thin line. "
            "Middle: up and to the left is better. Right: a dense network split into experts.",
        ),
        sections=(
            Section("Gains and none", tables=(summary_table(result),)),
            _scrambled(result.bad_initialization, settings),
            _devices(result.devices),
            _neurons(result.neurons),
            _from_scratch(result.from_scratch),
            _task(settings),
            Section("How to read the results of slots", paragraphs=(HOW_TO_READ, caution(settings.seeds))),
        ),
        facts={
            "Command": command,
            "Seeds": ", ".join(map(str, range(settings.seeds))),
            "Device": result.device,
            "Duration": f"{result.seconds:.0f} s in all",
            "Settings": "; ".join(f"{name} {_setting(value)}" for name, value in asdict(settings).items()),
            "Trace": f"{result.devices.trace.source}; MIT licence, (c) 2023 DeepSeek",
            "Versions": versions("moe-search", "torch", "numpy", "scipy", "numba", "ortools", "scikit-learn"),
        },
    )


def overview(result: DemoResult) -> Figure:
    """Draw one chart of each part: a gate after its map was scrambled, the policies of devices, the split network."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.2, 3.5), layout="constrained")
        slots, balance, accuracy = figure.subplots(1, 3)
        draw_losses(slots, LossPanel("Slots: loss", _curves_of(result.bad_initialization, SHOWN_GATE)))
        draw_trade_off(balance, devices.trade_off_families(result.devices))
        balance.set_title("Devices: balance on the next window", loc="left", fontweight="bold", fontsize=10)
        balance.set_xlabel("slots that migrate at a rebalance")
        balance.set_ylabel("")
        balance.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.22), borderaxespad=0)
        split = LossPanel("Neurons: accuracy", neurons.accuracy_curves(result.neurons))
        draw_losses(accuracy, split, f"experts of {neurons.EXPERTS} that run")
    return figure


def validation_curves(result: ScenarioResult) -> Figure:
    """Draw each sparse gate with and without search; dashed, where the intact specialists stood."""
    return loss_curves([LossPanel(gate, _curves_of(result, gate)) for gate in SEARCHED])


def _curves_of(result: ScenarioResult, gate: str) -> tuple[LossCurve, ...]:
    by_gate = runs_by_gate(result)
    curves = [
        LossCurve(name, np.stack([run.losses for run in by_gate[name]]), colour)
        for name, colour in ((gate, MUTED), (f"{gate}+", SEARCH_COLOUR))
    ]
    intact = [each.validation_loss for each in result.intact if each.gate == gate]
    if intact:
        level = np.full((1, curves[0].losses.shape[1]), np.mean(intact))
        curves.append(LossCurve("before scrambling", level, INTACT_COLOUR, dashed=True))
    return tuple(curves)


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


def _scrambled(result: ScenarioResult, settings: DemoSettings) -> Section:
    return _slots_section(
        "Slots: specialists under a scrambled map",
        result,
        (
            f"The data is cut into {NUM_EXPERTS} parts (k-means clusters of the images; for Hash, its own buckets). "
            "Expert j is trained on part j alone, the gate to send part j to the slot of expert j. Then the map from "
            "slots to experts is scrambled, and all weights are trained on, once with search (every "
            f"{result.schedule.period} steps up to step {result.schedule.until}) and once without. The learning rate "
            f"is then {settings.tuning_learning_rate:g}, after {settings.learning_rate:g} for the specialists: the "
            "faster the weights learn, the sooner they make up for a wrong map by themselves.",
        ),
    )


def _from_scratch(result: ScenarioResult) -> Section:
    return _slots_section(
        "Slots: trained from scratch",
        result,
        (
            slots_sentence(result, FROM_FRESH_WEIGHTS),
            "All weights are fresh. With identical fresh experts a permutation only relabels them, so little is to be "
            f"expected of search here. The gates with a plus search every {result.schedule.period} steps up to step "
            f"{result.schedule.until}.",
        ),
    )


def _devices(result: devices.DevicesResult) -> Section:
    tasks, windows, layers, experts = result.trace.counts.shape
    cluster = devices.CLUSTER
    return Section(
        "Devices: real traffic replayed",
        paragraphs=(
            f"The traffic is what DeepSeek-V2-Lite chose for real texts: {layers} layers of {experts} experts, "
            f"{tasks} tasks ({', '.join(result.trace.tasks)}) one after the other, {windows} windows of 512 tokens "
            f"each. {cluster.num_devices} devices hold {cluster.slots_per_device} experts of a layer each, so that "
            f"some have replicas. After every window a policy plans with the last {devices.LAST} and is judged on the "
            "next, which it has not seen. EPLB's algorithm starts anew each time; a tolerance lets a layer be that "
            "far above its bound before an expert migrates.",
            devices.rebalanced_sentence(result.rebalanced),
        ),
        tables=(devices.policies_table(result),),
        findings=(devices.steady_sentence(result),),
        figures=(
            ReportFigure(
                figure_svg(
                    devices.loads_picture(result.rebalanced),
                    "load of the devices over their mean, falling before the rebalance and even after it",
                ),
                f"Devices of a layer in the last {devices.LAST} windows, before and after a rebalance within "
                f"{devices.TOLERANCE:.0%} of the bound: a band holds all layers, the line is their mean. The balance "
                "on windows not seen stands on top of the page.",
            ),
        ),
    )


def _neurons(result: neurons.NeuronsResult) -> Section:
    picture = loss_curves([neurons.lost_panel(result)], "part lost", f"experts of {neurons.EXPERTS} that run")
    return Section(
        "Neurons: a dense network made a mixture",
        paragraphs=(
            f"A network of {neurons.HIDDEN} hidden neurons learns the 1,797 digits of scikit-learn, 30 % of them kept "
            f"for testing. Its neurons are then divided among {neurons.EXPERTS} equal experts, and a linear router "
            "tells from the image which ones to run; the others give their mean. Nothing is trained after the split. "
            "The mass of a neuron is the square of what it adds to the output beyond its mean; the bound is what is "
            "lost if each image could choose its neurons one by one.",
        ),
        tables=(neurons.splits_table(result),),
        findings=(neurons.enough_sentence(result),),
        figures=(
            ReportFigure(
                figure_svg(
                    picture, "mass of the neurons lost over the experts that run, at random, by search, and the bound"
                ),
                "The mass of the neurons lost on training images, and the least that any split loses.",
            ),
        ),
    )


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


def _slots_section(heading: str, result: ScenarioResult, paragraphs: tuple[str, ...]) -> Section:
    return Section(
        heading,
        paragraphs=paragraphs,
        tables=(results_table(result), searches_table(result)),
        findings=findings(result),
        figures=(_curves(result), _maps(result)),
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
