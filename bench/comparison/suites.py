"""Named selections of data sets, with the seconds a run gets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Suite:
    """Patterns of data sets as benchopt reads them, ``name[parameter=value]``, and the limit of a run.

    Attributes
    ----------
    datasets : tuple of str
    seconds : float
    needs_qaplib : bool
        Whether it reads a folder of QAPLIB files.
    """

    datasets: tuple[str, ...]
    seconds: float
    needs_qaplib: bool = False


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
        needs_qaplib=True,
    ),
}
