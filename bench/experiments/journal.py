"""The journal of an experiment: a line a finished trial, so that a killed run loses nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moe_search.bench.experiments.experiment import Numbers, Trial

FILE_NAME = "journal.jsonl"


@dataclass(frozen=True)
class Entry:
    """A finished trial.

    Attributes
    ----------
    trial : Trial
    numbers : mapping of str to float or list of float
    seconds : float
    """

    trial: Trial
    numbers: Numbers
    seconds: float


@dataclass(frozen=True)
class Journal:
    """A file of JSON lines: first what is run, then the trials in the order in which they ended.

    Attributes
    ----------
    file : Path
    header : mapping
        Plain JSON: the name of the experiment, its sizes, versions.
    """

    file: Path
    header: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path, header: Mapping[str, Any], identity: tuple[str, ...]) -> Journal:
        """Begin a journal in a folder, or go on with the one that is there.

        A last line that was not written to its end, by a run killed in the middle of it, is cut off.

        Parameters
        ----------
        folder : Path
            Made if it is missing.
        header : mapping
        identity : tuple of str
            The keys of the header that must agree with those of a journal that is there.

        Raises
        ------
        OSError
            If the folder or the file cannot be written.
        ValueError
            If the journal that is there is of another run, or damaged.
        """
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / FILE_NAME
        wanted = plain(header)
        if not file.exists() or not cut_torn_line(file):
            _append(file, wanted)
            return cls(file, wanted)
        journal = cls.read(folder)
        require_same_run(file, journal.header, wanted, identity)
        return journal

    @classmethod
    def read(cls, folder: Path) -> Journal:
        """Return the journal in a folder, which is left as it is.

        Raises
        ------
        FileNotFoundError
            If there is none.
        ValueError
            If its first line is damaged.
        """
        file = folder / FILE_NAME
        if not file.is_file():
            raise FileNotFoundError(f"no experiment was run in {folder}: it holds no {FILE_NAME}")
        lines = _lines(file)
        header = _parse(file, 1, lines[0]) if lines else None
        if not isinstance(header, dict) or "experiment" not in header:
            raise ValueError(f"{file} must begin with a line that names its experiment: it is damaged")
        return cls(file, header)

    def entries(self) -> dict[Trial, Entry]:
        """Return the finished trials; the first, if one stands there twice.

        Raises
        ------
        ValueError
            If a line is damaged.
        """
        found: dict[Trial, Entry] = {}
        for number, line in enumerate(_lines(self.file)[1:], start=2):
            values = _parse(self.file, number, line)
            try:
                trial = Trial(values["seed"], values["gate"], values["search"])
                entry = Entry(trial, values["numbers"], values["seconds"])
            except (KeyError, TypeError) as error:
                raise ValueError(f"line {number} of {self.file} is no finished trial: {line[:60]!r}") from error
            found.setdefault(trial, entry)
        return found

    def begin(self, trial: Trial) -> None:
        """Write nothing: a trial that did not end is not in this journal."""

    def append(self, entry: Entry) -> None:
        """Write a finished trial to the disk; when this returns, it is there."""
        _append(self.file, {**asdict(entry.trial), "seconds": entry.seconds, "numbers": dict(entry.numbers)})


def plain(header: Mapping[str, Any]) -> dict[str, Any]:
    """Return a header as it is read back from a journal."""
    return json.loads(json.dumps(header))


def require_same_run(
    file: Path, found: Mapping[str, Any], wanted: Mapping[str, Any], identity: tuple[str, ...]
) -> None:
    """Raise ValueError if the header found in a journal is of another run than the header wanted.

    Parameters
    ----------
    file : Path
        Of the journal.
    found, wanted : mapping
    identity : tuple of str
        The keys that must agree.
    """
    for key in identity:
        if found.get(key) != wanted[key]:
            raise ValueError(
                f"{file} is the journal of another run, with {key} {found.get(key)!r} instead of {wanted[key]!r}: "
                "give another folder, or remove it"
            )


def cut_torn_line(file: Path) -> bool:
    """Cut off what stands after the last line end, and return whether anything is left."""
    data = file.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(file, whole)
    return whole > 0


def _append(file: Path, values: Mapping[str, Any]) -> None:
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


def _lines(file: Path) -> list[str]:
    """Return the whole lines; what stands after the last line end was not finished."""
    return file.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]


def _parse(file: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number} of {file} must be JSON: it is damaged ({error.msg})") from error
