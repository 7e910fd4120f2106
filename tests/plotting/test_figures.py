from itertools import combinations

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from scipy import stats

from moe_search.plotting.canvases import canvases
from moe_search.plotting.expert_maps import MapPanel, NamedMap, expert_maps
from moe_search.plotting.loss_curves import LossCurve, LossPanel, loss_curves
from moe_search.plotting.palette import expert_colours
from moe_search.plotting.placements import draw_trade_off, layer_migrations, over_rebalances, trade_off
from moe_search.plotting.report import figure_svg
from moe_search.plotting.routing import co_activation, expert_loads
from moe_search.plotting.search_statistics import (
    distribution_curves,
    fitness_distances,
    line_style,
    walk_autocorrelations,
)


def test_loss_curves_draw_the_mean_and_each_seed():
    losses = np.array([[3.0, 2.0, 1.0], [1.0, 1.0, 0.0]])
    figure = loss_curves([LossPanel("one", (LossCurve("a", losses, "#112233"),)), LossPanel("two", ())])
    first, second = figure.axes
    drawn = [line.get_ydata().tolist() for line in first.lines]
    assert drawn == [[3.0, 2.0, 1.0], [1.0, 1.0, 0.0], [2.0, 1.5, 0.5]]
    assert first.get_legend_handles_labels()[1] == ["a"]
    assert not second.lines
    # The legend stands below the axis, where no curve runs through it.
    figure.canvas.draw()
    assert first.get_legend().get_window_extent().y1 < first.xaxis.label.get_window_extent().y0


def test_expert_maps_put_number_and_colour_of_the_expert_on_each_slot():
    experts = np.array([2, 0, 1, 3])
    figure = expert_maps([MapPanel("run", (NamedMap("before", experts), NamedMap("after", experts[::-1])))], 4)
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.texts] == list("20133102")
    colours = [to_hex(p.get_facecolor()) for p in axis.patches if isinstance(p, FancyBboxPatch)]
    assert colours == [expert_colours(4)[e].lower() for e in (2, 0, 1, 3, 3, 1, 0, 2)]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["before", "after"]


def test_rows_of_one_panel_must_agree():
    rows = (NamedMap("a", np.arange(4)), NamedMap("b", np.arange(6)))
    with pytest.raises(ValueError, match="same number of slots"):
        expert_maps([MapPanel("run", rows)], 6)
    with pytest.raises(ValueError, match=r"rows must hold experts 0 .. 3, got 0 .. 5"):
        expert_maps([MapPanel("run", rows[1:])], 4)


@pytest.mark.parametrize("draw", [lambda: loss_curves([]), lambda: expert_maps([], 4)])
def test_nothing_to_draw(draw):
    with pytest.raises(ValueError, match="at least one panel"):
        draw()


def test_canvases_show_every_image():
    images = np.random.default_rng(0).random((3, 5, 5)).astype(np.float32)
    figure = canvases(images, ["1, 2", "3, 4", "5, 6"])
    assert [axis.get_xlabel() for axis in figure.axes] == ["1, 2", "3, 4", "5, 6"]
    assert np.array_equal(figure.axes[1].images[0].get_array(), images[1])
    with pytest.raises(ValueError, match="as many"):
        canvases(images, ["1, 2"])


def test_expert_colours_repeat():
    assert len(expert_colours(11)) == 11
    assert len(set(expert_colours(8))) == 8


def test_svg_is_one_described_element_with_real_text():
    svg = figure_svg(loss_curves([LossPanel("a panel", ())]), "a <panel>")
    assert svg.startswith('<svg role="img" aria-label="a &lt;panel&gt;"')
    assert svg.rstrip().endswith("</svg>")
    assert ">a panel</text>" in svg


def test_expert_loads_draw_shares_beside_the_even_one():
    # Tensors, as a `RoutingSummary` has them.
    figure = expert_loads(torch.tensor([30, 0, 10]), torch.tensor([6.0, 0.0, 2.0]))
    (axis,) = figure.axes
    heights = [[bar.get_height() for bar in bars] for bars in axis.containers]
    assert heights == [[0.75, 0.0, 0.25], [0.75, 0.0, 0.25]]
    assert axis.lines[0].get_ydata()[0] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("load", "importance", "fault"),
    [
        ([], [], "at least one expert"),
        ([1, 2], [1.0], r"got \(2,\) and \(1,\)"),
        ([1, -1], [1.0, 1.0], r"load must not be negative, nor 0 for all experts, got \[1.0, -1.0\]"),
        ([1, 1], [0.0, 0.0], "importance must not be negative, nor 0"),
    ],
)
def test_loads_that_are_none(load, importance, fault):
    with pytest.raises(ValueError, match=fault):
        expert_loads(load, importance)


