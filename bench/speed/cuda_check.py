"""What no CPU can tell, checked on a device in eight minutes: ``python -m moe_search.bench.speed.cuda_check``.

It is for a bare machine with a recent torch and CUDA and no network: ``--wheels`` prints what has to be carried there.
Every part runs in a process of its own with a time of its own, so that neither an error, nor a crash, nor a device that
hangs keeps the others from running. The page ``cuda_check.md`` and a table, parquet where there is pyarrow and else
CSV, go to ``--output``. ``--device cpu --smallest`` tries the script itself where there is no device.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import importlib
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_search.bench.machine_facts import versions
from moe_search.plotting.table import Table

TOTAL_SECONDS = 470.0
"""All parts together; a part that ends early leaves its time to the others."""

TO_START = 25.0
"""Seconds of a part before the end of its time, in which it measures no more, and writes what it has."""

COLUMNS = ("part", "case", "measure", "value", "fine", "note")


@dataclass(frozen=True)
class Part:
    """A part of the check: a function of `cuda_parts` that yields rows, and the seconds that it may take."""

    name: str
    title: str
    seconds: float


PARTS = (
    Part("tests", "Tests that need a device", 100.0),
    Part("equality", "Gates and layers against the CPU", 90.0),
    Part("compiled", "Compiled code against the same code uncompiled", 90.0),
    Part("graphs", "CUDA graphs", 45.0),
    Part("dispatch", "Dispatch, milliseconds a step", 120.0),
    Part("search", "The search beside training", 75.0),
    Part("comet", "COMET over its own linear layer", 45.0),
    Part("ranks", "Process groups", 60.0),
)

NEEDED = ("numpy", "scipy", "numba", "llvmlite", "lazy-loader", "packaging", "threadpoolctl")
"""What is imported beside torch: a bare machine may have some of it."""

OPTIONAL = {
    "the tests and their gates": ("pytest", "iniconfig", "pluggy", "pygments", "hypothesis", "sortedcontainers"),
    "parquet": ("pyarrow",),
    "the block of Transformers": ("transformers", "with what it requires, all but torch"),
}


def wheels() -> str:
    """Return which wheels to carry, and how to get them where there is a network."""
    tag = f"{sys.version_info.major}.{sys.version_info.minor}"
    tests = " ".join(OPTIONAL["the tests and their gates"])
    lines = [
        "Beside a torch with CUDA, whose wheels are not in this list, the machine needs:",
        "  moe-search, from a checkout: a folder to run in, or `pip wheel --no-deps .`",
        *(f"  {name}" for name in NEEDED),
        "It can do without:",
        *(f"  {', '.join(names)}: for {what}" for what, names in OPTIONAL.items()),
        "The tests are in a checkout only: from the wheel alone, that part is left out, and few gates are compared.",
        f"For Python {tag} on Linux, x86_64; put the Python of the machine in its place:",
        f"  pip download --only-binary=:all: --no-deps --python-version {tag} \\",
        "      --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --dest wheels \\",
        f"      {' '.join(NEEDED)} {tests} pyarrow",
        "  pip install --no-index --no-deps --find-links wheels wheels/*.whl    # there",
    ]
    return "\n".join(lines)


def run_part(part: Part, device: str, smallest: bool, seconds: float) -> list[dict[str, Any]]:
    """Run a part in a process of its own, and return its rows, those before a crash too."""
    with tempfile.TemporaryDirectory() as folder:
        path, log = Path(folder) / "rows", Path(folder) / "log"
        command = [sys.executable, "-m", "moe_search.bench.speed.cuda_check", "--device", device]
        command += ["--part", part.name, "--rows", str(path), "--seconds", str(seconds)]
        command += ["--smallest"] if smallest else []
        fault = ""
        with log.open("w", encoding="utf-8") as output:
            # A group of its own: what a part has started ends with it.
            process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                _kill(process)
                fault = f"not done after {seconds:.0f} seconds"
            else:
                if code:
                    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                    fault = f"ended with {code}: " + " / ".join(said[-3:])
        text = path.read_text(encoding="utf-8") if path.exists() else ""
    rows = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
    if fault:
        rows.append(row("the part itself", "", fine=False, note=fault))
    return [{"part": part.name} | each for each in rows]


def row(case: str, measure: str, value: float = math.nan, fine: bool | None = None, note: str = "") -> dict[str, Any]:
    """Return a row of a part: a number or none, and whether it is as it should be, if that can be said."""
    return {"case": case, "measure": measure, "value": float(value), "fine": fine, "note": note}


def write_rows(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write rows one by one, so that each is there whatever comes after it."""
    with path.open("w", encoding="utf-8") as file:
        for each in rows:
            file.write(json.dumps(each) + "\n")
            file.flush()


