"""The journal of a random search: a study of Optuna for every gate and search, in one file of its journal storage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_search.bench.experiments.experiment import Budget, Trial
from moe_search.bench.experiments.journal import Entry, cut_torn_line, plain, require_same_run

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.storages import BaseStorage
    from optuna.storages.journal import JournalFileSymlinkLock
    from optuna.trial import Trial as Draw

FILE_NAME = "optuna.log"

RUN = "run"
"""The key of a study's attribute that says what is run in it, written at once so that it is there whole or not."""


@dataclass(frozen=True)
class StudyJournal:
    """A study for every gate and search, and in it a trial for every seed: what it drew, its loss, all it measured.

    One process writes, that which runs the experiment. A trial that is still running when the file is opened for
    writing is therefore of a run that was killed: it is marked as failed, and its seed is run again. All that reads
    Optuna's journal storage can read the file, its dashboard too, while trials run.

    Attributes
    ----------
    file : Path
    header : mapping
        Plain JSON: the name of the experiment, its sizes, versions.
    storage : optuna.storages.JournalStorage
    budget : Budget or None
        What is drawn, and the loss; None in a journal that is only read.
    begun : dict
        The trials that this process has begun and not ended.
    """

    file: Path
    header: Mapping[str, Any]
    storage: BaseStorage
    budget: Budget | None = None
    begun: dict[Trial, Draw] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, header: Mapping[str, Any], identity: tuple[str, ...], budget: Budget) -> StudyJournal:
        """Begin a journal in a folder, or go on with the one that is there.

        Parameters
        ----------
        folder : Path
            Made if it is missing.
        header : mapping
        identity : tuple of str
            The keys of the header that must agree with those of a journal that is there.
        budget : Budget

        Raises
        ------
        ImportError
            If Optuna is missing.
        OSError
            If the folder or the file cannot be written.
        ValueError
            If the journal that is there is of another run, or damaged.
        """
        require_optuna()
        from optuna.trial import TrialState

        folder.mkdir(parents=True, exist_ok=True)
        file = folder / FILE_NAME
        if file.exists():
            # Optuna would append to a line that a killed run left unfinished, and could then read neither.
            cut_torn_line(file)
            # It would also wait half a minute for a lock that such a run held to its end.
            with suppress(RuntimeError):
                _lock(file).release()
        journal = cls(file, plain(header), _storage(file), budget)
        studies = _studies(journal.storage)
        for study in studies:
            require_same_run(file, study.user_attrs[RUN]["header"], journal.header, identity)
        for study in studies:
            for draw in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                study.tell(draw.number, state=TrialState.FAIL)
        return journal

    @classmethod
    def read(cls, folder: Path) -> StudyJournal:
        """Return the journal in a folder, which is left as it is.

        Raises
        ------
        FileNotFoundError
            If there is none.
        ImportError
            If Optuna is missing.
        ValueError
            If no study in it names its experiment, or it is damaged.
        """
        file = folder / FILE_NAME
        if not file.is_file():
            raise FileNotFoundError(f"no random search was run in {folder}: it holds no {FILE_NAME}")
        require_optuna()
        storage = _storage(file)
        studies = _studies(storage)
        if not studies:
            raise ValueError(f"{file} must hold a study of an experiment, got none: nothing was run, or it is damaged")
        return cls(file, studies[0].user_attrs[RUN]["header"], storage)

    def entries(self) -> dict[Trial, Entry]:
        """Return the finished trials; the first, if one was run twice."""
        from optuna.trial import TrialState

        found: dict[Trial, Entry] = {}
        for study in _studies(self.storage):
            run = study.user_attrs[RUN]
            for draw in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
                trial = Trial(draw.user_attrs["seed"], run["gate"], run["search"])
                found.setdefault(trial, Entry(trial, draw.user_attrs["numbers"], draw.user_attrs["seconds"]))
        return found

    def begin(self, trial: Trial) -> None:
        """Write down that a trial runs, and what its seed draws."""
        import optuna

        assert self.budget is not None, "a journal that is only read begins no trial"
        with _quiet():
            study = optuna.create_study(
                study_name=f"{trial.gate}, {trial.search}",
                storage=self.storage,
                sampler=optuna.samplers.RandomSampler(seed=trial.seed),
                load_if_exists=True,
            )
        if RUN not in study.user_attrs:
            study.set_user_attr(RUN, {"header": self.header, "gate": trial.gate, "search": trial.search})
        draw = study.ask(dict(self.budget.space(trial.gate)))
        draw.set_user_attr("seed", trial.seed)
        self.begun[trial] = draw

    def append(self, entry: Entry) -> None:
        """Write a finished trial, begun by this process, to the disk; when this returns, it is there."""
        assert self.budget is not None, "a journal that is only read ends no trial"
        draw = self.begun.pop(entry.trial)
        draw.set_user_attr("seconds", entry.seconds)
        draw.set_user_attr("numbers", dict(entry.numbers))
        draw.study.tell(draw, float(entry.numbers[self.budget.loss]))  # type: ignore[arg-type]


def draw_parameters(space: Mapping[str, BaseDistribution], seed: int) -> dict[str, Any]:
    """Return what Optuna's random sampler draws from a seed, as `StudyJournal.begin` writes it down.

    Parameters
    ----------
    space : mapping of str to optuna.distributions.BaseDistribution
        Drawn from in its order: spaces that begin alike draw alike there.
    seed : int

    Raises
    ------
    ImportError
        If Optuna is missing.
    """
    require_optuna()
    import optuna

    with _quiet():
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return study.ask(dict(space)).params


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


def require_optuna() -> None:
    """Raise ImportError with the pip command if Optuna is missing."""
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise ImportError("tuning needs optuna, which is missing: pip install 'moe-search[experiments]'") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Let Optuna announce no new study."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)
