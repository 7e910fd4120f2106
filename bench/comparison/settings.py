"""What a comparison is asked for: a suite of data sets, solvers, repetitions and seconds."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from moe_search.bench.comparison.literature import ARTICLES
from moe_search.bench.datasets.qaplib import VARIABLE
from moe_search.checks import require_choice, require_integer, require_number


class Suite(NamedTuple):
    """Data sets, as patterns ``name[parameter=value]`` of benchopt, and how they are run.

    Attributes
    ----------
    datasets : tuple of str
    seconds : float
        Limit of a run.
    repetitions : int
        Runs of each solver on each data set.
    solvers : tuple of str
        Those that run if none are given, as patterns of benchopt; by default all.
    """

    datasets: tuple[str, ...]
    seconds: float
    repetitions: int
    solvers: tuple[str, ...] = ("*",)


# Tests are made over the data sets of a class, so a suite has many of them rather than many repetitions: with N of them
# the least p-value is 2^(1 - N), and Holm multiplies it by the number of pairs, 66 for twelve solvers. The data sets
# are so large that not all heuristics end at the optimum. Solvers x data sets x repetitions x seconds, at most:
#   small: (12 x 16 linear + 10 x 16 quadratic + 8 x 16 pairwise + 124 mixture) x 2 x 0.25 s = 5 min
#   medium: (136 linear + 10 x 12 quadratic + 92 pairwise + 7 x 14 mixture) x 2 x 2 s = 30 min
#   qaplib: (10 x 21 + 9) x 2 x 5 s = 37 min
# over --n-jobs. To start the runs takes some minutes more, and to compile the kernels, the first time: with two at a
# time, on two cores shared with others, they took 10, 17 and 23 minutes.
SUITES = {
    "small": Suite(
        (
            f"random-linear[num_experts=16,capacity=8,seed={list(range(15))}]",
            f"random-quadratic[size=[30,40,50,60],seed={list(range(4))}]",
            f"random-pairwise[num_experts=30,seed={list(range(8))}]",
            f"random-pairwise[num_experts=16,capacity=2,seed={list(range(8))}]",
            f"random-mixture[num_experts=32,num_samples=128,loss=[squared,bce,cross_entropy],seed={list(range(5))}]",
            "trained-gate",
        ),
        seconds=0.25,
        repetitions=2,
    ),
    "medium": Suite(
        (
            f"random-linear[num_experts=16,capacity=[16,64],seed={list(range(6))}]",
            f"random-quadratic[size=[60,80,100],seed={list(range(4))}]",
            f"random-pairwise[num_experts=32,seed={list(range(6))}]",
            f"random-pairwise[num_experts=16,capacity=4,seed={list(range(6))}]",
            f"random-mixture[num_experts=48,num_samples=512,loss=[squared,bce,cross_entropy],seed={list(range(4))}]",
            "trained-gate",
        ),
        seconds=2.0,
        repetitions=2,
    ),
    "qaplib": Suite(
        (
            "qaplib[instance=[nug12,rou12,tai15a,chr15a,nug20,tai20a,scr20,lipa20a,bur26a,nug30,tai30a,kra30a,esc32a]]",
            "qaplib[instance=[ste36a,tho40,sko42,wil50,tai50a,tai50b,sko72,tai100a]]",
        ),
        seconds=5.0,
        repetitions=2,
    ),
    # As many runs as BMA made, of a minute: 35 instances, where all files are there, x 10 x 60 s = 6 h a
    # solver, over --n-jobs.
    "literature": Suite(
        (f"qaplib[instance=[{','.join(dict.fromkeys(name for each in ARTICLES for name in each.figures))}]]",),
        seconds=60.0,
        repetitions=10,
        solvers=("MemeticSearch", "TabuSearch"),
    ),
}
# They have QAPLIB files only.
OF_QAPLIB = ("qaplib", "literature")


@dataclass(frozen=True)
class ComparisonSettings:
    """What is compared.

    Parameters
    ----------
    suite : str
        A key of `SUITES`.
    solvers, datasets : tuple of str
        benchopt's patterns; those of the suite if empty.
    solver_files : tuple of Path
        Files with solvers of the user's own, in addition.
    repetitions : int, optional
        Runs of each solver on each data set, of different seeds; by default those of the suite.
    seconds : float, optional
        Limit of a run; by default that of the suite.
    n_jobs : int
        Runs at a time. More than the machine has cores to spare makes all of them slower.
    backend : {"loky", "dask"}
        Processes of joblib, or workers of Dask.
    qaplib : Path, optional
        Folder of QAPLIB files; by default that of the environment variable MOE_SEARCH_QAPLIB.
    """

    suite: str = "small"
    solvers: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    solver_files: tuple[Path, ...] = ()
    repetitions: int | None = None
    seconds: float | None = None
    n_jobs: int = 1
    backend: Literal["loky", "dask"] = "loky"
    qaplib: Path | None = None

    def __post_init__(self) -> None:
        require_choice("suite", self.suite, tuple(SUITES))
        require_integer("repetitions", self.runs_of_each)
        require_integer("n_jobs", self.n_jobs)
        require_number("timeout", self.limit, strict=True)
        require_choice("backend", self.backend, ("loky", "dask"))
        if self.qaplib is not None and not self.qaplib.is_dir():
            raise ValueError(f"qaplib must be a folder of QAPLIB files, got {self.qaplib}")
        if self.suite in OF_QAPLIB and not self.datasets and self.qaplib is None and VARIABLE not in os.environ:
            raise ValueError(f"suite {self.suite} needs QAPLIB files: give --qaplib FOLDER or set {VARIABLE}")

    @property
    def runs_of_each(self) -> int:
        """Runs of each solver on each data set."""
        return SUITES[self.suite].repetitions if self.repetitions is None else self.repetitions

    @property
    def limit(self) -> float:
        """Seconds that a run may take."""
        return SUITES[self.suite].seconds if self.seconds is None else self.seconds
