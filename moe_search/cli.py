"""The command line: ``moe-search demo``, ``solve``, ``bench``, ``experiment`` and ``report``."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from moe_search.problems.quadratic import QuadraticAssignment
    from moe_search.solvers.engine.result import Result
    from moe_search.solvers.engine.solver import Solver

# Name on the command line -> class; "auto" is the choice of `moe_search.solve`.
SOLVERS = {
    "auto": "",
    "local-search": "LocalSearch",
    "iterated-local-search": "IteratedLocalSearch",
    "tabu-search": "TabuSearch",
    "simulated-annealing": "SimulatedAnnealing",
    "multi-start": "MultiStart",
    "frank-wolfe": "FrankWolfe",
    "branch-and-bound": "BranchAndBound",
    "enumeration": "Enumeration",
    "cp-sat": "CpSat",
    "hungarian": "Hungarian",
    "min-cost-flow": "MinCostFlow",
    "transport": "Transport",
}
LONGEST_PRINTED_PERMUTATION = 40

app = typer.Typer(
    help="The discrete half of sparse mixture-of-experts models, solved as a combinatorial search problem.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def demo(
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seeds: Annotated[int | None, typer.Option(help="Paired repetitions. [default: 3, with --smoke 2]")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of training. [default: 15, with --smoke 2]")] = None,
    report: Annotated[Path, typer.Option(help="Where the HTML report goes.")] = Path("moe-search-demo.html"),
    picture: Annotated[Path | None, typer.Option(help="Where the curves after the bad start go as an image.")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="Tiny sizes: shows in seconds that all works.")] = False,
) -> None:
    """Train sparse gates on real images with and without search, and write an HTML report."""
    with _one_line_errors():
        from moe_search.plotting.output_file import check_output_file

        check_output_file(report, "report")
        if picture is not None:
            from moe_search.plotting.picture_file import check_picture_file

            check_picture_file(picture, "picture")
        from moe_search.bench.demo.settings import DemoSettings, smoke_settings

        settings = smoke_settings() if smoke else DemoSettings()
        settings = replace(
            settings,
            seeds=settings.seeds if seeds is None else seeds,
            epochs=settings.epochs if epochs is None else epochs,
        )
        from moe_search.bench.demo.device import find_device

        torch_device = find_device(device)
    from rich.console import Console

    from moe_search.bench.demo.run import run_demo

    run_demo(settings, torch_device, report, shlex.join(["moe-search", *sys.argv[1:]]), Console(), picture)


@app.command()
def solve(
    file: Annotated[Path, typer.Argument(help="A problem in QAPLIB's .dat format.", metavar="FILE.dat")],
    time: Annotated[float, typer.Option(help="Seconds the solver may take.")] = 2.0,
    solver: Annotated[
        str, typer.Option(help=f"One of {', '.join(SOLVERS)}. multi-start: four tabu searches side by side.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Source of all randomness.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Where the result goes as JSON.", metavar="PATH")] = None,
) -> None:
    """Solve a quadratic assignment problem and print value, bound and gap."""
    with _one_line_errors():
        if not 0 < time < math.inf:
            raise ValueError(f"--time must be a positive number of seconds, got {time:g}")
        if seed < 0:
            raise ValueError(f"--seed must be 0 or more, got {seed}")
        chosen = _solver(solver)
        if json is not None:
            from moe_search.plotting.output_file import check_output_file

            check_output_file(json, "--json")
        from moe_search import solve as solve_problem
        from moe_search.problems.qaplib import read_qaplib
        from moe_search.solvers.engine.stop import MaxRuntime

        problem = read_qaplib(file)
        result = solve_problem(problem, chosen, MaxRuntime(time), seed=seed)
        if json is not None:
            json.write_text(result.to_json() + "\n", encoding="utf-8")
    _print_result(file, problem, result, json)


@app.command()
def bench(
    suite: Annotated[str, typer.Option(help="small, medium or qaplib.")] = "small",
    solver: Annotated[
        list[str] | None,
        typer.Option(help="Solver by name, as in --solver TabuSearch; may be repeated. [default: all]"),
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            help="Data set, as in --dataset 'random-quadratic[size=30]'; may be repeated. [default: those of the suite]"
        ),
    ] = None,
    solver_file: Annotated[
        list[Path] | None,
        typer.Option(help="File with a solver of your own, or a solver file of benchopt; may be repeated."),
    ] = None,
    repetitions: Annotated[int, typer.Option(help="Runs of each solver on each data set.")] = 5,
    timeout: Annotated[float | None, typer.Option(help="Seconds a run may take. [default: those of the suite]")] = None,
    n_jobs: Annotated[int, typer.Option(help="Runs at a time.")] = 1,
    backend: Annotated[str, typer.Option(help="loky (processes of joblib) or dask.")] = "loky",
    output: Annotated[Path, typer.Option(help="Folder of the report and the tables.")] = Path("moe-search-bench"),
    qaplib: Annotated[
        Path | None, typer.Option(help="Folder of QAPLIB files. [default: that of MOE_SEARCH_QAPLIB]")
    ] = None,
) -> None:
    """Compare solvers: run them, resume what was killed, and write an HTML report with statistics."""
    with _one_line_errors(), _missing_extras():
        from moe_search.bench.comparison.comparison import ComparisonSettings, run_comparison
        from moe_search.bench.comparison.report import make_report, write_comparison
        from moe_search.plotting.output_file import check_output_file

        settings = ComparisonSettings(
            suite=suite,
            solvers=tuple(solver or ()),
            datasets=tuple(dataset or ()),
            solver_files=tuple(solver_file or ()),
            repetitions=repetitions,
            seconds=timeout,
            n_jobs=n_jobs,
            backend=backend,  # type: ignore[arg-type]
            qaplib=qaplib,
        )
        output.mkdir(parents=True, exist_ok=True)
        check_output_file(output / "report.html", "output")
        comparison = run_comparison(settings)
    report = make_report(comparison, settings, shlex.join(["moe-search", *sys.argv[1:]]))
    paths = write_comparison(comparison, report, output)
    from rich.console import Console

    console = Console()
    for section in report.sections:
        # The first table says how the solvers did, the others stand in the report.
        for table in section.tables[:1]:
            console.print(replace(table, title=section.heading, note="").as_rich())
        for finding in section.findings:
            console.print(finding, style="dim")
    console.print("written: " + ", ".join(str(path) for path in paths))


@app.command()
def experiment(
    name: Annotated[str, typer.Argument(help="Which one; an unknown name lists them.")],
    smoke: Annotated[bool, typer.Option("--smoke", help="Tiny sizes: shows in seconds that all works.")] = False,
    seeds: Annotated[
        int | None, typer.Option(help="Paired repetitions. [default: the experiment's, with --smoke 2]")
    ] = None,
    first_seed: Annotated[int, typer.Option(help="The first of the seeds.")] = 0,
    jobs: Annotated[int, typer.Option(help="Trials at a time; -1 for one a processor.")] = 1,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the journal and the results. [default: moe-search-experiments/NAME]")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Where the data lie, if not where their package puts them.")] = None,
) -> None:
    """Run an experiment; started again after a kill, it goes on where it stopped."""
    with _one_line_errors():
        from moe_search.bench.experiments.command import run_with_progress

        run_with_progress(name, smoke, seeds, first_seed, jobs, output, data)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="The --output of an experiment, or a folder of several.")],
    page: Annotated[
        Path | None, typer.Option(help="Where the HTML page goes. [default: report.html in FOLDER]")
    ] = None,
) -> None:
    """Make one HTML page of the experiments in a folder: statistics, curves and maps."""
    with _one_line_errors():
        from moe_search.bench.experiments.report import make_report, read_finished
        from moe_search.plotting.output_file import check_output_file
        from moe_search.plotting.report import write_report

        finished = read_finished(folder)
        page = check_output_file(folder / "report.html" if page is None else page, "--page")
        write_report(make_report(finished, shlex.join(["moe-search", *sys.argv[1:]])), page)
    typer.echo(f"Report: {page.resolve()}")


def _solver(name: str) -> Solver | None:
    """Return the solver of a name of the command line; None lets `moe_search.solve` choose."""
    if name == "auto":
        return None
    if name not in SOLVERS:
        raise ValueError(f"--solver must be one of {', '.join(SOLVERS)}, got {name!r}")
    from moe_search import solvers

    kind = getattr(solvers, SOLVERS[name])
    chosen: Solver = kind(solvers.TabuSearch()) if kind is solvers.MultiStart else kind()
    return chosen


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


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Print an error of the arguments in one line, without traceback, and exit with status 2."""
    try:
        yield
    except (ImportError, OSError, TypeError, ValueError) as error:
        text = str(error)
        if isinstance(error, OSError) and error.filename is not None:
            text = f"cannot use {error.filename}: {error.strerror}"
        typer.echo(f"error: {' '.join(text.split())}", err=True)
        raise typer.Exit(2) from error


@contextmanager
def _missing_extras() -> Iterator[None]:
    """Name the command that installs what the comparison needs."""
    try:
        yield
    except ModuleNotFoundError as error:
        extra = "cluster" if error.name in ("dask", "distributed") else "bench"
        if (error.name or "").startswith("moe_search"):
            raise
        raise ValueError(f"{error.name} is missing; install it with: pip install 'moe-search[{extra}]'") from error
