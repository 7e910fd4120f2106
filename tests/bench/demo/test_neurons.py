from dataclasses import replace

import numpy as np
import pytest
import torch

from moe_search.bench.demo import neurons

SPLIT = neurons.Split("at random", 4, 0, lost=0.6, bound=0.3, error=0.5, accuracy=0.8, dense=0.98)


@pytest.fixture(scope="module")
def splits():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield neurons.split_network(seed=0, steps=60)
    torch.set_num_threads(threads)


def test_a_split_loses_no_less_than_the_bound_and_by_search_less_than_at_random(splits):
    assert [(each.active, each.how) for each in splits] == [
        (active, how) for active in neurons.ACTIVE for how in ("at random", "by search")
    ]
    for at_random, searched in zip(splits[::2], splits[1::2], strict=True):
        assert at_random.bound == searched.bound <= searched.lost < at_random.lost < 1
        assert searched.error < at_random.error
        assert at_random.dense == searched.dense > 0.8
    assert [each.lost for each in splits[1::2]] == sorted((each.lost for each in splits[1::2]), reverse=True)


def test_a_seed_gives_one_network():
    images, labels = torch.rand(20, 64), torch.arange(20) % 10
    before = torch.get_rng_state()
    first, again = (neurons.train_network(images, labels, 3, seed=5) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_labels_of():
    assert neurons.labels_of(torch.tensor([[0, 3], [2, 1]])).tolist() == [0, 1, 1, 0]


@pytest.fixture
def result():
    made = [
        replace(SPLIT, how=how, active=active, seed=seed, accuracy=accuracy + seed / 100, lost=lost)
        for active in neurons.ACTIVE
        for how, accuracy, lost in (("at random", 0.8, 0.6), ("by search", 0.9, 0.4))
        for seed in range(2)
    ]
    return neurons.NeuronsResult(tuple(made))


def test_sentences_tell_the_numbers(result):
    assert neurons.neurons_sentence(result) == (
        "Neurons: split into 16 experts of which an image runs 4, a dense network of 98.0% accuracy keeps 90.5% by "
        "search and 80.5% at random; 40% of the neurons' mass is lost instead of 60%, and no split loses less than "
        "30%."
    )
    assert neurons.enough_sentence(result) == (
        "With 12 of 16 experts an image: gain in accuracy, 80.5 ± 0.5 % at random and 90.5 ± 0.5 % by search."
    )


def test_a_row_for_each_split_and_one_for_the_dense_network(result):
    table = neurons.splits_table(result)
    assert len(table.rows) == 2 * len(neurons.ACTIVE) + 1
    assert table.rows[5] == ("4 of 16, by search", "40.0 ± 0.0", "30.0", "50.0 ± 0.0", "90.5 ± 0.5")
    assert table.rows[-1] == ("dense", "0.0", "0.0", "0.0", "98.0 ± 0.0")
    assert np.array_equal(neurons.lost_panel(result).curves[1].losses, np.full((2, len(neurons.ACTIVE)), 0.4))
