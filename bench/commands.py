"""The commands of the laboratory: importing this adds them to the command line of the library.

``moe-search`` starts here, since the library does not know the laboratory. What a command needs is imported when it
runs: ``moe-search --help`` and ``moe-search solve`` load neither torch nor benchopt.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from moe_search.bench.experiments.experiment import HOMES
from moe_search.checks import require_choice, require_integer
from moe_search.cli import app
from moe_search.cli.arguments import check_output_file, check_picture_file, command_line, one_line_errors

__all__ = ["app"]


@app.command()
def demo(
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seeds: Annotated[int | None, typer.Option(help="Paired repetitions. [default: 3, with --smoke 2]")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of training. [default: 15, with --smoke 2]")] = None,
    report: Annotated[Path, typer.Option(help="Where the HTML report goes.")] = Path("moe-search-demo.html"),
    picture: Annotated[Path | None, typer.Option(help="Where the charts on top of the page go as an image.")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="Tiny sizes: shows in seconds that all works.")] = False,
) -> None:
    """Search experts of slots and devices, and neurons.

    What came out, with and without search, is shown and written as an HTML report.
    """
    with one_line_errors():
        # Also what the settings check: they import torch.
        require_choice("device", device, ("auto", "cpu", "cuda"))
        for name, number in (("seeds", seeds), ("epochs", epochs)):
            if number is not None:
                require_integer(name, number)
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

    run_demo(settings, torch_device, report, command_line(), Console(), picture)


@app.command()
def bench(
    suite: Annotated[str, typer.Option(help="small, medium, qaplib or literature.")] = "small",
    solver: Annotated[
        list[str] | None,
        typer.Option(
            help="Solver by name, as in --solver TabuSearch; repeatable. "
            "[default: all, for literature MemeticSearch and TabuSearch]",
            metavar="NAME",
        ),
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            help="Data set, as in --dataset 'random-quadratic[size=30]'; repeatable. [default: those of the suite]",
            metavar="NAME",
        ),
    ] = None,
    solver_file: Annotated[
        list[Path] | None,
        typer.Option(help="File with a solver of your own, or a solver file of benchopt; repeatable.", metavar="FILE"),
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
    """Compare solvers, and write an HTML report with statistics.

    A comparison that was killed is resumed.
    """
    with one_line_errors(), _missing_extras():
        # The others below, once the arguments are checked: they import pandas and benchopt.
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
        for path in settings.solver_files:
            path.open("rb").close()
        output.mkdir(parents=True, exist_ok=True)
        check_output_file(output / "report.html", "output")
        from moe_search.bench.comparison.comparison import run_comparison
        from moe_search.bench.comparison.report import LITERATURE, make_report, write_comparison

        comparison = run_comparison(settings)
    report = make_report(comparison, settings, command_line())
    paths = write_comparison(comparison, report, output)
    from rich.console import Console

    console = Console()
    for headline in report.headlines:
        console.print(headline, style="bold", highlight=False)
    console.print()
    for section in report.sections:
        # Every article is printed. Of a class, the first table says how the solvers did, the others are in the report.
        tables = section.tables
        if section.heading != LITERATURE:
            tables = tuple(replace(table, title=section.heading, note="") for table in tables[:1])
        for table in tables:
            console.print(table.as_rich())
        for finding in section.findings:
            console.print(finding, style="dim")
    console.print("written: " + ", ".join(str(path) for path in paths))


def _print_experiments(asked: bool) -> None:
    """Print the experiments under what their modules are about, which is read and not imported: that takes seconds."""
    if asked:
        for home in dict.fromkeys(HOMES.values()):
            source = (Path(__file__).parent / "experiments" / f"{home}.py").read_text(encoding="utf-8")
            typer.echo((ast.get_docstring(ast.parse(source)) or home).splitlines()[0])
            for name in HOMES:
                if HOMES[name] == home:
                    typer.echo(f"    {name}")
        raise typer.Exit


@app.command()
def experiment(
    name: Annotated[
        str,
        typer.Argument(
            help="Which one; see --list.",
            metavar="NAME",
            show_default=False,
            autocompletion=lambda incomplete: list(HOMES),
        ),
    ] = "",
    show_list: Annotated[
        bool,
        typer.Option(
            "--list",
            help="Show all experiments and what they are about, and exit.",
            callback=_print_experiments,
            is_eager=True,
        ),
    ] = False,
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
    """Run an experiment, or go on where it was stopped."""
    with one_line_errors():
        # Experiments import torch.
        require_choice("an experiment", name, tuple(HOMES))
        if seeds is not None:
            require_integer("seeds", seeds)
        require_integer("first_seed", first_seed, 0)
        if data is not None and not data.exists():
            raise FileNotFoundError(f"--data must be a folder or a file that exists, got {data}")
        from moe_search.bench.experiments.run import run_with_progress

        run_with_progress(name, smoke, seeds, first_seed, jobs, output, data)


@app.command()
def report(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="The --output of an experiment, or a folder of several. [default: moe-search-experiments, where "
            "experiments go, those of --smoke too]",
            metavar="FOLDER",
        ),
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="Where the HTML page goes. [default: report.html in FOLDER]")
    ] = None,
) -> None:
    """Make one HTML page of the experiments in a folder."""
    with one_line_errors():
        if folder is not None and not folder.is_dir():
            raise FileNotFoundError(f"FOLDER must be a folder that exists, got {folder}")
        from moe_search.bench.experiments.report import make_report, read_finished
        from moe_search.bench.experiments.run import DEFAULT_FOLDER
        from moe_search.plotting.report import write_report

        folder = DEFAULT_FOLDER if folder is None else folder
        finished = read_finished(folder)
        page = check_output_file(folder / "report.html" if page is None else page, "--page")
        write_report(make_report(finished, command_line()), page)
    typer.echo(f"Report: {page.resolve()}")


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
