"""A folder of QAPLIB files: instances as NAME.dat, best known values in best_known.csv."""

from __future__ import annotations

import csv
import os
from pathlib import Path

VARIABLE = "MOE_SEARCH_QAPLIB"


def qaplib_folder(folder: str | os.PathLike[str] | None = None) -> Path | None:
    """Return a folder, or if None is given the one that the environment variable MOE_SEARCH_QAPLIB names, if any."""
    named = os.environ.get(VARIABLE) if folder is None else folder
    return Path(named) if named else None


def best_known_values(folder: Path) -> dict[str, int]:
    """Return the best known value of every instance that ``best_known.csv`` lists; none if there is no such file."""
    path = folder / "best_known.csv"
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {row["name"]: int(row["best_known_value"]) for row in csv.DictReader(file)}
