"""Rounds in which all that is measured takes turns, so that a slow minute of the machine is no one's disadvantage."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence


def in_turns(measures: Sequence[Callable[[], float]], rounds: int, seconds: float = math.inf) -> list[list[float]]:
    """Return what each of `measures` gave, one list a measure, one entry a round; after `seconds` no round begins."""
    started = time.perf_counter()
    found: list[list[float]] = [[] for _ in measures]
    while len(found[0]) < rounds and (not found[0] or time.perf_counter() - started < seconds):
        for measure, numbers in zip(measures, found, strict=True):
            numbers.append(measure())
    return found


def seconds_of(call: Callable[[], object], seconds: float) -> float:
    """Return the seconds that a call takes, from as many as fit into about `seconds`."""
    started = time.perf_counter()
    calls = 0
    while calls == 0 or time.perf_counter() - started < seconds:
        call()
        calls += 1
    return (time.perf_counter() - started) / calls


def compared(ours: Sequence[float], peer: Sequence[float], *, rates: bool = False) -> dict[str, float]:
    """Return the medians of both over the rounds, and the median of how many times as fast as the peer ours is.

    Numbers are times, or rates: how much was done in a time.
    """
    quotients = [a / b if rates else b / a for a, b in zip(ours, peer, strict=True)]
    return {"ours": statistics.median(ours), "peer": statistics.median(peer), "ratio": statistics.median(quotients)}
