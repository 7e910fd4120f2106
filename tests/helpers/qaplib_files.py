"""Where the files of QAPLIB are: not part of the project, read from the folder that MOE_SEARCH_QAPLIB names."""

import csv
import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("MOE_SEARCH_QAPLIB", "qaplib-not-given"))

needs_qaplib = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="set MOE_SEARCH_QAPLIB to a folder of QAPLIB .dat and .sln files"
)


def best_known():
    with (FOLDER / "best_known.csv").open() as file:
        return {row["name"]: int(row["best_known_value"]) for row in csv.DictReader(file)}
