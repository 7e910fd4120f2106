"""What `moe_search.solve` shows of a run, on the standard error, while it runs."""

from __future__ import annotations

import html
import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from moe_search.solvers.engine.result import Result, format_gap, format_number, relative_gap
from moe_search.solvers.engine.run import Run
from moe_search.solvers.engine.stop import Progress

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

REDRAWN_EVERY = 0.2
FIRST_LINE_AFTER, LINE_GROWTH = 1.0, 0.1
"""Lines in a file come after a second, then every second, and later after a tenth of the time that has passed."""


def displayed(run: Run, search: Callable[[], Result]) -> Result:
    """Return what `search` finds, and show meanwhile where its run stands; the outcome stays on the screen.

    On a terminal that is a line with a bar, in a notebook a table, elsewhere a line now and then. It only looks at the
    run, from a thread of its own: the search does the same work as without it.
    """
    from rich.console import Console

    console = Console(stderr=True)
    limit = run.stop.start().allowance(Progress()).seconds
    if console.is_jupyter:
        return _in_notebook(run, limit, search)
    print(_headline(run), file=sys.stderr)
    on_terminal = console.is_terminal and not console.is_dumb_terminal and sys.stderr.isatty()
    with _bar(run, limit, console) if on_terminal else _lines(run, limit):
        result = search()
    print(_ending(result), file=sys.stderr)
    return result


def _headline(run: Run) -> str:
    return f"{run.problem!r}\nby {run.solver}"


def _ending(result: Result) -> str:
    return f"{result.outcome()}, {result.iterations:,} iterations in {result.runtime:.3f} s"


def _standing(run: Run, limit: float) -> dict[str, str]:
    """Return where a run of `limit` seconds stands; it goes on meanwhile, so a value may be newer than the time."""
    value, bound = run.value, run.bound
    has_value = math.isfinite(value)
    gap = relative_gap(value, bound) if has_value else None
    time = f"{run.clock.seconds():.1f}{f' / {limit:g}' if math.isfinite(limit) else ''} s"
    return {
        "time": "compiling" if run.clock.compiles() else time,
        "value": format_number(value) if has_value else "-",
        "bound": "-" if bound is None else format_number(bound),
        "gap": "-" if gap is None else format_gap(gap),
        "iterations": _rounded(run.iterations),
    }


def _rounded(count: int) -> str:
    """Return a count as it can be read while it grows, such as 12.3M."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)


@contextmanager
def _bar(run: Run, limit: float, console: Console) -> Iterator[None]:
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    def line() -> RenderableType:
        standing = _standing(run, limit)
        time, iterations = standing.pop("time"), standing.pop("iterations")
        texts = [time, *(f"[dim]{name}[/dim] {text}" for name, text in standing.items()), f"{iterations} iterations"]
        row = Table.grid(padding=(0, 2, 0, 0), expand=True)
        row.add_column(ratio=1)
        for _ in texts:
            row.add_column(no_wrap=True, justify="right")
        endless = math.isinf(limit) or time == "compiling"
        bar = ProgressBar(None, pulse=True) if endless else ProgressBar(limit, run.clock.seconds())
        row.add_row(bar, *texts)
        return row

    with Live(get_renderable=line, console=console, refresh_per_second=1 / REDRAWN_EVERY, transient=True):
        yield


@contextmanager
def _lines(run: Run, limit: float) -> Iterator[None]:
    def show() -> None:
        print("  ".join(f"{name} {text}" for name, text in _standing(run, limit).items()), file=sys.stderr, flush=True)

    with _repeated(show, lambda passed: max(FIRST_LINE_AFTER, LINE_GROWTH * passed), run):
        yield


def _in_notebook(run: Run, limit: float, search: Callable[[], Result]) -> Result:
    from IPython.display import display

    def standing() -> dict[str, str]:
        return _in_both_forms(_headline(run), _standing(run, limit))

    shown: Any = display(standing(), raw=True, display_id=True)
    with _repeated(lambda: shown.update(standing(), raw=True), lambda passed: REDRAWN_EVERY, run):
        result = search()
    shown.update(_in_both_forms(_headline(run), {"": _ending(result)}), raw=True)
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
def _repeated(show: Callable[[], object], pause: Callable[[float], float], run: Run) -> Iterator[None]:
    """Call `show` in a thread after a pause, again and again, within the context."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(pause(run.clock.seconds())):
            show()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
