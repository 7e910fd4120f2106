"""The command ``moe-search solve``."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_search.checks import require_choice, require_n_jobs
from moe_search.cli.arguments import INTERRUPTED, Seed, check_output_file, one_line_errors

if TYPE_CHECKING:
    from moe_search.problems.permutation_problem import Permutation, PermutationProblem
    from moe_search.solvers.engine.result import Result
    from moe_search.solvers.engine.solver import Solver

LONGEST_PRINTED_PERMUTATION = 40


def solve(
    file: Annotated[
        Path,
        typer.Argument(
            help="A problem: .dat of QAPLIB, .npz with the arrays of a problem by their names, such as cost, or flow"
            " and distance, or .csv with the costs of a linear assignment, a line a slot.",
            metavar="FILE",
        ),
    ],
    time: Annotated[float, typer.Option(help="Seconds the solver may take.")] = 2.0,
    target: Annotated[float | None, typer.Option(help="Stop earlier, once the value is this or less.")] = None,
    solver: Annotated[
        str,
        typer.Option(
            help="auto, or a solver such as tabu-search (or TabuSearch) or cp-sat; an unknown name lists them."
            " multi-start: four tabu searches side by side."
        ),
    ] = "auto",
    seed: Seed = 0,
    initial: Annotated[
        Path | None,
        typer.Option(
            help="Where to start: .json that --json wrote, .sln of QAPLIB, or .csv with the seat of every slot, counted"
            " from 0. [default: drawn by the seed]",
            metavar="PATH",
        ),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Where the result goes as JSON.", metavar="PATH")] = None,
    display: Annotated[bool, typer.Option("--display", help="Show progress while the solver runs.")] = False,
    jobs: Annotated[
        int,
        typer.Option(
            help="Threads to use; -1 for one a processor. A heuristic runs once on each, with seeds of its own."
        ),
    ] = 1,
) -> None:
    """Solve a problem and print value, bound and gap.

    Ctrl-C ends the run with the best that was found, and exit code 130.
    """
    with one_line_errors():
        if not 0 < time < math.inf:
            raise ValueError(f"--time must be a positive number of seconds, got {time:g}")
        if target is not None and math.isnan(target):
            raise ValueError("--target must be a number, got nan")
        if seed < 0:
            raise ValueError(f"--seed must be 0 or more, got {seed}")
        require_n_jobs(jobs, "--jobs")
        if json is not None:
            check_output_file(json, "--json")
        for path in (file, initial):
            if path is not None:
                # What is not there is told before anything is imported that takes long.
                path.open("rb").close()
        chosen = solver_named(solver)
        from moe_search import solve as solve_problem
        from moe_search.problems.problem_files import read_problem
        from moe_search.solvers.engine.stop import AnyOf, MaxRuntime, TargetValue

        problem = read_problem(file)
        start = None if initial is None else _read_solution(initial, problem)
        stop = MaxRuntime(time) if target is None else AnyOf(MaxRuntime(time), TargetValue(target))
        result = solve_problem(problem, chosen, stop, seed=seed, initial=start, display=display, n_jobs=jobs)
        if json is not None:
            json.write_text(result.to_json() + "\n", encoding="utf-8")
    _print_result(file, problem, result, json)
    if result.status == "interrupted":
        raise typer.Exit(INTERRUPTED)


def solver_named(name: str) -> Solver | None:
    """Return the solver of a name of the command line; None lets `moe_search.solve` choose."""
    if name == "auto":
        return None
    from moe_search import solvers

    kinds = solver_kinds()
    name = _command_line_name(name)
    require_choice("--solver", name, ("auto", *kinds))
    kind = kinds[name]
    return kind(solvers.TabuSearch()) if kind is solvers.MultiStart else kind()


def solver_kinds() -> dict[str, Any]:
    """Return the classes of the solvers by their names on the command line: TabuSearch is tabu-search."""
    from moe_search import solvers

    public = {name: getattr(solvers, name) for name in dir(solvers)}
    return {
        _command_line_name(name): kind
        for name, kind in public.items()
        if issubclass(kind, solvers.Solver) and kind is not solvers.Solver
    }


def _command_line_name(name: str) -> str:
    """Return the name of a class as it is written on the command line, which may be so already."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()


def _read_solution(path: Path, problem: PermutationProblem) -> Permutation:
    """Return the permutation in a file, whose suffix says how it is written."""
    import numpy as np

    from moe_search.problems.qaplib import read_qaplib_solution
    from moe_search.problems.quadratic import QuadraticAssignment
    from moe_search.solvers.engine.result import Result

    suffix = path.suffix.lower()
    if suffix == ".sln":
        if not isinstance(problem, QuadraticAssignment):
            raise ValueError(f"--initial must not be a .sln for a {type(problem).__name__}, only for a QAPLIB instance")
        return read_qaplib_solution(path, problem)[1]
    if suffix not in (".json", ".csv"):
        raise ValueError(f"--initial must end in .json, .sln or .csv, got {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if suffix == ".json":
            return problem.check_solution(Result.from_json(text).permutation, "--initial")
        return problem.check_solution(np.array([int(word) for word in text.replace(",", " ").split()]), "--initial")
    except (RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no solution: {error}") from error


def _print_result(file: Path, problem: PermutationProblem, result: Result, json: Path | None) -> None:
    from moe_search.solvers.engine.result import format_gap, format_number

    rows = {
        "problem": f"{file.name}: {problem!r}",
        "value": format_number(result.value),
        "bound": "none" if result.bound is None else format_number(result.bound),
        "gap": format_gap(result.gap) if result.gap is None else f"{format_gap(result.gap)} of the value",
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
    # A line each, however long: what stands in a pipe is not wrapped.
    for name, text in rows.items():
        typer.echo(f"{name:<11} {text}")
