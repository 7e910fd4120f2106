"""Figures of a scenario."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from moe_search.bench.demo.model import NUM_EXPERTS, SEARCHED
from moe_search.bench.demo.scenarios import ScenarioResult
from moe_search.bench.demo.tables import runs_by_gate
from moe_search.plotting.expert_maps import MapPanel, NamedMap, expert_maps
from moe_search.plotting.loss_curves import LossCurve, LossPanel, loss_curves
from moe_search.plotting.palette import MUTED, OKABE_ITO

SEARCH_COLOUR = OKABE_ITO[0]
INTACT_COLOUR = OKABE_ITO[5]


def validation_curves(result: ScenarioResult) -> Figure:
    """Draw each sparse gate with and without search; dashed, where the intact specialists stood."""
    by_gate = runs_by_gate(result)
    panels = []
    for gate in SEARCHED:
        curves = [
            LossCurve(name, np.stack([run.validation_losses for run in by_gate[name]]), colour)
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
