"""The command ``moe-search place``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from moe_search.checks import require_choice, require_integer
from moe_search.cli.arguments import (
    INTERRUPTED,
    Devices,
    Groups,
    Nodes,
    Seed,
    Slots,
    check_output_file,
    cluster_of_arguments,
    command_line,
    one_line_errors,
    part_of,
)

if TYPE_CHECKING:
    from moe_search.plotting import ReportFigure, Table
    from moe_search.problems.placement import ExpertPlacement, Placement
    from moe_search.problems.rebalancing import Rebalancing
    from moe_search.solvers.engine.result import Result


def place(
    loads: Annotated[
        Path,
        typer.Argument(
            help="Loads of experts: .npz with one array or one named load, .npy, .json with lists, or .csv with a line"
            " a layer; shape experts, layers x experts, or windows x layers x experts.",
            metavar="LOADS",
        ),
    ],
    devices: Devices,
    slots: Slots,
    nodes: Nodes = 1,
    groups: Groups = 0,
    previous: Annotated[
        Path | None,
        typer.Option(help="The placement so far: .npz, .json or .yaml of an engine. [default: none]", metavar="FILE"),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="The most migrations: a whole number, or a part of all slots such as 5% or 0.05."),
    ] = None,
    tolerance: Annotated[
        str | None,
        typer.Option(help="As few migrations as keep layers so near the bound, such as 2%. [default: 2%]"),
    ] = None,
    turns: Annotated[
        int, typer.Option(help="Descents for each layer; the result depends on it and on no clock.")
    ] = 100,
    seed: Seed = 0,
    format: Annotated[str, typer.Option(help="vllm, sglang, tensorrt-llm or ascend.")] = "vllm",  # noqa: A002
    first_layer: Annotated[
        int,
        typer.Option(
            help="Number in the model of the first layer of LOADS, where those before have no experts; SGLang and"
            " TensorRT-LLM count them."
        ),
    ] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where the placement goes.", metavar="PATH")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Where a page with pictures goes.", metavar="PATH")] = None,
) -> None:
    """Place experts on devices, and print balance and bound.

    Migrations are printed too: with --previous, experts migrate as little as
    asked for. Balance is that of the loads given: of traffic to come it is
    less. Layers without any load keep their experts and are left out.
    """
    with one_line_errors():
        for path in (loads, previous):
            if path is not None:
                # What is not there is told before anything is imported that takes long.
                path.open("rb").close()
        from moe_search.serving.files import FORMATS, check_suffix, read_loads, read_placement, write_placement

        require_choice("--format", format, FORMATS)
        for name, path in (("--output", output), ("--report", report)):
            if path is not None:
                check_output_file(path, name)
        if output is not None and report is not None and output.resolve() == report.resolve():
            raise ValueError(f"--output and --report must be two files, got {output} for both")
        if output is not None:
            check_suffix(output, format, "--output")  # type: ignore[arg-type]
        if previous is None and (budget, tolerance) != (None, None):
            raise ValueError("--budget and --tolerance need --previous, the placement that experts migrate from")
        if None not in (budget, tolerance):
            raise ValueError("--budget and --tolerance exclude each other, got both")
        for name, number, least in (("--turns", turns, 1), ("--groups", groups, 0), ("--first-layer", first_layer, 0)):
            require_integer(name, number, least)
        require_integer("--seed", seed, 0)
        cluster = cluster_of_arguments(devices, slots, nodes)

        from moe_search.problems.placement import ExpertPlacement, checked_loads, checked_map
        from moe_search.problems.rebalancing import Rebalancing
        from moe_search.serving.eplb import without_idle_layers
        from moe_search.solvers.engine.stop import MaxIterations
        from moe_search.solvers.heuristic.placement_search import PlacementSearch

        load = checked_loads(read_loads(loads))
        active = load.max(axis=1) > 0
        if not active.any():
            raise ValueError(f"{loads} must hold a load above 0, got none")
        numbers = range(first_layer, first_layer + len(load))
        problem: ExpertPlacement | Rebalancing
        before = None
        if previous is None:
            problem = placement = ExpertPlacement(without_idle_layers(load), cluster, groups or None)
        else:
            read = read_placement(previous, numbers if first_layer else None, cluster)
            if previous.suffix.lower() != ".npz" and not first_layer and len(read) > len(load):
                raise ValueError(
                    f"--previous must be of {len(load)} layers, got {len(read)};"
                    " where the first ones have no experts, --first-layer leaves them out"
                )
            old = checked_map("--previous", read, len(load), slots)
            placement = ExpertPlacement(without_idle_layers(load, old), cluster, groups or None)
            if budget is not None:
                problem = Rebalancing(placement, old, budget=_migrations_of("--budget", budget, old.size))
            else:
                near = 0.02 if tolerance is None else part_of("--tolerance", tolerance)
                problem = Rebalancing(placement, old, tolerance=near)
            # Two replicas on a device are mended in the start, but not what the devices bear before.
            whole = old.min() >= 0 and placement.replica_count(old).min() > 0
            before = placement.placed(old if whole else problem.start)
        result = PlacementSearch().solve(problem, MaxIterations(turns * len(load)), seed=seed)
        found = _Placed(problem, placement, before, result, active, numbers)
        table = _table(found)
        if output is not None:
            write_placement(output, result.solution, cluster, format, numbers)  # type: ignore[arg-type]
        if report is not None:
            _write_page(report, loads, found, table)
    from rich.console import Console

    Console().print(table.as_rich())
    for name, path in (("placement", output), ("page", report)):
        if path is not None:
            typer.echo(f"{name} written to {path}")
    if result.status == "interrupted":
        raise typer.Exit(INTERRUPTED)


def _migrations_of(name: str, text: str, slots: int) -> int:
    """Return the migrations that a text allows, one at least: a whole number of them, or a part of the slots."""
    most = int(text) if text.isdecimal() else int(part_of(name, text, "a number of migrations, ") * slots)
    if most == 0:
        raise ValueError(f"{name} must allow one migration at least, got {text} of {slots} slots")
    return most


@dataclass(frozen=True)
class _Placed:
    """A placement that was found: of layers of these numbers, of which some have no load."""

    problem: ExpertPlacement | Rebalancing
    placement: ExpertPlacement
    before: Placement | None
    result: Result
    active: npt.NDArray[np.bool_]
    numbers: range

    @cached_property
    def best(self) -> npt.NDArray[np.float64]:
        """The balance of every layer that its bound allows."""
        return self.placement.load.sum(axis=1) / self.placement.cluster.num_devices / self.placement.load_bounds

    @cached_property
    def migrations(self) -> npt.NDArray[np.int64]:
        """How many experts migrate in every layer."""
        layers = [transfer.layer for transfer in self.result.solution.transfers]
        return np.bincount(layers, minlength=len(self.numbers))


def _table(found: _Placed) -> Table:
    from moe_search.plotting import Table

    placed, before, active = found.result.solution, found.before, found.active
    gap = found.best / placed.balancedness - 1
    most = placed.replica_count.max(axis=1)
    columns: dict[str, tuple[npt.NDArray[Any], Callable[[Any], Any], str]] = {
        "balance": (placed.balancedness, np.mean, ".4f"),
        "best possible": (found.best, np.mean, ".4f"),
        "gap": (gap, np.mean, ".2%"),
        "most replicas": (most, np.max, "d"),
    }
    if before is not None:
        columns = {"balance before": (before.balancedness, np.mean, ".4f")} | columns
        columns["migrations"] = (found.migrations, np.sum, "d")
    rows = [
        (str(found.numbers[layer]), *(format(values[layer], form) for values, _, form in columns.values()))
        for layer in np.flatnonzero(active)
    ]
    rows.append(("all", *(format(of_all(values[active]), form) for values, of_all, form in columns.values())))
    note = "Balance is the mean load of a device over the largest. No placement is above the best possible."
    if not active.all():
        idle = ", ".join(str(found.numbers[layer]) for layer in np.flatnonzero(~active))
        note += f" Left out, as without any load: {idle}."
    return Table("Placement", ("layer", *columns), tuple(rows), rules=(len(rows) - 2,), note=note)


def _write_page(path: Path, loads: Path, found: _Placed, table: Table) -> None:
    from moe_search.plotting import Report, Section, write_report

    placed, before, active = found.result.solution, found.before, found.active
    balance, best = placed.balancedness[active].mean(), found.best[active].mean()
    was = "" if before is None else f", {before.balancedness[active].mean():.4f} before"
    headlines = [f"Mean balance {balance:.4f}{was}; none is above {best:.4f}."]
    folded: tuple[Table, ...] = ()
    if before is not None:
        slots = placed.physical_to_logical.size
        devices = found.placement.cluster.devices_per_node
        sent = [each for each in placed.transfers if each.source >= 0]
        crossing = sum(each.source // devices != each.target // devices for each in sent)
        between = "" if found.placement.cluster.num_nodes == 1 else f", {crossing} of them between nodes"
        part = placed.migrations / slots
        headlines.append(f"{placed.migrations} migrations{between}: {part:.1%} of {slots:,} slots.")
        folded = (_transfers(found),) if placed.migrations else ()
    write_report(
        Report(
            "Placement of experts",
            "Which device holds which expert, and how evenly the devices are loaded. Balance is that of the loads"
            " given: of traffic to come it is less.",
            (
                Section("Devices and layers", figures=_figures(found)),
                Section("Layer by layer", tables=(table,), folded=folded),
            ),
            {
                "command": command_line(),
                "loads": loads.name,
                "problem": repr(found.problem),
                "solver": found.result.solver,
                "seed": str(found.result.seed),
            }
            | dict(found.result.versions),
            tuple(headlines),
        ),
        path,
    )


def _figures(found: _Placed) -> tuple[ReportFigure, ...]:
    from moe_search.plotting import ReportFigure, device_loads, layer_balance, layer_migrations
    from moe_search.plotting.report import figure_svg

    placed, before, active = found.result.solution, found.before, found.active
    maps = {"after": placed} if before is None else {"before": before, "after": placed}
    borne = {name: found.placement.device_loads(each.physical_to_logical)[active] for name, each in maps.items()}
    # Matplotlib leaves out what is no number.
    best, *of_layers = (
        np.where(active, values, np.nan) for values in (found.best, *(each.balancedness for each in maps.values()))
    )
    figures = {
        "Loads of the devices in multiples of the mean: a band holds all layers, a line is their mean.": device_loads(
            **borne
        ),
        "Balance of every layer, and the best that its bound allows.": layer_balance(
            best, **dict(zip(maps, of_layers, strict=True))
        ),
    }
    if before is not None:
        figures["How many experts migrate in every layer."] = layer_migrations(found.migrations)
    for figure in [*figures.values()][1:]:
        # Layers are numbered as in the model.
        figure.axes[0].xaxis.set_major_formatter(lambda place, _: f"{place + found.numbers[0]:g}")
    return tuple(ReportFigure(figure_svg(figure, text), text) for text, figure in figures.items())


def _transfers(found: _Placed) -> Table:
    from moe_search.plotting import Table

    rows = [
        (
            str(found.numbers[each.layer]),
            str(each.expert),
            "-" if each.source < 0 else str(each.source),
            str(each.target),
        )
        for each in found.result.solution.transfers
    ]
    return Table("Migrations", ("layer", "expert", "from device", "to device"), tuple(rows))
