"""What a comparison prints while it runs: plain lines, the same in a terminal and in a file."""

from __future__ import annotations

import re
import time
from collections import Counter
from typing import Any

from benchopt.utils.terminal_output import TerminalOutput


def duration(seconds: float) -> str:
    """Return a time as text, such as ``12 s``, ``5 min 3 s`` or ``1 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def plan(cells: list[dict[str, Any]], repetitions: int, seconds: float, n_jobs: int) -> str:
    """Return how many runs there are and how long they take at most, where none is cached."""
    taken = sum(cell["reason"] is None for cell in cells)
    datasets, solvers = (len({cell[key] for cell in cells}) for key in ("dataset", "solver"))
    return (
        f"{solvers} solvers, {datasets} data sets: {taken:,} pairs x {repetitions} repetitions x {seconds:g} s / "
        f"{n_jobs} at a time = {duration(taken * repetitions * seconds / n_jobs)} at most, and the time to start them"
    )


def skips(cells: list[dict[str, Any]]) -> list[str]:
    """Return a line for each solver and kind of reason for which it skips data sets; digits make no kind."""
    datasets = len({cell["dataset"] for cell in cells})
    reasons: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        if cell["reason"] is not None:
            reasons.setdefault((cell["solver"], re.sub(r"\d[\d,.]*", "0", cell["reason"])), []).append(cell["reason"])
    return [
        f"{solver} skips {len(found)} of {datasets} data sets: {found[0]}"
        for (solver, _), found in sorted(reasons.items())
    ]


class RunLog:
    """One line for each data set whose runs have ended and each run that failed, and a total at the end."""

    def __init__(self, cells: list[dict[str, Any]], repetitions: int) -> None:
        taken = Counter(cell["dataset"] for cell in cells if cell["reason"] is None)
        self.open = Counter({dataset: count * repetitions for dataset, count in taken.items()})
        self.total = self.open.total()
        self.counts: dict[str, Counter[str]] = {dataset: Counter() for dataset in self.open}
        self.started = time.perf_counter()

    def take(self, dataset: str, solver: str, repetition: int, failure: str | None, is_cached: bool) -> None:
        """Count a run that ended."""
        self.open[dataset] -= 1
        counts = self.counts[dataset]
        counts["done" if failure is None else "failed"] += 1
        counts["from the cache"] += is_cached
        if failure is not None:
            print(f"failed: {solver} on {dataset}, repetition {repetition}: {failure}", flush=True)
        if not self.open[dataset]:
            ended = self.total - self.open.total()
            print(f"{ended:,} of {self.total:,}  {dataset}: {_told(counts)}", flush=True)

    def end(self) -> None:
        """Print how many runs there were and how long they took."""
        counts: Counter[str] = sum(self.counts.values(), Counter())
        spent = duration(time.perf_counter() - self.started)
        print(f"{self.total:,} runs in {spent}: {_told(counts)}", flush=True)


class QuietTerminal(TerminalOutput):
    """Tells, in place of benchopt's own lines, only which data sets and solvers are not there."""

    def display_dataset(self) -> None:
        """Print nothing."""

    def display_objective(self) -> None:
        """Print nothing."""

    def show_status(self, status: str, *args: Any, dataset: bool = False, **kwargs: Any) -> None:
        """Print the name of what is not installed."""
        if status == "not installed":
            print(f"{self.dataset if dataset else self.solver} is not installed", flush=True)

    def skip(self, reason: str | None = None, objective: bool = False) -> None:
        """Print the name of a data set that is not there, once."""
        if self.i_solver == 0:
            print(f"{self.dataset} is left out: {reason}", flush=True)


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[what]:,} {what}" for what in ("done", "failed", "from the cache") if counts[what])
