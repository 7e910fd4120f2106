"""What figures depend on: the date, the processor and the versions."""

from __future__ import annotations

import datetime
import os
import platform
from importlib import metadata
from pathlib import Path

PACKAGES = ("moe-search", "numpy", "scipy", "numba", "ortools", "torch", "benchopt")


def machine_facts() -> dict[str, str]:
    """Return the date, the processor with its number of cores, and the versions of what is installed."""
    versions = [f"python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return {
        "Date": datetime.date.today().isoformat(),
        "Processor": f"{processor()}, {os.cpu_count()} cores",
        "Versions": ", ".join(versions),
    }


def processor() -> str:
    """Return the name of the processor, as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
