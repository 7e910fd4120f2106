"""What `moe_search.solve` shows of a run, on the standard error, while it runs."""

from __future__ import annotations

import html
import math
import re
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moe_search.solvers.engine.result import Result, format_gap, format_number, relative_gap
from moe_search.solvers.engine.run import Run
from moe_search.solvers.engine.stop import Progress

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

COLUMNS = 80
"""Of the lines that tell problem and solver, whose parameters may be those of a portfolio."""
INNER_PARAMETERS = re.compile(r"(?<=\w)\((?:[^()]|(?<!\w)\([^()]*\))*\)")
"""Those of one name, numbers in brackets among them: ``(tenure=(0.0, 8.0), aspiration=5.0)``."""
REDRAWN_EVERY = 0.2
GUTTER, LEAST_BAR = 2, 10
"""Columns between what stands on a terminal, and those of the bar: the last numbers give way to it."""
FIRST_LINE_AFTER, LINE_GROWTH = 1.0, 0.1
"""Lines in a file come after a second, then every second, and later after a tenth of the time that has passed."""


def displayed(run: Run, search: Callable[[], Result]) -> Result:
    """Return what `search` finds, and show meanwhile where its run stands; the outcome stays on the screen.

    On a terminal that is a line with a bar, in a notebook a table, elsewhere a line now and then. It only looks at the
    run, from a thread of its own: the search does the same work as without it.
    """
    from rich.console import Console

    console = Console(stderr=True)
    watched = _Watched(run, run.stop.start().allowance(Progress()).seconds)
    if console.is_jupyter:
        return _in_notebook(watched, search)
    print(watched.headline, file=sys.stderr)
    on_terminal = console.is_terminal and not console.is_dumb_terminal and sys.stderr.isatty()
    with _bar(watched, console) if on_terminal else _lines(watched):
        result = search()
    print(_ending(result), file=sys.stderr)
    return result


def _ending(result: Result) -> str:
    return f"{result.outcome()}, {result.iterations:,} iterations in {result.runtime:.3f} s"


@dataclass(frozen=True)
class _Watched:
    """A run, and the seconds that it may take."""

    run: Run
    limit: float

    @property
    def headline(self) -> str:
        return f"{shortened(repr(self.run.problem))}\n{shortened(f'by {self.run.solver}')}"

    def standing(self) -> dict[str, str]:
        """Return where the run stands; it goes on meanwhile, so that a value may be newer than the time."""
        value, bound = self.run.value, self.run.bound
        has_value = math.isfinite(value)
        gap = relative_gap(value, bound) if has_value else None
        limit = f" / {self.limit:g}" if math.isfinite(self.limit) else ""
        return {
            "time": "compiling or loading" if self.run.clock.compiles() else f"{self.run.clock.seconds():.1f}{limit} s",
            "value": format_number(value) if has_value else "-",
            "bound": "-" if bound is None else format_number(bound),
            "gap": "-" if gap is None else format_gap(gap),
            "iterations": _rounded(self.run.iterations),
        }


def shortened(line: str) -> str:
    """Return a line as it is where it is short, else without parameters of what stands within, and cut."""
    name, bracket, rest = line.partition("(")
    before = ""
    while len(name + bracket + rest) > COLUMNS and rest != before:
        before, rest = rest, INNER_PARAMETERS.sub("", rest)
    return textwrap.shorten(name + bracket + rest, COLUMNS, placeholder=" ...")


def _rounded(count: int) -> str:
    """Return a count as it can be read while it grows, such as 12.3M."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)


@contextmanager
def _bar(watched: _Watched, console: Console) -> Iterator[None]:
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    def line() -> RenderableType:
        time, *parts, (_, iterations) = watched.standing().items()
        labelled = [time[1], *(f"[dim]{name}[/dim] {text}" for name, text in parts), f"{iterations} iterations"]
        texts = [Text.from_markup(each) for each in labelled]
        while LEAST_BAR + sum(GUTTER + text.cell_len for text in texts) + GUTTER > console.width and len(texts) > 1:
            texts.pop()
        row = Table.grid(padding=(0, GUTTER, 0, 0), expand=True)
        row.add_column(ratio=1)
        for _ in texts:
            row.add_column(no_wrap=True, justify="right")
        endless = watched.run.clock.compiles() or math.isinf(watched.limit)
        row.add_row(ProgressBar(None if endless else watched.limit, watched.run.clock.seconds(), pulse=endless), *texts)
        return row

    with Live(get_renderable=line, console=console, refresh_per_second=1 / REDRAWN_EVERY, transient=True):
        yield


@contextmanager
def _lines(watched: _Watched) -> Iterator[None]:
    def show() -> None:
        # That kernels are compiled is logged.
        if not watched.run.clock.compiles():
            print("  ".join(f"{name} {text}" for name, text in watched.standing().items()), file=sys.stderr, flush=True)

    with _repeated(show, lambda: max(FIRST_LINE_AFTER, LINE_GROWTH * watched.run.clock.seconds())):
        yield


def _in_notebook(watched: _Watched, search: Callable[[], Result]) -> Result:
    from IPython.display import display

    def standing() -> dict[str, str]:
        return _in_both_forms(watched.headline, watched.standing())

    shown: Any = display(standing(), raw=True, display_id=True)
    with _repeated(lambda: shown.update(standing(), raw=True), lambda: REDRAWN_EVERY):
        result = search()
    shown.update(_in_both_forms(watched.headline, {"": _ending(result)}), raw=True)
    return result


def _in_both_forms(headline: str, row: dict[str, str]) -> dict[str, str]:
    """Return lines of text and a table of one row below them, as what a notebook shows and as what a console does."""
    text = ", ".join(f"{name} {cell}".strip() for name, cell in row.items())
    names, cells = (
        "".join(f'<td style="text-align: left">{html.escape(each)}</td>' for each in texts)
        for texts in (row, row.values())
    )
    table = f"<table><tr>{names}</tr><tr>{cells}</tr></table>"
    return {"text/plain": f"{headline}\n{text}", "text/html": f"<pre>{html.escape(headline)}</pre>{table}"}


@contextmanager
def _repeated(show: Callable[[], object], pause: Callable[[], float]) -> Iterator[None]:
    """Call `show` in a thread after a pause, again and again, within the context."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(pause()):
            show()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
