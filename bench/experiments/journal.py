"""The journal of an experiment: every finished trial, on the disk when it ends, so that a killed run loses nothing.

Most experiments write lines of JSON. Where hyperparameters are drawn, it is studies of Optuna in one file of its
journal storage, which all that reads these can read, Optuna's dashboard too, while trials run.
"""

from __future__ import annotations

import json
import os
import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_search.bench.experiments.experiment import LOSS, Experiment, Numbers, Trial, draw_of, require_libraries

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.storages import BaseStorage
    from optuna.storages.journal import JournalFileSymlinkLock
    from optuna.trial import Trial as Draw

FILE_NAMES = LINES_FILE, STUDY_FILE = "journal.jsonl", "optuna.log"

IDENTITY = ("experiment", "settings")
"""What must agree for a run to go on with a journal: more seeds may be added, other sizes may not."""

RUN = "run"
"""The key of a study's attribute that says what is run in it, written at once so that it is there whole or not."""


@dataclass(frozen=True)
class Entry:
    """A finished trial, what it measured, and how many seconds it took."""

    trial: Trial
    numbers: Numbers
    seconds: float


@dataclass(frozen=True)
class Journal(ABC):
    """What a killed run left on the disk, and a run that goes on adds to; the header is a `journal_header`."""

    file: Path
    header: Mapping[str, Any]

    @abstractmethod
    def entries(self) -> dict[Trial, Entry]:
        """Return the finished trials; the first, if one was run twice. ValueError if the file is damaged."""

    def begin(self, trial: Trial) -> None:  # noqa: B027
        """Take note that a trial is about to run, where the journal holds more than finished ones."""

    @abstractmethod
    def append(self, entry: Entry) -> None:
        """Write a finished trial to the disk; when this returns, it is there."""


def open_journal(experiment: Experiment, folder: Path, settings: Any) -> Journal:
    """Begin the journal of an experiment in a folder, made if it is missing, or go on with the one that is there."""
    header = journal_header(experiment, settings)
    if experiment.space is None:
        return LineJournal.open(folder, header)
    return StudyJournal.open(folder, header, experiment.space)


def read_journal(folder: Path) -> Journal:
    """Return the journal in a folder, which is left as it is; FileNotFoundError if there is none."""
    return StudyJournal.read(folder) if (folder / STUDY_FILE).is_file() else LineJournal.read(folder)


def journal_header(experiment: Experiment, settings: Any) -> dict[str, Any]:
    """Return what is run, with which versions."""
    libraries = ("moe-search", "torch", "numpy", "numba", "scipy")
    versions = {"python": platform.python_version()} | {name: metadata.version(name) for name in libraries}
    return {"experiment": experiment.name, "settings": plain_settings(settings), "versions": versions}


def plain_settings(settings: Any) -> dict[str, Any]:
    """Return settings as they are read back from a journal; where the data lie does not matter."""
    kept = {name: value for name, value in asdict(settings).items() if name != "path"}
    return json.loads(json.dumps(kept))


