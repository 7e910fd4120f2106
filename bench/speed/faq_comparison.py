"""The default `solve()` against 30 randomized starts of scipy's FAQ, at equal time."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

import moe_search as ms

TITLE = "Default solve() against 30 starts of FAQ"
STARTS = 30
RANDOM_SIZES = (12, 30)


def measure(qaplib: Path | None, seconds: float) -> pd.DataFrame:
    """Return a row for each instance, all of QAPLIB's; without its files, random instances take their place.

    Below one, `seconds` is the share of the 30 starts to make. The time is the one they take, whatever it is.
    """
    if qaplib is None:
        problems = {f"random {n}": ms.random_quadratic(n, seed=0) for n in RANDOM_SIZES}
    else:
        problems = {path.stem: ms.read_qaplib(path) for path in sorted(qaplib.glob("*.dat"))}
    starts = max(int(min(seconds, 1.0) * STARTS), 1)
    rows = []
    for name, problem in problems.items():
        ms.solve(problem, stop=ms.MaxIterations(1))  # compiles
        peer = ms.FrankWolfe().solve(problem, ms.MaxIterations(starts), seed=0)
        ours = ms.solve(problem, stop=ms.MaxRuntime(peer.runtime), seed=0)
        rows.append(
            {
                "instance": name,
                "ours": ours.value,
                "peer": peer.value,
                "seconds": peer.runtime,
                "solver": ours.solver,
                "met": ours.value <= peer.value,
            }
        )
    return pd.DataFrame(rows)
