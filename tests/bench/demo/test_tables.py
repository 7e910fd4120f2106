import numpy as np
import pytest

from moe_search.bench.demo.scenarios import ComparedSearch, ScenarioResult, TrainingRun
from moe_search.bench.demo.tables import (
    Comparison,
    every_search_table,
    findings,
    results_table,
    runs_by_gate,
    searches_table,
    slots_sentence,
)
from moe_search.bench.experiments.paired_statistics import mean_and_error
from moe_search.bench.experiments.training import SearchSchedule
from moe_search.bench.experiments.two_image_model import Evaluation
from moe_search.training.search.candidate_map import SearchRecord


def a_record(outcome):
    return SearchRecord(
        step=10,
        problem="MixtureAssignment",
        solver="LocalSearch()",
        outcome=outcome,
        value_before=1.0,
        value_found=0.5,
        bound=None,
        gain=0.5,
        verified_gain=None if outcome == "no improvement" else 0.4,
        standard_error=None if outcome == "no improvement" else 0.1,
        seconds=0.02,
        seconds_solving=0.01,
        linearized=False,
        num_samples=64,
    )


def a_run(gate, seed, test_loss=1.0, accuracies=(0.9, 0.8), losses=(3.0, 2.0, 1.0), outcomes=(), share=0.0):
    return TrainingRun(
        steps=tuple(range(len(losses))),
        losses=losses,
        best={},
        first_map=np.arange(8),
        last_map=np.arange(8)[::-1].copy(),
        seconds=1.0,
        cpu_seconds=(),
        history=tuple(a_record(outcome) for outcome in outcomes),
        seconds_searching=share,
        gate=gate,
        seed=seed,
        test=Evaluation(test_loss, accuracies, experts_per_sample=2.0),
    )


def pair(losses_without, losses_with, **arguments):
    searched = {"outcomes": ("committed",)} | arguments
    return Comparison(
        [a_run("Hash", seed, loss) for seed, loss in enumerate(losses_without)],
        [a_run("Hash+", seed, loss, **searched) for seed, loss in enumerate(losses_with)],
    )


def test_mean_and_standard_error():
    result = mean_and_error([1.0, 2.0, 6.0])
    assert result.mean == 3.0
    assert result.error == pytest.approx(np.sqrt(((2**2 + 1**2 + 3**2) / 2) / 3))
    assert result.text(1) == "3.0 ± 1.5"
    assert mean_and_error([0.25]).text(1, 100.0) == "25.0"


@pytest.mark.parametrize(
    ("with_search", "verdict"),
    [
        ((0.8, 0.7, 0.8), "gain"),
        ((1.2, 1.3, 1.2), "harm"),
        ((0.8, 0.7, 1.1), "no clear difference"),  # the seeds disagree
        ((0.99, 0.2, 0.98), "no clear difference"),  # within two standard errors
        ((0.5,), "no clear difference"),  # one seed
    ],
)
def test_verdict(with_search, verdict):
    assert pair([1.0] * len(with_search), with_search).verdict == verdict


def test_sentences_say_how_much_and_when():
    text = pair([1.0, 1.0], [0.8, 0.7], accuracies=(0.95, 0.95), losses=(1.5, 0.9, 0.8)).sentences()
    assert "Hash+ against Hash: gain." in text
    assert "Test loss 0.250 lower (standard error 0.050), lower in 2 of 2 seeds" in text
    assert "accuracy 10.00 points higher (standard error 0.00)" in text
    assert "Validation loss after one epoch: 0.900 with search, 2.000 without." in text
    assert "Epoch at the least validation loss of Hash, by seed: 1, 1 with search, 2, 2 without." in text


def test_sentences_admit_harm_and_what_was_never_reached():
    text = pair([1.0, 1.0], [1.2, 1.3], accuracies=(0.9, 0.7), losses=(5.0, 4.0, 3.0)).sentences()
    assert "Hash+ against Hash: harm." in text
    assert "Test loss 0.250 higher" in text
    assert "lower in 0 of 2 seeds" in text
    assert "accuracy 5.00 points lower" in text
    assert "by seed: never, never with search, 2, 2 without" in text


def test_nothing_committed_is_no_difference():
    text = pair([1.0, 1.1], [1.0, 1.1], outcomes=("refused",)).sentences()
    assert text == "Hash+ against Hash: no difference, no map was committed."


