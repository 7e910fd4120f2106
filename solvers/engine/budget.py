"""How much work a compiled search does between two looks at the clock."""

from __future__ import annotations

from dataclasses import dataclass

SLICE_SECONDS = 0.004
FIRST_BUDGET = 16
MAX_BUDGET = 1 << 40


@dataclass
class Budget:
    """Work of the next slice, adapted so that a slice takes about `SLICE_SECONDS`."""

    seconds_per_unit: float = 0.0
    last: int = FIRST_BUDGET // 8

    def next(self, seconds_left: float, units_left: float) -> int:
        """Return how many units of work the next slice may do, at least one."""
        if self.seconds_per_unit > 0.0:
            # A short slice is a poor measure: grow by at most 8 from one to the next.
            fitting = min(SLICE_SECONDS, seconds_left) / self.seconds_per_unit
            budget = min(fitting, 8.0 * self.last)
        else:
            budget = 8.0 * self.last
        return max(1, int(min(budget, units_left, MAX_BUDGET)))

    def record(self, work: int, seconds: float) -> None:
        """Take in the time that a slice took."""
        self.last = max(work, 1)
        self.seconds_per_unit = max(seconds, 1e-9) / self.last