def page(rows: Sequence[Mapping[str, Any]], facts: Mapping[str, str]) -> str:
    """Return all rows as one page of Markdown, a section a part, what is not as it should be first."""
    faults = [each for each in rows if each["fine"] is False]
    lines = ["# CUDA check", "", *(f"- {name}: {value}" for name, value in facts.items()), ""]
    lines += [f"{len(faults)} of {sum(each['fine'] is not None for each in rows)} checks failed.", ""]
    if faults:
        lines += [_table("Failed", faults, with_part=True), ""]
    for part in PARTS:
        found = [each for each in rows if each["part"] == part.name]
        if found:
            lines += [f"## {part.title}", "", _table("", found, with_part=False), ""]
    return "\n".join(lines)


def write_table(rows: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Write the rows as parquet, or as CSV where pyarrow is not installed; return the path."""
    try:
        pyarrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        path = folder / "cuda_check.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        return path
    path = folder / "cuda_check.parquet"
    parquet.write_table(pyarrow.table({name: [each[name] for each in rows] for name in COLUMNS}), path)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 1 if a check failed."""
    parser = argparse.ArgumentParser(prog="python -m moe_search.bench.speed.cuda_check", description=__doc__)
    parser.add_argument("--wheels", action="store_true", help="print what has to be carried to a bare machine")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ... or cpu")
    parser.add_argument("--smallest", action="store_true", help="the smallest sizes, which try the script itself")
    parser.add_argument("--only", action="append", choices=[part.name for part in PARTS], help="may be repeated")
    parser.add_argument("--output", type=Path, default=Path("moe-search-cuda"), help="folder of the page")
    for inner in ("--part", "--rows", "--seconds"):
        parser.add_argument(inner, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.wheels:
        print(wheels())
        return 0
    if given.part:
        parts = importlib.import_module("moe_search.bench.speed.cuda_parts")
        deadline = time.monotonic() + max(float(given.seconds) - TO_START, 1.0)
        write_rows(getattr(parts, given.part)(given.device, given.smallest, deadline), Path(given.rows))
        return 0
    started, rows = time.monotonic(), []
    # Before anything can have broken the device.
    facts = _facts(given.device)
    given.output.mkdir(parents=True, exist_ok=True)
    path = given.output / "cuda_check.md"
    for part in PARTS:
        if given.only and part.name not in given.only:
            continue
        left = TOTAL_SECONDS - (time.monotonic() - started)
        if left < TO_START:
            found = [{"part": part.name} | row("the part itself", "", fine=False, note="no time was left for it")]
        else:
            found = run_part(part, given.device, given.smallest, min(part.seconds, left))
        failed = sum(each["fine"] is False for each in found)
        seconds = f"{time.monotonic() - started:.0f}"
        print(f"{part.title}: {len(found)} rows, {failed} failed, {seconds} s", flush=True)
        rows += found
        # After every part: whoever ends the script, or the machine, keeps what it has found.
        table = write_table(rows, given.output)
        path.write_text(page(rows, facts | {"Seconds": seconds, "Table": table.name}), encoding="utf-8")
    print(f"{path} and {table}")
    return int(any(each["fine"] is False for each in rows))


def _facts(device: str) -> dict[str, str]:
    import torch

    on_cuda = device.startswith("cuda") and torch.cuda.is_available()
    return {
        "Device": torch.cuda.get_device_name(device) if on_cuda else f"{device}: the numbers tell nothing of CUDA",
        "CUDA": str(torch.version.cuda),
        "Date": datetime.date.today().isoformat(),
        "Platform": platform.platform(),
        "Versions": versions("moe-search", "torch", "triton", "numpy", "scipy", "numba", "transformers", "pytest"),
    }


def _table(title: str, rows: Sequence[Mapping[str, Any]], *, with_part: bool) -> str:
    columns = ("part", *COLUMNS[1:]) if with_part else COLUMNS[1:]
    texts = tuple(tuple(_text(each[name]) for name in columns) for each in rows)
    markdown = Table(title, columns, texts).as_markdown()
    return markdown if title else markdown.split("\n", 2)[2]


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).split()).replace("|", "/")[:400]


def _kill(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, 9)
    except (AttributeError, ProcessLookupError):
        process.kill()
    process.wait()


if __name__ == "__main__":
    sys.exit(main())