def test_runs_must_be_pairs():
    with pytest.raises(ValueError, match=r"pairs of the same seeds, got \[0\] and \[1\]"):
        Comparison([a_run("Hash", 0)], [a_run("Hash+", 1)])
    with pytest.raises(ValueError, match="pairs of the same seeds"):
        Comparison([], [])


OUTCOMES = ("committed", "refused", "no improvement")


@pytest.fixture
def scenario():
    runs, searches = [], []
    for seed in range(2):
        runs.append(a_run("Softmax", seed))
        for gate in ("Hash", "Top-k", "COMET"):
            searched = a_run(f"{gate}+", seed, 0.5, outcomes=OUTCOMES, share=0.1)
            runs += [a_run(gate, seed, 1.0 + seed), searched]
            for record, gap in zip(searched.history, (0.0, 0.02, 0.01), strict=True):
                searches.append(ComparedSearch(searched.gate, seed, record, 0.5 * (1 - gap), gap))
    return ScenarioResult(SearchSchedule(period=1, until=3), tuple(runs), tuple(searches))


def test_results_table(scenario):
    table = results_table(scenario)
    assert [row[0] for row in table.rows] == ["Softmax", "Hash", "Hash+", "Top-k", "Top-k+", "COMET", "COMET+"]
    assert table.rules == (0, 2, 4)
    assert table.rows[1] == ("Hash", "1.500 ± 0.500", "90.0 ± 0.0", "80.0 ± 0.0", "2.00")


def test_searches_table(scenario):
    table = searches_table(scenario)
    assert [row[0] for row in table.rows] == ["Hash+", "Top-k+", "COMET+"]
    assert dict(zip(table.columns, table.rows[1], strict=True)) == {
        "gate": "Top-k+",
        "searches": "6",
        "found": "4",
        "committed": "2",
        "refused": "2",
        "gap mean, %": "1.000",
        "gap worst, %": "2.000",
        "share of time, %": "10.0",
    }


def test_searches_table_of_runs_too_short_to_search():
    runs = tuple(a_run(gate, 0) for gate in ("Hash+", "Top-k+", "COMET+"))
    table = searches_table(ScenarioResult(SearchSchedule(period=9, until=9), runs, ()))
    assert table.rows[0] == ("Hash+", "0", "0", "0", "0", "-", "-", "0.0")


def test_one_row_a_search(scenario):
    table = every_search_table(scenario)
    assert len(table.rows) == 3 * 2 * 3
    assert table.rows[0][:4] == ("Hash+", "0", "10", "MixtureAssignment")
    assert table.rows[2][-4:] == ("-", "-", "no improvement", "20.0")


def test_one_finding_a_sparse_gate(scenario):
    assert [text.split(":")[0] for text in findings(scenario)] == [
        "Hash+ against Hash",
        "Top-k+ against Top-k",
        "COMET+ against COMET",
    ]
    assert len(runs_by_gate(scenario)) == 7


def test_the_sentence_says_first_where_search_gains():
    losses = {"Hash": (1.0, 1.0), "Hash+": (1.0, 1.01), "Top-k": (0.5, 0.5), "Top-k+": (0.4, 0.39)}
    losses |= {"COMET": (0.3, 0.3), "COMET+": (0.4, 0.41), "Softmax": (2.0, 2.0)}
    runs = tuple(a_run(gate, seed, loss) for gate, both in losses.items() for seed, loss in enumerate(both))
    searches = tuple(ComparedSearch("Top-k+", 0, a_record("committed"), 0.5, gap) for gap in (0.0, 0.0123))
    told = (
        "Slots: from fresh weights, search lowers the test loss of Top-k (0.500 without, 0.395 with); search raises "
        "the test loss of COMET (0.300 without, 0.405 with); there is no clear difference for Hash (1.000 without, "
        "1.005 with)"
    )
    schedule = SearchSchedule(period=1, until=1)
    assert slots_sentence(ScenarioResult(schedule, runs, ()), "from fresh weights") == f"{told}."
    assert slots_sentence(ScenarioResult(schedule, runs, searches[:1]), "from fresh weights") == (
        f"{told}; every search ended at the exact optimum of its problem."
    )
    assert slots_sentence(ScenarioResult(schedule, runs, searches), "from fresh weights") == (
        f"{told}; no search ended more than 1.23% above the exact optimum of its problem."
    )
