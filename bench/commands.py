"""The commands of the laboratory: importing this adds them to the command line of the library.

``moe-search`` starts here, since the library does not know the laboratory. What a command needs is imported when it
runs: ``moe-search --help`` and ``moe-search solve`` load neither torch nor benchopt.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from moe_search.cli import app
from moe_search.cli.arguments import check_output_file, check_picture_file, one_line_errors

__all__ = ["app"]


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
    with one_line_errors():
        check_output_file(report, "report")
        if picture is not None:
            check_picture_file(picture, "picture")
        from moe_search.bench.demo.settings import DemoSettings, find_device, smoke_settings

        sizes = {"seeds": seeds, "epochs": epochs}
        given: dict[str, Any] = {name: number for name, number in sizes.items() if number is not None}
        settings = replace(smoke_settings() if smoke else DemoSettings(), **given)
        torch_device = find_device(device)
    from rich.console import Console

    from moe_search.bench.demo.run import run_demo

    run_demo(settings, torch_device, report, _command_line(), Console(), picture)


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
    repetitions: Annotated[
        int | None, typer.Option(help="Runs of each solver on each data set. [default: those of the suite]")
    ] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds a run may take. [default: those of the suite]")] = None,
    n_jobs: Annotated[int, typer.Option(help="Runs at a time.")] = 1,
    backend: Annotated[str, typer.Option(help="loky (processes of joblib) or dask.")] = "loky",
    output: Annotated[Path, typer.Option(help="Folder of the report and the tables.")] = Path("moe-search-bench"),
    qaplib: Annotated[
        Path | None, typer.Option(help="Folder of QAPLIB files. [default: that of MOE_SEARCH_QAPLIB]")
    ] = None,
) -> None:
    """Compare solvers: run them, resume what was killed, and write an HTML report with statistics."""
    with one_line_errors(), _missing_extras():
        from moe_search.bench.comparison.comparison import run_comparison
        from moe_search.bench.comparison.report import make_report, write_comparison
        from moe_search.bench.comparison.settings import ComparisonSettings

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
    report = make_report(comparison, settings, _command_line())
    paths = write_comparison(comparison, report, output)
    from rich.console import Console

    console = Console()
    for headline in report.headlines:
        console.print(headline, style="bold", highlight=False)
    console.print()
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
    with one_line_errors():
        from moe_search.bench.experiments.run import run_with_progress

        run_with_progress(name, smoke, seeds, first_seed, jobs, output, data)


@app.command()
def report(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="The --output of an experiment, or a folder of several. [default: moe-search-experiments, where "
            "experiments go, those of --smoke too]"
        ),
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="Where the HTML page goes. [default: report.html in FOLDER]")
    ] = None,
) -> None:
    """Make one HTML page of the experiments in a folder: statistics, curves and maps."""
    with one_line_errors():
        from moe_search.bench.experiments.report import make_report, read_finished
        from moe_search.bench.experiments.run import DEFAULT_FOLDER
        from moe_search.plotting.report import write_report

        folder = DEFAULT_FOLDER if folder is None else folder
        finished = read_finished(folder)
        page = check_output_file(folder / "report.html" if page is None else page, "--page")
        write_report(make_report(finished, _command_line()), page)
    typer.echo(f"Report: {page.resolve()}")


def _command_line() -> str:
    """Return the command as it was typed, for a report that tells how to repeat it."""
    return shlex.join(["moe-search", *sys.argv[1:]])


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
