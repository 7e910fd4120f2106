"""What figures depend on: the date, the processor and the versions."""

from __future__ import annotations

import datetime
import os
import platform
from contextlib import suppress
from importlib import metadata

from moe_search.installation import processor


def machine_facts() -> dict[str, str]:
    """Return the date, the processor with its number of cores, and the versions of what is installed."""
    return {
        "Date": datetime.date.today().isoformat(),
        "Processor": f"{processor()}, {os.cpu_count()} cores",
        "Versions": versions("moe-search", "numpy", "scipy", "numba", "ortools", "torch", "benchopt"),
    }


def versions(*packages: str) -> str:
    """Return the versions of Python and of those packages that are installed."""
    found = [f"python {platform.python_version()}"]
    for name in packages:
        with suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return ", ".join(found)
