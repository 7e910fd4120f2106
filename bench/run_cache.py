"""Where benchopt keeps the runs of a comparison: a folder of the user's for every state of the sources."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import moe_search
from moe_search.solvers.result import installed_versions


def cache_folder() -> Path:
    """Return the folder, made if need be: below XDG_CACHE_HOME or ``~/.cache``.

    Its name depends on our sources and on the versions of what a result depends on: benchopt's own key knows neither,
    and would hand out the runs of an older solver.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "moe-search" / "bench" / _digest()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _digest() -> str:
    home = Path(moe_search.__file__).parent
    digest = hashlib.sha256(repr(installed_versions()).encode())
    for part in ("problems", "solvers", "bench"):
        for path in sorted((home / part).rglob("*.py")):
            digest.update(path.relative_to(home).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]
