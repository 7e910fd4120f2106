"""Runs a compiled search in slices of a few milliseconds, so that limits, Ctrl-C and progress work."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SLICE_SECONDS = 0.004
FIRST_BUDGET = 16
MAX_BUDGET = 1 << 40


class Clock:
    """Seconds since its creation, compilation apart."""

    def __init__(self) -> None:
        self.started = time.perf_counter()

    def seconds(self) -> float:
        """Return the seconds on the clock."""
        return time.perf_counter() - self.started

    def compile(self, dispatcher: Any, *arguments: Any) -> None:
        """Call a kernel once, with arguments under which it does no work, and stop the clock if that compiled it."""
        known = len(getattr(dispatcher, "signatures", ()))
        before = time.perf_counter()
        dispatcher(*arguments)
        if len(getattr(dispatcher, "signatures", ())) > known:
            self.started += time.perf_counter() - before


@dataclass
class Budget:
    """Iterations of the next slice, adapted so that a slice takes about `SLICE_SECONDS`."""

    seconds_per_iteration: float = 0.0
    last: int = FIRST_BUDGET // 8

    def next(self, seconds_left: float, iterations_left: float) -> int:
        """Return how many iterations the next slice may make, at least one."""
        if self.seconds_per_iteration > 0.0:
            # A short slice is a poor measure: grow by at most 8 from one to the next.
            fitting = min(SLICE_SECONDS, seconds_left) / self.seconds_per_iteration
            budget = min(fitting, 8.0 * self.last)
        else:
            budget = 8.0 * self.last
        return max(1, int(min(budget, iterations_left, MAX_BUDGET)))

    def record(self, iterations: int, seconds: float) -> None:
        """Take in the time that a slice took."""
        self.last = max(iterations, 1)
        self.seconds_per_iteration = max(seconds, 1e-9) / self.last


def interrupted_by_ctrl_c(loop: Callable[[], None]) -> bool:
    """Run `loop`; return True if Ctrl-C ended it. What it had found so far stays with its caller."""
    try:
        loop()
    except KeyboardInterrupt:
        return True
    return False
