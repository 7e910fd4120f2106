"""A clock that compilation does not count on."""

from __future__ import annotations

import time
from typing import Any


class Clock:
    """Seconds since its creation, compilation apart."""

    def __init__(self) -> None:
        self.started = time.perf_counter()

    def seconds(self) -> float:
        """Return the seconds on the clock."""
        return time.perf_counter() - self.started

    def compile(self, dispatcher: Any, *arguments: Any) -> None:
        """Call a kernel once, with arguments under which it does no work, and stop the clock if that compiled it."""
        known = len(getattr(dispatcher, "overloads", ()))
        before = time.perf_counter()
        dispatcher(*arguments)
        if len(getattr(dispatcher, "overloads", ())) > known:
            self.started += time.perf_counter() - before
