"""What ``moe-search experiment`` does, with a progress bar."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from moe_search.bench.experiments.journal import Entry, read_journal
from moe_search.bench.experiments.registry import find_experiment
from moe_search.bench.experiments.report import Finished, tables
from moe_search.bench.experiments.run import RESULTS, run_experiment

SMOKE_SEEDS = 2
DEFAULT_FOLDER = Path("moe-search-experiments")


def run_with_progress(
    name: str, smoke: bool, seeds: int | None, first_seed: int, jobs: int, output: Path | None, data: Path | None
) -> None:
    """Run an experiment of the registry, and print its results.

    Parameters
    ----------
    name : str
    smoke : bool
        Whether to take the sizes that only show that all works, and 2 seeds unless told otherwise.
    seeds : int or None
        None for the experiment's own number.
    first_seed : int
    jobs : int
        Trials at a time.
    output : Path or None
        Folder of the journal and the results; None for one below `DEFAULT_FOLDER`.
    data : Path or None
        Where the data lie, for an experiment that reads them from a path.
    """
    experiment = find_experiment(name)
    settings = experiment.smoke if smoke else experiment.settings
    if data is not None:
        if all(field.name != "path" for field in fields(settings)):
            raise ValueError(f"--data is for experiments that read files, {name} reads none")
        settings = replace(settings, path=str(data))
    if seeds is None and smoke:
        seeds = SMOKE_SEEDS
    folder = DEFAULT_FOLDER / (f"{name}-smoke" if smoke else name) if output is None else output
    console = Console()
    columns = (
        SpinnerColumn(),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("trials", total=None)

        def on_trial(done: int, total: int, entry: Entry | None) -> None:
            description = "trials" if entry is None else f"seed {entry.trial.seed}, {entry.trial.gate}"
            progress.update(task, completed=done, total=total, description=description)

        run_experiment(
            experiment, folder, settings=settings, seeds=seeds, first_seed=first_seed, jobs=jobs, on_trial=on_trial
        )
    journal = read_journal(folder)
    finished = Finished(experiment, journal, journal.entries())
    for table in tables(finished):
        console.print(table.as_rich())
    console.print(f"Results: {(folder / RESULTS).resolve()}", soft_wrap=True, highlight=False)
