"""The command ``moe-search place``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_search.cli.arguments import check_output_file, one_line_errors

if TYPE_CHECKING:
    import numpy as np

    from moe_search.plotting import Table
    from moe_search.problems.placement import ExpertPlacement, Placement
    from moe_search.problems.rebalancing import Rebalancing
    from moe_search.solvers.engine.result import Result


def place(
    loads: Annotated[
        Path,
        typer.Argument(
            help="Loads of experts: .npz with one array or one named load, .json with lists, or .csv with a line a"
            " layer; shape experts, layers x experts, or windows x layers x experts.",
            metavar="LOADS",
        ),
    ],
    devices: Annotated[int, typer.Option(help="Devices that share the experts of a layer.")],
    slots: Annotated[int, typer.Option(help="Slots of all devices, replicas counted.")],
    nodes: Annotated[int, typer.Option(help="Nodes that the devices stand in.")] = 1,
    groups: Annotated[int, typer.Option(help="Groups of experts that stay on nodes; 0 is none.")] = 0,
    previous: Annotated[
        Path | None,
        typer.Option(help="The placement so far: .npz, .json or .yaml of an engine. [default: none]", metavar="FILE"),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="The most migrations, as a number or a part of all slots such as 5%.")
    ] = None,
    tolerance: Annotated[
        str | None,
        typer.Option(help="As few migrations as keep layers so near the bound, such as 2%. [default: 2%]"),
    ] = None,
    turns: Annotated[
        int, typer.Option(help="Descents for each layer; the result depends on it and on no clock.")
    ] = 100,
    seed: Annotated[int, typer.Option(help="Source of all randomness.")] = 0,
    format: Annotated[str, typer.Option(help="vllm, sglang, tensorrt-llm or ascend.")] = "vllm",  # noqa: A002
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where the placement goes.", metavar="PATH")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Where a page with pictures goes.", metavar="PATH")] = None,
) -> None:
    """Place experts on devices, and print balance and bound.

    Migrations are printed too: with --previous, experts migrate as little as asked for.
    Balance is that of the loads given: of traffic to come it is less.
    """
    with one_line_errors():
        from moe_search.checks import require_choice, require_integer
        from moe_search.serving.files import FORMATS, read_placement, write_placement

        require_choice("--format", format, FORMATS)
        for name, path in (("--output", output), ("--report", report)):
            if path is not None:
                check_output_file(path, name)
        if previous is None and (budget, tolerance) != (None, None):
            raise ValueError("--budget and --tolerance need --previous, the placement that experts migrate from")
        if None not in (budget, tolerance):
            raise ValueError("--budget and --tolerance exclude each other, got both")
        require_integer("--turns", turns)
        require_integer("--slots", slots)
        limits = {"budget": _part("--budget", budget, slots), "tolerance": _part("--tolerance", tolerance, 1)}

        from moe_search.problems.placement import ExpertPlacement
        from moe_search.problems.rebalancing import Rebalancing
        from moe_search.serving.eplb import cluster_of
        from moe_search.solvers.engine.stop import MaxIterations
        from moe_search.solvers.heuristic.placement_search import PlacementSearch

        cluster, kept = cluster_of(slots, groups, nodes, devices)
        placement = ExpertPlacement(_read_loads(loads), cluster, kept)
        layers = len(placement.load)
        problem: ExpertPlacement | Rebalancing = placement
        if previous is not None:
            if limits["budget"] is not None:
                whole = "%" not in (budget or "")
                most = int(limits["budget"]) if whole else int(limits["budget"] * layers)
                problem = Rebalancing(placement, read_placement(previous), budget=most)
            else:
                near = 0.02 if limits["tolerance"] is None else limits["tolerance"]
                problem = Rebalancing(placement, read_placement(previous), tolerance=near)
        result = PlacementSearch().solve(problem, MaxIterations(turns * layers), seed=seed)
        table = _table(problem, placement, result)
        if output is not None:
            write_placement(output, result.solution, cluster, format)  # type: ignore[arg-type]
        if report is not None:
            _write_page(report, loads, problem, placement, result, table)
    from rich.console import Console

    Console().print(table.as_rich())
    for name, path in (("placement", output), ("page", report)):
        if path is not None:
            typer.echo(f"{name} written to {path}")


def _part(name: str, text: str | None, whole: int) -> float | None:
    """Return a number, or the part of `whole` that a percentage is."""
    if text is None:
        return None
    from moe_search.checks import require_number

    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        raise ValueError(f"{name} must be a number or a percentage such as 5%, got {text!r}") from None
    require_number(name, number)
    return number / 100 * whole if text.endswith("%") else number


def _read_loads(path: Path) -> np.ndarray[Any, Any]:
    """Return the loads in a file, whose suffix says how they are written."""
    import json

    import numpy as np

    suffix = path.suffix.lower()
    if suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            name = "load" if "load" in arrays else arrays.files[0]
            if name != "load" and len(arrays.files) > 1:
                raise ValueError(f"{path} must hold one array or one named load, got {sorted(arrays.files)}")
            return arrays[name]
    if suffix not in (".json", ".csv"):
        raise ValueError(f"{path} must end in .npz, .json or .csv")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if suffix == ".csv":
            return np.loadtxt(text.splitlines(), delimiter=",", ndmin=2)
        return np.array(json.loads(text), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no loads: {error}") from error


def _before(problem: ExpertPlacement | Rebalancing) -> Placement | None:
    from moe_search.problems.rebalancing import Rebalancing

    return problem.placement.placed(problem.start) if isinstance(problem, Rebalancing) else None


def _migrations(problem: ExpertPlacement | Rebalancing, placed: Placement) -> list[str]:
    from moe_search.problems.rebalancing import Rebalancing

    if isinstance(problem, Rebalancing):
        return [str(number) for number in problem.migrations(placed.physical_to_logical)]
    return ["-"] * len(placed.physical_to_logical)


def _table(problem: ExpertPlacement | Rebalancing, placement: ExpertPlacement, result: Result) -> Table:
    from moe_search.plotting import Table

    placed, before = result.solution, _before(problem)
    best = placement.load.sum(axis=1) / placement.cluster.num_devices / placement.load_bounds
    moved = _migrations(problem, placed)
    rows = [
        (
            str(layer),
            "-" if before is None else f"{before.balancedness[layer]:.4f}",
            f"{placed.balancedness[layer]:.4f}",
            f"{best[layer]:.4f}",
            f"{100 * (best[layer] / placed.balancedness[layer] - 1):.2f} %",
            str(placed.replica_count[layer].max()),
            moved[layer],
        )
        for layer in range(len(best))
    ]
    rows.append(
        (
            "all",
            "-" if before is None else f"{before.balancedness.mean():.4f}",
            f"{placed.balancedness.mean():.4f}",
            f"{best.mean():.4f}",
            f"{100 * (best / placed.balancedness - 1).mean():.2f} %",
            str(placed.replica_count.max()),
            "-" if before is None else str(placed.migrations),
        )
    )
    return Table(
        "Placement",
        ("layer", "balance before", "balance", "best possible", "gap", "most replicas", "migrations"),
        tuple(rows),
        rules=(len(rows) - 2,),
        note="Balance is the mean load of a device over the largest. No placement is above the best possible.",
    )


def _write_page(
    path: Path,
    loads: Path,
    problem: ExpertPlacement | Rebalancing,
    placement: ExpertPlacement,
    result: Result,
    table: Table,
) -> None:
    from moe_search.plotting import Report, ReportFigure, Section, device_loads, layer_balance, write_report
    from moe_search.plotting.report import figure_svg

    placed, before = result.solution, _before(problem)
    best = placement.load.sum(axis=1) / placement.cluster.num_devices / placement.load_bounds
    maps = {"after": placed} if before is None else {"before": before, "after": placed}
    devices = device_loads(**{name: placement.device_loads(each.physical_to_logical) for name, each in maps.items()})
    layers = layer_balance(best, **{name: each.balancedness for name, each in maps.items()})
    pictures = (
        (devices, "Loads of the devices in multiples of the mean: a band holds all layers, a line is their mean."),
        (layers, "Balance of every layer, and the best that its bound allows."),
    )
    headline = f"Mean balance {placed.balancedness.mean():.4f}; at best {best.mean():.4f} is possible."
    migrations = (
        () if before is None else (f"{placed.migrations} migrations, of {placed.physical_to_logical.size} slots.",)
    )
    write_report(
        Report(
            "Placement of experts",
            "Which device holds which expert, and how evenly the devices are loaded. Balance is that of the loads"
            " given: of traffic to come it is less.",
            (
                Section(
                    "Devices", figures=tuple(ReportFigure(figure_svg(each, text), text) for each, text in pictures)
                ),
                Section("Layers", tables=(table,)),
            ),
            {"loads": loads.name, "problem": repr(problem), "solver": result.solver, "seed": str(result.seed)}
            | dict(result.versions),
            (headline, *migrations),
        ),
        path,
    )
