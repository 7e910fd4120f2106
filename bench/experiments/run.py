"""Running an experiment: trials in parallel, each one written down when it ends."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_search.bench.experiments.experiment import Experiment, Trial
from moe_search.bench.experiments.journal import Entry, open_journal
from moe_search.checks import require_integer

if TYPE_CHECKING:
    import pandas as pd

RESULTS = "results.parquet"
OnTrial = Callable[[int, int, Entry | None], None]
"""Called as ``on_trial(finished, all, entry)``: once at the start without an entry, then after every trial."""


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
    stopped when it is started again.

    Parameters
    ----------
    experiment : Experiment
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
    on_trial : callable, optional

    Returns
    -------
    DataFrame
        A row a trial, in the order of seeds, gates and searches: experiment, seed, gate, search, seconds, and the
        numbers of the trial.

    Raises
    ------
    ValueError
        If the folder holds the journal of another experiment or of other sizes.
    """
    _require_libraries()
    from joblib import Parallel, delayed

    settings = experiment.settings if settings is None else settings
    seeds = experiment.seeds if seeds is None else seeds
    require_integer("seeds", seeds)
    require_integer("first_seed", first_seed, 0)
    if jobs == 0:
        raise ValueError("jobs must be 1 or more, or -1 for one a processor, got 0")
    journal = open_journal(experiment, Path(folder), header(experiment, settings))
    finished = journal.entries()
    trials = experiment.trials(seeds, first_seed)
    missing = [trial for trial in trials if trial not in finished]
    done = len(trials) - len(missing)
    if on_trial is not None:
        on_trial(done, len(trials), None)
    parallel = Parallel(n_jobs=jobs, return_as="generator_unordered")

    def calls() -> Iterator[Any]:
        for trial in missing:
            journal.begin(trial)
            yield delayed(run_one)(experiment, settings, trial)

    for entry in parallel(calls()):
        journal.append(entry)
        finished[entry.trial] = entry
        done += 1
        if on_trial is not None:
            on_trial(done, len(trials), entry)
    table = to_table(experiment.name, [finished[trial] for trial in trials])
    _write(table, Path(folder) / RESULTS)
    return table


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


def header(experiment: Experiment, settings: Any) -> dict[str, Any]:
    """Return the first line of a journal: what is run, with which versions. Where the data lie does not matter."""
    return {
        "experiment": experiment.name,
        "settings": plain_settings(settings),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("moe-search", "torch", "numpy", "numba", "scipy")},
        },
    }


def plain_settings(settings: Any) -> dict[str, Any]:
    """Return settings as they stand in a journal."""
    kept = {name: value for name, value in asdict(settings).items() if name != "path"}
    return json.loads(json.dumps(kept))


def to_table(name: str, entries: list[Entry]) -> pd.DataFrame:
    """Return one row a trial."""
    import pandas as pd

    return pd.DataFrame(
        [{"experiment": name, **asdict(entry.trial), "seconds": entry.seconds, **entry.numbers} for entry in entries]
    )


def _write(table: pd.DataFrame, file: Path) -> None:
    # A reader sees the old file or the new one, never half of it.
    partial = file.with_suffix(".partial")
    table.to_parquet(partial, index=False)
    os.replace(partial, file)


def _require_libraries() -> None:
    try:
        import joblib  # noqa: F401
        import pandas  # noqa: F401
        import pyarrow  # type: ignore[import-untyped]  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"experiments need {error.name}, which is missing: pip install 'moe-search[experiments]'"
        ) from error
