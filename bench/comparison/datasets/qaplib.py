"""Instances of QAPLIB, read from a folder of the user's."""

from __future__ import annotations

from typing import Any

from benchopt import BaseDataset

from moe_search.bench.qaplib_folder import VARIABLE, best_known_values, qaplib_folder
from moe_search.problems.qaplib import read_qaplib


class Dataset(BaseDataset):
    """A file NAME.dat in the folder that is given or that MOE_SEARCH_QAPLIB names.

    Best known values come from ``best_known.csv`` beside it (columns name, best_known_value) if there is one.
    """

    name = "qaplib"
    requirements = ("pip::moe-search[bench]",)
    parameters = {"instance": ["nug12", "nug30", "tai30a"], "folder": [None]}  # noqa: RUF012
    parameter_template = "{instance}"

    instance: str
    folder: str | None

    def get_data(self) -> dict[str, Any]:
        """Return the problem and its best known value, or None and why it is not there."""
        folder = qaplib_folder(self.folder)
        missing: dict[str, Any] = {"problem": None, "best_known": None}
        if folder is None:
            return missing | {"reason": f"no folder of QAPLIB files is given, set {VARIABLE} to one"}
        path = folder / f"{self.instance}.dat"
        if not path.is_file():
            return missing | {"reason": f"there is no file {path}"}
        return {"problem": read_qaplib(path), "best_known": best_known_values(folder).get(self.instance)}
