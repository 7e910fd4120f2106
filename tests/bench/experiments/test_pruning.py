import numpy as np
import pytest

from moe_search.bench.datasets.library_text import load_library_text
from moe_search.bench.experiments import pruning
from moe_search.bench.experiments.experiment import find_experiment

pytest.importorskip("transformers")
SETTINGS = find_experiment("pruning").smoke


def test_the_best_on_held_out_texts_is_one_of_the_criteria_on_fresh_ones():
    trials = {search: pruning.run_trial(SETTINGS, 0, "half", search) for search in (pruning.AUTO, *pruning.CRITERIA)}
    auto = trials.pop(pruning.AUTO)
    assert auto in trials.values()
    plan = pruning.planned(SETTINGS, 0, 0.5, pruning.BALANCED)
    assert auto == trials[plan.criterion]
    assert auto["forecast"] == plan.forecast
    assert len({numbers["intact_loss"] for numbers in trials.values()}) == 1
    with pytest.raises(ValueError, match="gate must be one of half, a quarter, half, skewed"):
        pruning.run_trial(SETTINGS, 0, "all", pruning.AUTO)


@pytest.mark.slow
def test_no_subset_is_better_than_the_enumerated_one():
    settings = find_experiment("pruning-subsets").smoke
    trials = {search: pruning.run_subset_trial(settings, 0, "layer 1", search) for search in pruning.SEARCHES}
    assert {numbers["subsets"] for numbers in trials.values()} == {6}
    assert all(numbers["excess"] >= -1e-6 for numbers in trials.values())
    assert trials["search"]["excess"] <= trials["greedy"]["excess"]


def test_texts_are_of_four_kinds_and_shared_out():
    sizes = {"tokens": 8, "vocabulary": 300, "characters": 2000, "sequences": 20, "test_share": 0.25}
    text = load_library_text(**sizes, seed=1)
    assert (text.train.shape, text.test.shape) == ((60, 8), (20, 8))
    assert text.train.max() < text.vocabulary <= 300
    assert np.array_equal(text.test, load_library_text(**sizes, seed=1).test)
