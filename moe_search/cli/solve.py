"""The command ``moe-search solve``."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_search.cli.arguments import check_output_file, one_line_errors

if TYPE_CHECKING:
    from moe_search.problems.quadratic import QuadraticAssignment
    from moe_search.solvers.engine.result import Result
    from moe_search.solvers.engine.solver import Solver

LONGEST_PRINTED_PERMUTATION = 40


def solve(
    file: Annotated[Path, typer.Argument(help="A problem in QAPLIB's .dat format.", metavar="FILE.dat")],
    time: Annotated[float, typer.Option(help="Seconds the solver may take.")] = 2.0,
    solver: Annotated[
        str,
        typer.Option(
            help="auto, or a solver such as tabu-search or cp-sat; an unknown name lists them."
            " multi-start: four tabu searches side by side."
        ),
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Source of all randomness.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Where the result goes as JSON.", metavar="PATH")] = None,
) -> None:
    """Solve a quadratic assignment problem and print value, bound and gap."""
    with one_line_errors():
        if not 0 < time < math.inf:
            raise ValueError(f"--time must be a positive number of seconds, got {time:g}")
        if seed < 0:
            raise ValueError(f"--seed must be 0 or more, got {seed}")
        chosen = solver_named(solver)
        if json is not None:
            check_output_file(json, "--json")
        from moe_search import solve as solve_problem
        from moe_search.problems.qaplib import read_qaplib
        from moe_search.solvers.engine.stop import MaxRuntime

        problem = read_qaplib(file)
        result = solve_problem(problem, chosen, MaxRuntime(time), seed=seed)
        if json is not None:
            json.write_text(result.to_json() + "\n", encoding="utf-8")
    _print_result(file, problem, result, json)


def solver_named(name: str) -> Solver | None:
    """Return the solver of a name of the command line; None lets `moe_search.solve` choose."""
    if name == "auto":
        return None
    from moe_search import solvers
    from moe_search.checks import require_choice

    kinds = solver_kinds()
    require_choice("--solver", name, ("auto", *kinds))
    kind = kinds[name]
    return kind(solvers.TabuSearch()) if kind is solvers.MultiStart else kind()


def solver_kinds() -> dict[str, Any]:
    """Return the classes of the solvers by their names on the command line: TabuSearch is tabu-search."""
    from moe_search import solvers

    public = {name: getattr(solvers, name) for name in dir(solvers)}
    return {
        re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower(): kind
        for name, kind in public.items()
        if issubclass(kind, solvers.Solver) and kind is not solvers.Solver
    }


def _print_result(file: Path, problem: QuadraticAssignment, result: Result, json: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    rows = {
        "problem": f"{file.name}, {type(problem).__name__} of size {problem.size}",
        "value": f"{result.value:,}",
        "bound": "none" if result.bound is None else f"{result.bound:,}",
        "gap": "unknown" if result.gap is None else f"{100 * result.gap:.3f} % of the value",
        "status": result.status,
        "iterations": f"{result.iterations:,}",
        "runtime": f"{result.runtime:.3f} s",
        "solver": result.solver,
        "seed": "none" if result.seed is None else str(result.seed),
    }
    if problem.size <= LONGEST_PRINTED_PERMUTATION:
        rows["permutation"] = " ".join(map(str, result.permutation.tolist()))
    if json is not None:
        rows["written to"] = str(json)
    for name, text in rows.items():
        table.add_row(name, Text(text))
    Console().print(table)
