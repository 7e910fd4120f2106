"""Every speed benchmark of this folder, in one run: tables in the terminal, as parquet and as Markdown.

Run ``python -m moe_search.bench.speed``, or ``make bench`` from a checkout; ``--only NAME`` runs one of them. What is
checked in, in ``bench/results``, is written with ``--output bench/results`` only.

A speed benchmark is a module of this folder with a ``TITLE`` and a function ``measure(qaplib, seconds)``, which returns
a DataFrame, one row a measurement. It is given the folder of QAPLIB files, or None where there is none, and the seconds
that a measurement may take, in which most find as many rounds as they need. Ratios are taken in one run. A module may
have ``NOTES`` too, which a reader of the table needs.
"""

from __future__ import annotations

import importlib
import math
import re
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from rich.console import Console

from moe_search.bench.datasets.qaplib import qaplib_folder
from moe_search.bench.machine_facts import machine_facts
from moe_search.plotting.table import Table

FOLDER = Path(__file__).parent
WIDTH = 160
IS_BENCHMARK = re.compile(r"^TITLE\b.*^def measure\(", re.MULTILINE | re.DOTALL)


def speed_benchmarks(folder: Path = FOLDER) -> tuple[str, ...]:
    """Return the names of the modules of a folder that have a ``TITLE`` and a ``measure``, none of them imported."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.py")}
    return tuple(sorted(name for name, text in texts.items() if IS_BENCHMARK.search(text)))


def as_table(title: str, measured: pd.DataFrame) -> Table:
    """Return measurements as a table of texts; a number that was not measured is a dash."""
    rows = tuple(tuple(_cell(value) for value in row) for row in measured.itertuples(index=False))
    return Table(title, tuple(map(str, measured.columns)), rows)


def write_measurements(
    name: str, table: Table, measured: pd.DataFrame, facts: dict[str, str], folder: Path, notes: str = ""
) -> None:
    """Write NAME.parquet, and NAME.md with what a reader needs to know of the numbers and the machine."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = measured.copy()
    stored.attrs = facts
    stored.to_parquet(folder / f"{name}.parquet")
    lines = "".join(f"- {key}: {value}\n" for key, value in facts.items())
    (folder / f"{name}.md").write_text(f"{table.as_markdown()}\n{notes}{lines}", encoding="utf-8")


def main(
    qaplib: Annotated[
        Path | None, typer.Option(help="Folder of QAPLIB files. [default: that of MOE_SEARCH_QAPLIB]")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Seconds for each measurement.", min=0.01)] = 1.0,
    only: Annotated[list[str] | None, typer.Option(help="Name of a benchmark; may be repeated. [default: all]")] = None,
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("moe-search-speed"),
) -> None:
    """Run the speed benchmarks one after the other. One that raises does not keep the others from running."""
    names = speed_benchmarks()
    unknown = sorted(set(only or ()) - set(names))
    if unknown:
        raise typer.BadParameter(f"--only must be one of {', '.join(names)}, got {', '.join(unknown)}")
    folder = qaplib_folder(qaplib)
    if folder is not None and not folder.is_dir():
        raise typer.BadParameter(f"--qaplib must be a folder of QAPLIB files, got {folder}")
    console = Console(width=WIDTH)
    failed = []
    for name in names:
        if only and name not in only:
            continue
        module = importlib.import_module(f"moe_search.bench.speed.{name}")
        try:
            measured = module.measure(folder, seconds)
        except Exception as error:
            console.print(f"{name} failed: {type(error).__name__}: {error}", style="bold red", markup=False)
            failed.append(name)
            continue
        table = as_table(module.TITLE, measured)
        notes = getattr(module, "NOTES", "")
        console.print(table.as_rich())
        console.print(notes, markup=False)
        facts = {"Seconds for each measurement": f"{seconds:g}"} | machine_facts()
        write_measurements(name, table, measured, facts, output, notes)
    if failed:
        raise typer.Exit(1)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        # Four digits are more than such a measurement repeats.
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    typer.run(main)
