"""The default `solve()` against 30 randomized starts of scipy's FAQ, at equal time.

Run ``python -m moe_search.bench.speed.faq_comparison --qaplib FOLDER``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

import moe_search as ms

TITLE = "Default solve() against 30 starts of FAQ"
STARTS = 30
RANDOM_SIZES = (12, 30)


def measure(qaplib: Path | None, seconds: float) -> pd.DataFrame:
    """Return a row for each instance.

    Parameters
    ----------
    qaplib : Path or None
        Folder of QAPLIB files, all of which are taken; without it, random instances take their place.
    seconds : float
        Below one, that share of the 30 starts. The time is the one they take, whatever it is.
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


def main(
    qaplib: Annotated[Path | None, typer.Option(help="Folder of QAPLIB .dat files.", exists=True)] = None,
    seconds: Annotated[float, typer.Option(help="Below one, that share of the starts.", min=0.01)] = 1.0,
) -> None:
    """Print the table."""
    print(measure(qaplib, seconds).to_string(index=False, float_format="{:,.3f}".format))


if __name__ == "__main__":
    typer.run(main)
