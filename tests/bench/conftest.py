import os
import subprocess
import sys
from pathlib import Path

import pytest

import moe_search

ROOT = Path(moe_search.__file__).parents[1]


@pytest.fixture
def bench(tmp_path):
    """Start ``moe-search bench`` in a folder of its own: benchopt warns and keeps state, so never in this process."""

    def command(*arguments):
        return [sys.executable, "-c", "from moe_search.bench.commands import app; app()", "bench", *map(str, arguments)]

    def run(*arguments, check=True, start=False):
        environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
        # The package under test, also where another checkout is the installed one.
        environment["PYTHONPATH"] = str(ROOT)
        # A console script has not the current folder on its path, as python -c would.
        environment["PYTHONSAFEPATH"] = "1"
        environment.pop("MOE_SEARCH_QAPLIB", None)
        if start:
            return subprocess.Popen(
                command(*arguments),
                cwd=tmp_path,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        done = subprocess.run(command(*arguments), cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    return run