def test_co_activation_draws_shares_of_the_rows_and_leaves_dead_experts_empty():
    figure = co_activation([[4, 0, 1], [0, 0, 0], [1, 0, 2]])
    axis = figure.axes[0]
    shares = np.ma.filled(axis.images[0].get_array().astype(float), np.nan)
    np.testing.assert_array_equal(shares, [[1.0, 0.0, 0.25], [np.nan] * 3, [0.5, 0.0, 1.0]])
    assert [text.get_text() for text in axis.texts] == ["100", "0", "25", "50", "0", "100"]
    assert not co_activation(np.eye(17)).axes[0].texts


@pytest.mark.parametrize(
    ("counts", "fault"),
    [
        ([[1, 2]], r"counts must be square, at least one expert, got shape \(1, 2\)"),
        ([[1, 2], [2, 3]], "counts must lie between 0 and the diagonal entry of their row"),
        ([[1, -1], [-1, 3]], "counts must lie between 0 and the diagonal entry of their row"),
    ],
)
def test_counts_that_are_none(counts, fault):
    with pytest.raises(ValueError, match=fault):
        co_activation(counts)


def test_what_came_of_policies_is_drawn_where_it_is():
    figure = trade_off(static=[("", 0.0, 0.8)], tolerance=[("1%", 0.08, 0.9), ("5%", 0.02, 0.89)])
    (axis,) = figure.axes
    assert [line.get_xydata().tolist() for line in axis.lines] == [[[0.0, 0.8]], [[0.08, 0.9], [0.02, 0.89]]]
    assert [text.get_text() for text in axis.texts] == ["1%", "5%"]
    figure.canvas.draw()
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0%", "0.1%", "1%", "10%", "100%"]
    # Policies of two kinds that come to the same: their limits stand apart all the same.
    figure = trade_off(tolerance=[("10%", 0.0076, 0.905), ("1%", 0.1, 0.94)], budget=[("1%", 0.0072, 0.908)])
    figure.canvas.draw()
    first, _, second = (text.get_window_extent() for text in figure.axes[0].texts)
    assert not first.overlaps(second)
    # So do those of one family on axes as narrow as the demo's, in which each migrates twice as much as the one before.
    figure = Figure(figsize=(3.4, 3.5), layout="constrained")
    axis = figure.subplots()
    searched = [("1%", 0.0607, 0.880), ("2%", 0.0343, 0.881), ("5%", 0.0154, 0.874), ("10%", 0.0072, 0.864)]
    draw_trade_off(axis, {"static": [("", 0.0, 0.753)], "EPLB anew": [("", 0.792, 0.879)], "tolerance": searched})
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in axis.texts]
    assert [text.get_text() for text in axis.texts] == [limit for limit, *_ in searched]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    (axis,) = over_rebalances("balance", static=[0.9, 0.8], best=[1.0, 1.0]).axes
    assert [line.get_xydata().tolist() for line in axis.lines] == [[[1, 0.9], [2, 0.8]], [[1, 1.0], [2, 1.0]]]
    (axis,) = layer_migrations([2, 0, 3]).axes
    assert [bar.get_height() for bar in axis.patches] == [2, 0, 3]


def test_distributions_are_drawn_as_steps_up_to_the_longest():
    short, long = stats.ecdf([1.0, 2.0]).cdf, stats.ecdf(stats.CensoredData([1.0, 3.0], right=[8.0, 8.0])).cdf
    (axis,) = distribution_curves({"a": short, "b": long}, "iterations").axes
    drawn = [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in axis.lines]
    assert drawn == [([0, 1, 2, 8], [0, 0.5, 1, 1]), ([0, 1, 3, 8, 8], [0, 0.25, 0.5, 0.5, 0.5])]
    assert axis.get_xlabel() == "iterations"
    names = "IteratedLocalSearch", "SimulatedAnnealing", "random permutations"
    named = distribution_curves(dict.fromkeys(names, short))
    named.draw_without_rendering()
    assert named.legends[0].get_window_extent().width <= named.bbox.width
    styles = [tuple(line_style(number).values()) for number in range(3 * 7)]
    assert len(set(styles)) == len(styles)


def test_values_by_distance_and_autocorrelations():
    (axis,) = fitness_distances([5, 7], [0, 3]).axes
    assert axis.lines[0].get_xydata().tolist() == [[0, 5], [3, 7]]
    assert all(float(tick).is_integer() for tick in axis.get_xticks())
    (axis,) = walk_autocorrelations({"a": [1.0, 0.5], "b": [1.0, 0.9]}).axes
    assert [line.get_ydata()[1] for line in axis.lines] == pytest.approx([0.5, 0.9, np.exp(-1)])
    with pytest.raises(ValueError, match=r"one shape \(solutions,\), at least one, got \(2,\) and \(1,\)"):
        fitness_distances([1, 2], [0])
    for draw, message in ((distribution_curves, "at least one distribution"), (walk_autocorrelations, "one walk")):
        with pytest.raises(ValueError, match=message):
            draw({})
