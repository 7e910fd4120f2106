"""What a comparison is asked for: a suite of data sets, solvers, repetitions and seconds."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from moe_search.bench.datasets.qaplib import VARIABLE
from moe_search.checks import require_choice, require_integer, require_number


class Suite(NamedTuple):
    """Data sets, as patterns ``name[parameter=value]`` of benchopt, and the seconds that a run on them gets."""

    datasets: tuple[str, ...]
    seconds: float


SUITES = {
    "small": Suite(
        (
            "random-linear[num_experts=8,capacity=8,seed=[0,1]]",
            "random-quadratic[size=[9,20,30],seed=[0,1]]",
            "random-pairwise[num_experts=8,seed=[0,1]]",
            "random-mixture[num_experts=12,num_samples=128,loss=[squared,cross_entropy]]",
            "trained-gate",
        ),
        0.25,
    ),
    "medium": Suite(
        (
            "random-linear[num_experts=16,capacity=[16,64],seed=[0,1,2]]",
            "random-quadratic[size=[30,50,80],seed=[0,1,2]]",
            "random-pairwise[num_experts=[12,16],capacity=[1,2],seed=[0,1]]",
            "random-mixture[num_experts=[16,32],num_samples=512,loss=[squared,bce,cross_entropy]]",
            "trained-gate",
        ),
        2.0,
    ),
    "qaplib": Suite(
        (
            "qaplib[instance=[nug12,rou12,tai15a,chr15a,nug20,tai20a,scr20,lipa20a,bur26a,nug30,tai30a,kra30a,esc32a]]",
            "qaplib[instance=[ste36a,tho40,sko42,wil50,tai50a,tai50b,sko72,tai100a]]",
        ),
        5.0,
    ),
}


@dataclass(frozen=True)
class ComparisonSettings:
    """What is compared.

    Parameters
    ----------
    suite : str
        A key of `SUITES`.
    solvers, datasets : tuple of str
        benchopt's patterns; all solvers, and the data sets of the suite, if empty.
    solver_files : tuple of Path
        Files with solvers of the user's own, in addition.
    repetitions : int
        Runs of each solver on each data set, of different seeds.
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
    repetitions: int = 5
    seconds: float | None = None
    n_jobs: int = 1
    backend: Literal["loky", "dask"] = "loky"
    qaplib: Path | None = None

    def __post_init__(self) -> None:
        require_choice("suite", self.suite, tuple(SUITES))
        require_integer("repetitions", self.repetitions)
        require_integer("n_jobs", self.n_jobs)
        require_number("timeout", self.limit, strict=True)
        require_choice("backend", self.backend, ("loky", "dask"))
        if self.qaplib is not None and not self.qaplib.is_dir():
            raise ValueError(f"qaplib must be a folder of QAPLIB files, got {self.qaplib}")
        if self.suite == "qaplib" and not self.datasets and self.qaplib is None and VARIABLE not in os.environ:
            raise ValueError(f"suite qaplib needs QAPLIB files: give --qaplib FOLDER or set {VARIABLE}")

    @property
    def limit(self) -> float:
        """Seconds that a run may take."""
        return SUITES[self.suite].seconds if self.seconds is None else self.seconds
