"""What a report of a bug should tell: the system, the packages, threads, and where compiled kernels are kept."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path


def show_versions() -> None:
    """Print what a report of a bug should tell: versions, processor, threads, and where compiled kernels are kept.

    Examples
    --------
    >>> import moe_search as ms
    >>> ms.show_versions()  # doctest: +ELLIPSIS
    python ...
    """
    import numba
    import torch

    from moe_search.problems.kernel_cache import cache_folders

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    variables = (f", {name}={value}" for name, value in os.environ.items() if name.endswith("_NUM_THREADS"))
    cuda = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    rows = {
        "python": f"{platform.python_version()}, {sys.executable}",
        "platform": platform.platform(),
        "processor": f"{processor()}, {os.cpu_count()} cores, {cores} of them for this process",
        "threads": f"numba {numba.config.NUMBA_NUM_THREADS}, torch {torch.get_num_threads()}{''.join(variables)}",
        "cuda": ", ".join(cuda) or "none",
        "kernels": f"kept in {' or '.join(map(str, cache_folders()))}",
        **package_versions(),
    }
    width = max(map(len, rows))
    for name, text in rows.items():
        print(f"{name:<{width}} {text}")


def package_versions() -> dict[str, str]:
    """Return the versions of this package and of what it depends on; extras that are not installed are left out."""
    needed = {"moe-search": False}
    for requirement in metadata.requires("moe-search") or []:
        needed.setdefault(re.split(r"[^\w.-]", requirement, maxsplit=1)[0], "extra ==" in requirement)
    found = {}
    for name, is_extra in needed.items():
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            if not is_extra:
                found[name] = "not installed"
    return found


def processor() -> str:
    """Return the name of the processor, as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
