"""Regression tasks in hidden groups: tasks of a group have one answer, but for noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_search.checks import require_integer, require_number

TEACHER_UNITS = 8


@dataclass(frozen=True)
class GroupedTasks:
    """Samples of many tasks.

    Attributes
    ----------
    inputs : ndarray of float32, shape (N, features)
    tasks : ndarray of int64, shape (N,)
        The task of every sample; what a gate may see.
    targets : ndarray of float32, shape (N,)
    groups : ndarray of int64, shape (T,)
        The group of every task; what a gate is to find out.
    """

    inputs: NDArray[np.float32]
    tasks: NDArray[np.int64]
    targets: NDArray[np.float32]
    groups: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.inputs)


def make_hidden_groups(
    num_tasks: int = 32,
    num_groups: int = 8,
    samples_per_task: int = 100,
    *,
    in_features: int = 10,
    own_part: float = 0.1,
    noise: float = 0.1,
    seed: int = 0,
    split: int = 0,
) -> GroupedTasks:
    """Draw tasks whose answers a group shares.

    A group has a random network of one hidden layer of 8 tanh units as its teacher, scaled to answers of variance 1. A
    task answers with the teacher of its group, plus a random linear function of its own, plus noise. Groups are equal
    in size, and which tasks belong together is drawn.

    Parameters
    ----------
    num_tasks, num_groups, samples_per_task, in_features : int
        The tasks are a multiple of the groups. Inputs are standard normal.
    own_part, noise : float
        Standard deviation of a task's own function and of the noise.
    seed : int
        Decides groups and functions.
    split : int
        Decides inputs and noise: other numbers give more samples of the same tasks.

    Returns
    -------
    GroupedTasks
        The samples of the first task, then those of the second, and so on.

    Notes
    -----
    After the synthetic study of Hazimeh et al. (2021), DSelect-k, where tasks of hidden groups share experts.
    """
    sizes = {"num_tasks": num_tasks, "num_groups": num_groups, "samples_per_task": samples_per_task}
    for name, size in (*sizes.items(), ("in_features", in_features)):
        require_integer(name, size)
    for name, number in (("seed", seed), ("split", split)):
        require_integer(name, number, 0)
    for name, spread in (("own_part", own_part), ("noise", noise)):
        require_number(name, spread)
    if num_tasks % num_groups:
        raise ValueError(f"num_tasks must be a multiple of num_groups, got {num_tasks} tasks in {num_groups} groups")
    functions = np.random.default_rng((seed, 0))
    groups = functions.permutation(np.arange(num_tasks) % num_groups)
    first = functions.normal(size=(num_groups, in_features, TEACHER_UNITS)) / np.sqrt(in_features) * 2
    second = functions.normal(size=(num_groups, TEACHER_UNITS))
    own = functions.normal(size=(num_tasks, in_features)) / np.sqrt(in_features)
    probe = np.random.default_rng((seed, 1)).normal(size=(1000, in_features))
    spread = np.einsum("gsu,gu->gs", np.tanh(np.einsum("sf,gfu->gsu", probe, first)), second).std(axis=1)

    samples = np.random.default_rng((seed, 2, split))
    inputs = samples.normal(size=(num_tasks, samples_per_task, in_features))
    hidden = np.tanh(np.einsum("tsf,tfu->tsu", inputs, first[groups]))
    answers = np.einsum("tsu,tu->ts", hidden, second[groups]) / spread[groups][:, None]
    answers += own_part * np.einsum("tsf,tf->ts", inputs, own)
    answers += noise * samples.normal(size=answers.shape)
    return GroupedTasks(
        inputs.reshape(-1, in_features).astype(np.float32),
        np.repeat(np.arange(num_tasks), samples_per_task),
        answers.reshape(-1).astype(np.float32),
        groups.astype(np.int64),
    )