@dataclass(frozen=True)
class LineJournal(Journal):
    """A file of JSON lines: first what is run, then the trials in the order in which they ended."""

    @classmethod
    def open(cls, folder: Path, header: Mapping[str, Any]) -> LineJournal:
        """Begin a journal or go on with it; a last line that a killed run did not write to its end is cut off."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / LINES_FILE
        if not file.exists() or not _cut_torn_line(file):
            _append_line(file, header)
            return cls(file, header)
        journal = cls.read(folder)
        _require_same_run(file, journal.header, header)
        return journal

    @classmethod
    def read(cls, folder: Path) -> LineJournal:
        """Return the journal in a folder, which is left as it is."""
        file = folder / LINES_FILE
        if not file.is_file():
            raise FileNotFoundError(f"no experiment was run in {folder}: it holds no {LINES_FILE}")
        header = next(iter(_read_lines(file)), None)
        if not isinstance(header, dict) or "experiment" not in header:
            raise ValueError(f"{file} must begin with a line that names its experiment: it is damaged")
        return cls(file, header)

    def entries(self) -> dict[Trial, Entry]:
        """Return the finished trials."""
        found: dict[Trial, Entry] = {}
        for number, values in enumerate(_read_lines(self.file)[1:], start=2):
            try:
                trial = Trial(values["seed"], values["gate"], values["search"])
                entry = Entry(trial, values["numbers"], values["seconds"])
            except (KeyError, TypeError) as error:
                told = json.dumps(values)[:60]
                raise ValueError(f"line {number} of {self.file} is no finished trial: {told!r}") from error
            found.setdefault(trial, entry)
        return found

    def append(self, entry: Entry) -> None:
        """Write a finished trial."""
        _append_line(self.file, {**asdict(entry.trial), "seconds": entry.seconds, "numbers": dict(entry.numbers)})


@dataclass(frozen=True)
class StudyJournal(Journal):
    """A study for every gate and search, and in it a trial for every seed: what it drew, its loss, all it measured.

    One process writes, that which runs the experiment. A trial that is still running when the file is opened for
    writing is therefore of a run that was killed: it is marked as failed, and its seed is run again.

    Attributes
    ----------
    space : callable, optional
        What is drawn for a gate; a journal that is only read has none.
    begun : dict
        The trials that this process has begun and not ended.
    """

    storage: BaseStorage
    space: Callable[[str], Mapping[str, Any]] | None = None
    begun: dict[Trial, Draw] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, header: Mapping[str, Any], space: Callable[[str], Mapping[str, Any]]) -> StudyJournal:
        """Begin a journal or go on with it."""
        require_libraries("optuna")
        from optuna.trial import TrialState

        folder.mkdir(parents=True, exist_ok=True)
        file = folder / STUDY_FILE
        if file.exists():
            # Optuna would append to a line that a killed run left unfinished, and could then read neither.
            _cut_torn_line(file)
            # It would also wait half a minute for a lock that such a run held to its end.
            with suppress(RuntimeError):
                _lock(file).release()
        journal = cls(file, header, _storage(file), space)
        studies = _studies(journal.storage)
        for study in studies:
            _require_same_run(file, study.user_attrs[RUN]["header"], header)
        for study in studies:
            for draw in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                study.tell(draw.number, state=TrialState.FAIL)
        return journal

    @classmethod
    def read(cls, folder: Path) -> StudyJournal:
        """Return the journal in a folder, which is left as it is."""
        require_libraries("optuna")
        file = folder / STUDY_FILE
        storage = _storage(file)
        studies = _studies(storage)
        if not studies:
            raise ValueError(f"{file} must hold a study of an experiment, got none: nothing was run, or it is damaged")
        return cls(file, studies[0].user_attrs[RUN]["header"], storage)

    def entries(self) -> dict[Trial, Entry]:
        """Return the finished trials."""
        from optuna.trial import TrialState

        found: dict[Trial, Entry] = {}
        for study in _studies(self.storage):
            run = study.user_attrs[RUN]
            for draw in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
                trial = Trial(draw.user_attrs["seed"], run["gate"], run["search"])
                found.setdefault(trial, Entry(trial, draw.user_attrs["numbers"], draw.user_attrs["seconds"]))
        return found

    def begin(self, trial: Trial) -> None:
        """Write down that a trial runs, and what the draw that its seed is of holds."""
        assert self.space is not None, "a journal that is only read begins no trial"
        study = _random_study(draw_of(trial.seed), study_name=f"{trial.gate}, {trial.search}", storage=self.storage)
        if RUN not in study.user_attrs:
            study.set_user_attr(RUN, {"header": self.header, "gate": trial.gate, "search": trial.search})
        draw = study.ask(dict(self.space(trial.gate)))
        draw.set_user_attr("seed", trial.seed)
        self.begun[trial] = draw

    def append(self, entry: Entry) -> None:
        """Write a finished trial that this process has begun."""
        draw = self.begun.pop(entry.trial)
        draw.set_user_attr("seconds", entry.seconds)
        draw.set_user_attr("numbers", dict(entry.numbers))
        draw.study.tell(draw, float(entry.numbers[LOSS]))  # type: ignore[arg-type]


def draw_parameters(space: Mapping[str, BaseDistribution], seed: int) -> dict[str, Any]:
    """Return what Optuna's random sampler draws from a seed, as `StudyJournal.begin` writes it down.

    It draws in the order of the space: spaces that begin alike draw alike there.
    """
    require_libraries("optuna")
    return _random_study(seed).ask(dict(space)).params


def _require_same_run(file: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for key in IDENTITY:
        if found.get(key) != wanted[key]:
            raise ValueError(
                f"{file} is the journal of another run, with {key} {found.get(key)!r} instead of {wanted[key]!r}: "
                "give another folder, or remove it"
            )


def _cut_torn_line(file: Path) -> bool:
    """Cut off what stands after the last line end, and return whether anything is left."""
    data = file.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(file, whole)
    return whole > 0


def _append_line(file: Path, values: Mapping[str, Any]) -> None:
    data = (json.dumps(values) + "\n").encode("utf-8")
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        # One write to a file opened for appending: lines of two runs cannot mix.
        written = os.write(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if written != len(data):
        raise OSError(f"only {written} of {len(data)} bytes could be written to {file}")


def _read_lines(file: Path) -> list[Any]:
    """Return the values of the whole lines; what stands after the last line end was not finished."""
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").split("\n")[:-1], start=1):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} of {file} must be JSON: it is damaged ({error.msg})") from error
    return found


def _storage(file: Path) -> BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    try:
        return JournalStorage(JournalFileBackend(str(file), lock_obj=_lock(file)))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} must be a journal of Optuna: it is damaged ({error!r})") from error


def _lock(file: Path) -> JournalFileSymlinkLock:
    from optuna.storages.journal import JournalFileSymlinkLock

    return JournalFileSymlinkLock(str(file))


def _studies(storage: BaseStorage) -> list[Study]:
    import optuna

    studies = [
        optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage=storage)
    ]
    return [study for study in studies if RUN in study.user_attrs]


def _random_study(seed: int, **where: Any) -> Study:
    """Return a study whose sampler draws from a seed, a new one or that of this name in a storage."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    # Optuna would announce a new study.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed), load_if_exists=True, **where)
    finally:
        optuna.logging.set_verbosity(verbosity)
