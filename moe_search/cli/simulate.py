"""The command ``moe-search simulate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy.typing as npt
import typer

from moe_search.checks import require_integer, require_number
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
    from moe_search.problems.placement import Cluster
    from moe_search.serving.simulation import Simulation


def simulate(
    trace: Annotated[
        Path,
        typer.Argument(
            help="Loads of experts in windows of traffic: .npz with one array or one named load, .npy or .json; shape"
            " windows x layers x experts.",
            metavar="TRACE",
        ),
    ],
    devices: Devices,
    slots: Slots,
    nodes: Nodes = 1,
    groups: Groups = 0,
    merge: Annotated[
        int, typer.Option(help="Windows of the trace that make one, where it is finer than the rebalances.")
    ] = 1,
    last: Annotated[int, typer.Option(help="Windows that are planned with at a rebalance.")] = 1,
    tolerance: Annotated[
        list[str] | None,
        typer.Option(help="Tolerance to try, such as 2%; repeatable. [default: 1%, 2%, 5%, 10%]", metavar="PERCENTAGE"),
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            help="Part of all slots that may migrate at a rebalance; repeatable. [default: 1%, 5%]",
            metavar="PERCENTAGE",
        ),
    ] = None,
    average: Annotated[
        float,
        typer.Option(
            help="Tolerances are tried with a moving average of all windows seen, too, where a window counts this much"
            " one rebalance later; 0 leaves that out."
        ),
    ] = 0.8,
    turns: Annotated[int, typer.Option(help="Descents for each layer at a rebalance.")] = 30,
    seed: Seed = 0,
    report: Annotated[Path | None, typer.Option(help="Where a page with pictures goes.", metavar="PATH")] = None,
) -> None:
    """Play a trace of traffic through under several policies.

    After every window the placement is rebalanced, and judged on the next
    one. Printed are balance and migrations; choose the tolerance by them.
    """
    with one_line_errors():
        trace.open("rb").close()
        for name, number, least in (
            ("--groups", groups, 0),
            ("--merge", merge, 1),
            ("--last", last, 1),
            ("--turns", turns, 1),
            ("--seed", seed, 0),
        ):
            require_integer(name, number, least)
        if require_number("--average", average) >= 1:
            raise ValueError(f"--average must be a number below 1, got {average:g}")
        tolerances = [part_of("--tolerance", text) for text in tolerance or ("1%", "2%", "5%", "10%")]
        budgets = [part_of("--budget", text) for text in budget or ("1%", "5%")]
        if report is not None:
            check_output_file(report, "--report")
        cluster = cluster_of_arguments(devices, slots, nodes)

        from moe_search.serving.files import read_loads
        from moe_search.serving.simulation import Policy, simulate

        policies = [Policy("static"), Policy("eplb", last=last), Policy("search", last=last)]
        policies += [Policy(tolerance=each, last=last) for each in tolerances]
        policies += [Policy(budget=each, last=last) for each in budgets]
        if average:
            policies += [Policy(tolerance=each, last=None, decay=average) for each in tolerances]
        from rich.console import Console

        try:
            with Console(stderr=True).status(f"Playing {len(policies)} policies"):
                played = simulate(_merged(read_loads(trace), merge), cluster, policies, groups or None, turns, seed)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        if report is not None:
            _write_page(report, trace, played, cluster, merge)
    console = Console()
    console.print(played.table().as_rich())
    console.print(*played.advice(), sep="\n", style="bold", highlight=False)
    if report is not None:
        typer.echo(f"page written to {report}")


def _merged(loads: npt.NDArray[Any], windows: int) -> npt.NDArray[Any]:
    """Return loads of which so many windows are added up to one; those that are left at the end are left out."""
    if loads.ndim != 3:
        return loads
    whole = len(loads) // windows
    if len(loads) and not whole:
        raise ValueError(f"--merge must be at most the {len(loads)} windows of the trace, got {windows}")
    return loads[: whole * windows].reshape(whole, windows, *loads.shape[1:]).sum(axis=1)


def _write_page(path: Path, trace: Path, played: Simulation, cluster: Cluster, merge: int) -> None:
    from moe_search.installation import package_versions
    from moe_search.plotting import Report, ReportFigure, Section, over_rebalances, trade_off, write_report
    from moe_search.plotting.report import figure_svg

    def drawn(figure: Any, text: str) -> ReportFigure:
        return ReportFigure(figure_svg(figure, text), text)

    followed = {
        str(each.policy): each
        for each in played.outcomes
        if each.policy.algorithm != "search" or each is played.advised
    }
    balance = {name: each.balance for name, each in followed.items()} | {"had it been known": played.best}
    moved = {name: 100 * each.migrations / (played.num_layers * played.num_slots) for name, each in followed.items()}
    together = "" if merge == 1 else f", {merge} windows in one"
    write_report(
        Report(
            "Which policy for this traffic?",
            "After every window of the trace the experts are placed anew by each policy, and the placement is judged on"
            " the window after, which it has not seen. Balance is the mean load of a device over the largest.",
            (
                Section(
                    "Policies",
                    (
                        "A tolerance lets a layer be that far above its bound before experts migrate; a budget is the"
                        " part of all slots that may migrate at a rebalance. EPLB and the search anew forget what was"
                        " before. What was planned flatters: it is the balance of the windows that were planned with.",
                        "A moving average plans with all windows seen, of which older ones count less. On steady"
                        " traffic it takes chance out of the loads; where traffic drifts it lags behind.",
                    ),
                    (played.table(),),
                ),
                Section(
                    "Window by window",
                    figures=(
                        drawn(
                            over_rebalances("balance on the next window", **balance), "Balance after every rebalance."
                        ),
                        drawn(over_rebalances("slots moved, %", **moved), "Slots whose experts migrate at it."),
                    ),
                ),
            ),
            {
                "command": command_line(),
                "trace": f"{trace.name}{together}: {played.num_layers} layers, {len(played.best)} rebalances",
                "cluster": repr(cluster),
            }
            | package_versions(),
            played.advice(),
            drawn(
                trade_off(**played.families()),
                "Balance on the next window against the slots that migrate: up and to the left is better.",
            ),
        ),
        path,
    )
