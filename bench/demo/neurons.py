"""Neurons in experts: a dense network trained on the spot, its hidden layer split at random and by search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from moe_search.bench.datasets.data_files import divide
from moe_search.bench.datasets.two_images import DARKEST
from moe_search.bench.demo.tables import verdict_of
from moe_search.bench.experiments.paired_statistics import mean_and_error
from moe_search.layers import MixtureOfExperts, cluster_neurons, split_feed_forward
from moe_search.plotting.loss_curves import LossCurve, LossPanel
from moe_search.plotting.palette import INK, MUTED, OKABE_ITO
from moe_search.plotting.table import Table
from moe_search.problems import NeuronPartition

HIDDEN = 256
EXPERTS = 16
ACTIVE = (1, 2, 4, 8, 12)
"""Numbers of experts that a row runs."""

TOLD, ENOUGH = 4, 12
"""Those of which a sentence tells: where the split matters, and where it does not."""

TRAIN_SHARE = 0.7
BATCH_SIZE = 64
LEARNING_RATE = 2e-3

RANDOM, SEARCHED = "at random", "by search"


@dataclass(frozen=True)
class Split:
    """A dense layer split into experts.

    Attributes
    ----------
    how : str
        `RANDOM` or `SEARCHED`.
    active : int
        Experts that a row runs.
    seed : int
        Of the network, the data and the split.
    lost, bound : float
        The part of the mass of the neurons that training rows lose if they run the best experts, and the least that
        any split loses.
    error : float
        Squared error of the outputs on test images, routed from the inputs, as a part of their variance.
    accuracy, dense : float
        On test images, and what the whole network has.
    """

    how: str
    active: int
    seed: int
    lost: float
    bound: float
    error: float
    accuracy: float
    dense: float


@dataclass(frozen=True)
class NeuronsResult:
    """All splits of all networks."""

    splits: tuple[Split, ...]

    def column(self, measure: Callable[[Split], float], how: str, active: int) -> list[float]:
        """Return a measure, seed by seed."""
        return [measure(each) for each in self.splits if (each.how, each.active) == (how, active)]

    def accuracies(self, how: str, active: int) -> list[float]:
        """Return the accuracies, seed by seed."""
        return self.column(lambda split: split.accuracy, how, active)


def split_networks(seeds: int, steps: int, on_seed: Callable[[int], None]) -> NeuronsResult:
    """Train networks on images of digits and split each one; `on_seed` is told when one is done."""
    splits: list[Split] = []
    for seed in range(seeds):
        splits += split_network(seed, steps)
        on_seed(seed)
    return NeuronsResult(tuple(splits))


def split_network(seed: int, steps: int) -> list[Split]:
    """Train a network and split it, for every number of active experts at random and by search."""
    pixels, classes = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels / DARKEST, dtype=torch.float32), torch.tensor(classes)
    train, test = map(torch.from_numpy, divide(len(images), (TRAIN_SHARE,), np.random.default_rng(seed)))
    network = train_network(images[train], labels[train], steps, seed)
    dense = accuracy(network, images[test], labels[test])
    first, second = network[0], network[2]
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    with torch.no_grad():
        hidden = network[:2](images[train])
        lengths = second.weight.norm(dim=0)
        mass = ((hidden - hidden.mean(0)) * lengths).double().square().numpy()
        outputs = network(images[test])
    shuffled = torch.randperm(HIDDEN, generator=torch.Generator().manual_seed(seed)).view(EXPERTS, -1)
    splits = []
    for active in ACTIVE:
        problem = NeuronPartition(mass, EXPERTS, active)
        limits = problem.value_range()
        assert limits is not None
        for how in (RANDOM, SEARCHED):
            neurons = shuffled
            if how == SEARCHED:
                neurons = cluster_neurons(hidden, lengths, EXPERTS, active, seed=seed)
            parts = split_feed_forward(
                first, second, nn.ReLU, neurons, router="ridge", active=active, inputs=images[train]
            )
            mixture = MixtureOfExperts(*parts).eval()
            with torch.no_grad():
                error = (mixture(images[test]) - outputs).square().sum() / (outputs - outputs.mean(0)).square().sum()
            splits.append(
                Split(
                    how,
                    active,
                    seed,
                    problem.value(labels_of(neurons)),
                    limits[0],
                    float(error),
                    accuracy(mixture, images[test], labels[test]),
                    dense,
                )
            )
    return splits


def train_network(images: Tensor, labels: Tensor, steps: int, seed: int) -> nn.Sequential:
    """Return a network of one hidden layer, trained by Adam."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(images.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10))
        optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
        for _ in range(steps):
            rows = torch.randint(len(images), (BATCH_SIZE,))
            loss = functional.cross_entropy(network(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return network


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images whose class a model tells."""
    return float((model(images).argmax(1) == labels).double().mean())


def labels_of(neurons: Tensor) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the expert of every neuron, from the neurons of every expert."""
    labels = np.empty(neurons.numel(), dtype=np.int64)
    labels[neurons.numpy()] = np.arange(len(neurons))[:, None]
    return labels


def neurons_sentence(result: NeuronsResult) -> str:
    """Return what the search is worth where few experts run."""
    at_random, searched = (np.mean(result.accuracies(how, TOLD)) for how in (RANDOM, SEARCHED))
    without, lost = (np.mean(result.column(lambda split: split.lost, how, TOLD)) for how in (RANDOM, SEARCHED))
    dense, bound = (
        np.mean(result.column(measure, SEARCHED, TOLD))
        for measure in (lambda split: split.dense, lambda split: split.bound)
    )
    return (
        f"Neurons: split into {EXPERTS} experts of which an image runs {TOLD}, a dense network of {dense:.1%} "
        f"accuracy keeps {searched:.1%} by search and {at_random:.1%} at random; {lost:.0%} of the neurons' mass is "
        f"lost instead of {without:.0%}, and no split loses less than {bound:.0%}."
    )


def enough_sentence(result: NeuronsResult) -> str:
    """Return what the search is worth where many experts run."""
    both = np.array([result.accuracies(how, ENOUGH) for how in (RANDOM, SEARCHED)])
    at_random, searched = (mean_and_error(each).text(1, 100.0) for each in both.tolist())
    return (
        f"With {ENOUGH} of {EXPERTS} experts an image: {verdict_of((both[0] - both[1]).tolist())} in accuracy, "
        f"{at_random} % at random and {searched} % by search."
    )


def splits_table(result: NeuronsResult) -> Table:
    """Return a row for each number of experts and each way to split: means over the seeds, with standard errors."""
    rows = []
    for active in ACTIVE:
        for how in (RANDOM, SEARCHED):
            measures = (
                mean_and_error(result.column(lambda split: split.lost, how, active)).text(1, 100.0),
                f"{100 * np.mean(result.column(lambda split: split.bound, how, active)):.1f}",
                mean_and_error(result.column(lambda split: split.error, how, active)).text(1, 100.0),
                mean_and_error(result.accuracies(how, active)).text(1, 100.0),
            )
            rows.append((f"{active} of {EXPERTS}, {how}", *measures))
    dense = mean_and_error(result.column(lambda split: split.dense, SEARCHED, TOLD)).text(1, 100.0)
    rows.append(("dense", "0.0", "0.0", "0.0", dense))
    return Table(
        "Neurons: a dense network split into experts",
        ("experts a row, split", "mass lost, %", "bound, %", "error of outputs, %", "accuracy, %"),
        tuple(rows),
        rules=tuple(2 * i + 1 for i in range(len(ACTIVE))),
    )


def lost_panel(result: NeuronsResult) -> LossPanel:
    """Return the curves of the mass lost over the experts that run, and of its bound."""
    lost = _curves(result, lambda split: split.lost)
    bound = LossCurve("bound", _values(result, lambda split: split.bound, SEARCHED), INK, True, _positions())
    return LossPanel("Neurons", (*lost, bound))


def accuracy_curves(result: NeuronsResult) -> tuple[LossCurve, ...]:
    """Return the curves of the accuracy over the experts that run, and that of the dense network."""
    dense = LossCurve("dense", _values(result, lambda split: split.dense, SEARCHED), INK, True, _positions())
    return (*_curves(result, lambda split: split.accuracy), dense)


def _curves(result: NeuronsResult, measure: Callable[[Split], float]) -> tuple[LossCurve, ...]:
    return tuple(
        LossCurve(how, _values(result, measure, how), colour, positions=_positions())
        for how, colour in ((RANDOM, MUTED), (SEARCHED, OKABE_ITO[0]))
    )


def _values(
    result: NeuronsResult, measure: Callable[[Split], float], how: str
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    return np.array([result.column(measure, how, active) for active in ACTIVE]).T


def _positions() -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array(ACTIVE, dtype=np.float64)
