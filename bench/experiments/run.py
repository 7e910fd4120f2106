"""Running an experiment: trials in parallel, each one written down when it ends."""

from __future__ import annotations

import math
import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_search.bench.experiments.experiment import (
    BEST,
    LOSS,
    Experiment,
    Trial,
    find_experiment,
    require_libraries,
)
from moe_search.bench.experiments.journal import Entry, Journal, open_journal, read_journal
from moe_search.checks import require_integer

if TYPE_CHECKING:
    import pandas as pd

SMOKE_SEEDS = 2
DEFAULT_FOLDER = Path("moe-search-experiments")
RESULTS = "results.parquet"

OnTrial = Callable[[int, int, Entry | None], None]
"""Called as ``on_trial(finished, all, entry)``: without an entry at the start, and of the best draws; then after every
trial."""


def run_experiment(
    experiment: Experiment,
    folder: str | os.PathLike[str],
    *,
    settings: Any = None,
    seeds: int | None = None,
    first_seed: int = 0,
    jobs: int | None = None,
    on_trial: OnTrial | None = None,
) -> pd.DataFrame:
    """Run the trials that are not in the journal of a folder yet, and write the results of all.

    Trials run through joblib, so that ``joblib.parallel_config(backend="dask")``, or a Ray backend, around the call
    sends them to a cluster; the journal is written by this process alone. A run that is killed goes on where it
    stopped when it is started again. ValueError if the folder holds the journal of another experiment or other sizes.

    Parameters
    ----------
    folder : path-like
        Where ``journal.jsonl``, or ``optuna.log`` where hyperparameters are drawn, and ``results.parquet`` go; made if
        it is missing.
    settings : frozen dataclass, optional
        Instead of ``experiment.settings``, such as ``experiment.smoke``.
    seeds : int, optional
        Instead of ``experiment.seeds``.
    first_seed : int
        The seeds are first_seed .. first_seed + seeds - 1: a final run takes some that no choice was made on.
    jobs : int, optional
        Trials at a time, as ``n_jobs`` of `joblib.Parallel`: by default what `joblib.parallel_config` says, else 1.

    Returns
    -------
    DataFrame
        A row a trial, in the order of seeds, gates and searches, the best draws trained anew at the end: experiment,
        seed, gate, search, seconds, and the numbers of the trial.
    """
    require_libraries("joblib", "pandas", "pyarrow")
    import pandas as pd

    settings = experiment.settings if settings is None else settings
    seeds = experiment.seeds if seeds is None else seeds
    require_integer("seeds", seeds)
    require_integer("first_seed", first_seed, 0)
    if jobs == 0:
        raise ValueError("jobs must be 1 or more, or -1 for one a processor, got 0")
    journal = open_journal(experiment, Path(folder), settings)
    finished = journal.entries()
    trials = experiment.trials(seeds, first_seed)
    fresh = experiment.fresh_seeds * math.ceil(BEST * seeds) * len(experiment.gates) * len(experiment.searches)
    total = len(trials) + fresh
    run = partial(_run_missing, experiment, settings, journal, finished, jobs=jobs, total=total, on_trial=on_trial)
    run(trials)
    if fresh:
        again = experiment.fresh_trials({trial: float(finished[trial].numbers[LOSS]) for trial in trials})  # type: ignore[arg-type]
        run(again, before=len(trials))
        trials += again
    rows = [
        {"experiment": experiment.name, **asdict(trial), "seconds": entry.seconds, **entry.numbers}
        for trial, entry in ((trial, finished[trial]) for trial in trials)
    ]
    table = pd.DataFrame(rows)
    # A reader sees the old file or the new one, never half of it.
    unfinished = (Path(folder) / RESULTS).with_suffix(".partial")
    table.to_parquet(unfinished, index=False)
    os.replace(unfinished, Path(folder) / RESULTS)
    return table


def _run_missing(
    experiment: Experiment,
    settings: Any,
    journal: Journal,
    finished: dict[Trial, Entry],
    trials: Sequence[Trial],
    *,
    jobs: int | None,
    total: int,
    on_trial: OnTrial | None,
    before: int = 0,
) -> None:
    """Run those of some trials that have not finished, `before` others having, and add them to the journal."""
    from joblib import Parallel, delayed

    missing = [trial for trial in trials if trial not in finished]
    done = before + len(trials) - len(missing)
    if on_trial is not None:
        on_trial(done, total, None)

    def calls() -> Iterator[Any]:
        for trial in missing:
            journal.begin(trial)
            yield delayed(run_one)(experiment, settings, trial)

    entries = Parallel(n_jobs=jobs, return_as="generator_unordered")(calls())
    for number, entry in enumerate(entries, start=done + 1):
        journal.append(entry)
        finished[entry.trial] = entry
        if on_trial is not None:
            on_trial(number, total, entry)


def run_one(experiment: Experiment, settings: Any, trial: Trial) -> Entry:
    """Run one trial, on one thread of torch: the models are small, and trials run beside each other."""
    # Not above: what runs trials imports torch only where one runs.
    from moe_search.bench.experiments.training import one_thread

    start = time.perf_counter()
    with one_thread():
        try:
            numbers = experiment.run_trial(settings, trial.seed, trial.gate, trial.search)
        except Exception as error:
            error.add_note(f"in the trial of seed {trial.seed}, gate {trial.gate}, search {trial.search}")
            raise
    return Entry(trial, numbers, time.perf_counter() - start)


def run_with_progress(
    name: str, smoke: bool, seeds: int | None, first_seed: int, jobs: int, output: Path | None, data: Path | None
) -> None:
    """Run an experiment by its name, as ``moe-search experiment`` does, and print its results.

    With `smoke`, it has the sizes that only show that all works, 2 seeds unless told otherwise, and one fresh seed of
    the best draws. The output goes to a folder below `DEFAULT_FOLDER` where none is given.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    # Not above: the workers that run trials draw nothing.
    from moe_search.bench.experiments.report import Finished, tables

    experiment = find_experiment(name)
    settings = experiment.smoke if smoke else experiment.settings
    if data is not None:
        if all(field.name != "path" for field in fields(settings)):
            raise ValueError(f"--data is for experiments that read files, {name} reads none")
        settings = replace(settings, path=str(data))
    if smoke:
        seeds = SMOKE_SEEDS if seeds is None else seeds
        experiment = replace(experiment, fresh_seeds=min(experiment.fresh_seeds, 1))
    folder = DEFAULT_FOLDER / (f"{name}-smoke" if smoke else name) if output is None else output
    console = Console()
    bar = (SpinnerColumn(), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*bar, console=console) as progress:
        task = progress.add_task("trials", total=None)

        def on_trial(done: int, total: int, entry: Entry | None) -> None:
            description = "trials" if entry is None else f"seed {entry.trial.seed}, {entry.trial.gate}"
            progress.update(task, completed=done, total=total, description=description)

        run_experiment(
            experiment, folder, settings=settings, seeds=seeds, first_seed=first_seed, jobs=jobs, on_trial=on_trial
        )
    journal = read_journal(folder)
    for table in tables(Finished(experiment, journal, journal.entries())):
        console.print(table.as_rich())
    console.print(f"Results: {(folder / RESULTS).resolve()}", soft_wrap=True, highlight=False)
    console.print(f"Page: moe-search report {shlex.quote(str(folder))}", soft_wrap=True, highlight=False)
