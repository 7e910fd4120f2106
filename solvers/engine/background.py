"""Work in a thread of its own, watched from the caller's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from moe_search.problems.kernel_cache import compile_time

POLL_SECONDS = 0.01


def run_watched(work: Callable[[], Any], look: Callable[[], Any], cancel: Callable[[], Any]) -> bool:
    """Call `work` in a thread and `look` every few milliseconds in this one, until the work has ended.

    Parameters
    ----------
    work : callable
        What to do.
    look : callable
        Called while it is done, and once at the end.
    cancel : callable
        Called until the work has ended after Ctrl-C or an exception in `look`; it must bring `work` to its end.

    Returns
    -------
    bool
        Whether Ctrl-C came. Any other exception, of `work` or `look`, is raised here.
    """
    # An event and not Thread.join: a join that Ctrl-C breaks off takes the thread for ended.
    ended = threading.Event()
    failures: list[BaseException] = []

    def do() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)
        finally:
            ended.set()

    interrupted = False
    threading.Thread(target=do, daemon=True).start()
    try:
        while not ended.wait(POLL_SECONDS):
            look()
        look()
    except KeyboardInterrupt:
        interrupted = True
    finally:
        while not ended.wait(POLL_SECONDS):
            cancel()
    if failures:
        raise failures[0]
    return interrupted


def count_workers(n_jobs: int) -> int:
    """Return how many threads an `n_jobs` asks for, as joblib reads it."""
    if n_jobs == 1:
        return 1
    # Imported here: it takes longer than many a search.
    with compile_time():
        from joblib import effective_n_jobs

    return max(effective_n_jobs(n_jobs), 1)
