"""Which journal an experiment is written to: its own lines, or studies of Optuna where hyperparameters are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from moe_search.bench.experiments import journal, study_journal
from moe_search.bench.experiments.experiment import Experiment, Trial
from moe_search.bench.experiments.journal import Entry, Journal
from moe_search.bench.experiments.study_journal import StudyJournal

FILE_NAMES = (journal.FILE_NAME, study_journal.FILE_NAME)


class TrialJournal(Protocol):
    """What a killed run left on the disk, and a run that goes on adds to."""

    @property
    def file(self) -> Path:
        """Where it lies."""
        ...

    @property
    def header(self) -> Mapping[str, Any]:
        """The name of the experiment, its sizes, versions."""
        ...

    def entries(self) -> dict[Trial, Entry]:
        """Return the finished trials."""
        ...

    def begin(self, trial: Trial) -> None:
        """Take note that a trial is about to run."""
        ...

    def append(self, entry: Entry) -> None:
        """Write a finished trial to the disk; when this returns, it is there."""
        ...


def open_journal(
    experiment: Experiment, folder: Path, header: Mapping[str, Any], identity: tuple[str, ...]
) -> TrialJournal:
    """Begin the journal of an experiment in a folder, or go on with the one that is there.

    Raises
    ------
    ImportError, OSError, ValueError
        As `Journal.open` and `StudyJournal.open`.
    """
    if experiment.budget is None:
        return Journal.open(folder, header, identity)
    return StudyJournal.open(folder, header, identity, experiment.budget)


def read_journal(folder: Path) -> TrialJournal:
    """Return the journal in a folder, which is left as it is.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ImportError
        If it is one of Optuna, which is missing.
    ValueError
        If it is damaged.
    """
    return StudyJournal.read(folder) if (folder / study_journal.FILE_NAME).is_file() else Journal.read(folder)
