"""What a search says of itself: every sentence of advice by a run that leads to it."""

import logging
from dataclasses import replace

import pytest
import torch
from specialists import make, searching, step
from torch import nn

from moe_search.solvers.heuristic.local_search import LocalSearch
from moe_search.training.search.candidate_map import SearchRecord
from moe_search.training.search.permutation_search import PermutationSearch


def run(setting, steps, **options):
    search = searching(setting, **{"period": 2, **options})
    for i in range(steps):
        step(search, setting, 48 * (i % 2), 48 * (i % 2) + 48)
    return search


def contrary(gate="top-2", head="linear"):
    """A run of two searches whose second batches are fitted by the scrambled map, not by that of the first."""
    setting = make(gate, head, samples=80)
    setting.scramble()
    search = searching(setting, period=2)
    with torch.no_grad():
        fitted = setting.model.eval()(setting.inputs, ids=setting.ids)
    for i in range(4):
        search.step(setting.inputs, setting.targets if i % 2 == 0 else fitted, ids=setting.ids)
    return search


def unsure():
    """Gains that are there but within 100 standard errors."""
    setting = make("top-2")
    setting.scramble()
    return run(setting, 2, confidence=100.0)


def alike():
    setting = make("top-2")
    for expert in setting.moe.experts:
        expert.load_state_dict(setting.moe.experts[0].state_dict())
    return run(setting, 4)


def dead(steps):
    setting = make("hash")
    setting.moe.gate.table.fill_(1)
    setting.scramble()
    return run(setting, steps)


def raised_limit(limit):
    setting = make("hash", n=2, m=4)
    setting.moe.gate.table.fill_(1)
    return run(setting, 2, load_limit=limit)


def mended(gate):
    """The first search finds the map again; two others find nothing better."""
    setting = make(gate)
    setting.scramble()
    return run(setting, 6)


def mended_and_refused():
    """As before, but the map is scrambled again, and no gain is sure enough any more."""
    setting = make("top-2")
    setting.scramble()
    state = run(setting, 2).state_dict()
    setting.scramble(1)
    search = searching(setting, period=2, confidence=100.0)
    search.load_state_dict(state)
    for i in range(4):
        step(search, setting, 48 * (i % 2), 48 * (i % 2) + 48)
    return search


@pytest.mark.filterwarnings("ignore:the search at step")
def not_finite():
    setting = make("top-2")
    setting.targets = setting.targets * torch.nan
    with pytest.warns(RuntimeWarning, match="given up"):
        return run(setting, 4)


def failed():
    class Broken(LocalSearch):
        def solve(self, problem, stop, seed=0, initial=None):
            raise KeyError("no such move")

    setting = make("top-2")
    state = run(setting, 2, solver=Broken(), asynchronous=True).state_dict()
    resumed = searching(setting, period=2, asynchronous=True)
    resumed.load_state_dict(state)
    step(resumed, setting)
    return resumed


def skipped():
    setting = make("hash")
    search = searching(setting, period=2)
    step(search, setting)
    with pytest.warns(RuntimeWarning, match="given up"):
        step(search, setting, 0, 1)
    return search


def still_gaining():
    setting = make("top-2", samples=96)
    setting.scramble()
    search = searching(setting, period=2, until=2)
    for part in ((0, 48), (48, 96)):
        step(search, setting, *part)
    return search


@pytest.mark.parametrize(
    ("make_run", "sentences"),
    [
        (lambda: run(make("top-2"), 1), ["No search has run yet: the first is due at step 2, and this is step 1."]),
        (not_finite, ["The loss was NaN or infinite in 2 searches: "]),
        (failed, ["The solver raised in 1 search, the last for this: KeyError('no such move')."]),
        (
            skipped,
            ["No search could use the batch in 1 search, the last for this: inputs must hold at least 2 samples"],
        ),
        (alike, ["Experts are alike: giving every slot the next expert changes the loss by 0.0%, "]),
        (lambda: run(make("hash"), 4), ["The map is the best, proved in 2 searches, "]),
        (
            lambda: run(make("top-2"), 4),
            ["The map is as good as any found in 2 searches, ", "Whether a longer search finds more, "],
        ),
        (contrary, ["Gains on the 80 samples searched did not come back on the second batch: "]),
        (
            lambda: contrary("top-2", "deep"),
            ["Gains on the 80 samples searched did not ", "The head behind the layer is not affine, "],
        ),
        (unsure, ["Gains on the second batch were there but within 100 standard error"]),
        (lambda: dead(2), ["The map is the best, proved in 1 search, "]),
        (
            lambda: dead(8),
            [
                "The map is the best, proved in 4 searches, ",
                "Experts 0, 2, 3 got none of the 192 samples of the last 4 searches, ",
            ],
        ),
        (
            lambda: mended("top-2"),
            [
                "The map was mended at step 2, and since then it is as good as any found in 2 searches: searches may "
                "end there, until=2, or come less often, period=8.",
                "Whether a longer search finds more, ",
            ],
        ),
        (
            lambda: mended("hash"),
            ["The map was mended at step 2, and since then it is the best, proved in 2 searches: "],
        ),
        (
            mended_and_refused,
            [
                "The map was mended at step 2, and since then hardly another one held on a second batch: ",
                "Gains on the second batch were there but within 100 standard error",
            ],
        ),
        (
            lambda: raised_limit(1.25),
            [
                "Gains on the 48 samples searched did not ",
                "No map was found within load_limit in 1 search, it was raised to 2 ",
            ],
        ),
        (
            lambda: raised_limit((1.0, 1.25)),
            ["No map was found within load_limit in 1 search, it was raised to 1.6 times it "],
        ),
        (still_gaining, ["The last search still found a gain and no other is due: let them go on beyond until=2."]),
    ],
)
def test_every_sentence_of_advice(make_run, sentences):
    summary = make_run().summary()
    begun = [text[: len(start)] for text, start in zip(summary.advice, sentences, strict=False)]
    assert (begun, len(summary.advice)) == (sentences, len(sentences))
    shown = str(summary)
    assert all(sentence in " ".join(shown.split()) for sentence in summary.advice)
    assert max(map(len, shown.splitlines())) <= 88
    advice = shown[shown.index("\ntry ") + 1 :].splitlines()
    assert all(line.startswith(" " * 10) and line[10] != " " for line in advice[1:])


@pytest.mark.parametrize(
    ("errors", "text"), [(2.0, "Gains on the 80 samples "), (4.0, "The map was mended at step 2, ")]
)
def test_a_map_that_may_have_been_taken_by_chance_is_not_called_mended(errors, text):
    search = contrary()
    first, *_ = search.history
    taken = replace(first, outcome="committed", verified_gain=errors * first.standard_error)
    search.history = [taken, *search.history]
    assert search.summary().advice[0].startswith(text)


def test_experts_are_not_called_alike_where_maps_that_were_found_change_the_loss():
    search = contrary()
    search.history = [replace(record, value_shifted=record.value_before) for record in search.history]
    assert search.summary().advice[0].startswith("Gains on the 80 samples ")
    search.history = [replace(record, value_found=0.99 * record.value_before) for record in search.history]
    assert search.summary().advice[0].startswith("Experts are alike: ")


def test_dead_experts_are_told_from_rare_ones_by_enough_samples_under_the_present_map():
    # An expert with a tenth of the mean load of two, 1 sample of 20, is missed by 92 of them with probability 0.9 %.
    assert 0.95**91 < 0.01 < 0.95**89

    def summary(*searches):
        outcomes = {"new": "committed", "old": "refused", "none": "not finite"}
        search = searching(make("hash"), period=1)
        search.history = [
            SearchRecord(step=1, outcome=outcomes[which], loads=loads, num_samples=sum(loads or ()))
            for which, loads in searches
        ]
        return search.summary()

    assert summary(("old", (92, 0))).dead_experts is None
    assert "dead experts: too few samples to tell" in " ".join(str(summary(("old", (92, 0)))).split())
    assert summary(("old", (93, 0))).dead_experts == (1,)
    assert summary(("old", (50, 0)), ("none", None), ("old", (50, 0))).dead_experts == (1,)
    assert summary(("old", (49, 1)), ("old", (50, 0))).dead_experts == ()
    assert summary(("old", (50, 0)), ("new", (50, 0))).dead_experts is None
    assert summary(("new", (50, 0)), ("old", (50, 0))).dead_experts == (1,)
    assert summary(("old", (49, 1)), ("old", (93, 0))).dead_experts == (1,)


@pytest.mark.parametrize(
    ("shifted", "text"),
    [(1.5, "changes the loss by 50%: "), (14.0, "by a factor of 14: "), (1e9, "by a factor of more than 100: ")],
)
def test_how_much_the_next_expert_changes(shifted, text):
    search = run(make("hash"), 2)
    [record] = search.history
    search.history = [replace(record, value_shifted=shifted * record.value_before)]
    assert text in search.summary().advice[0]


def test_the_number_of_samples_that_would_tell():
    search = unsure()
    [record] = search.history
    times = (100.0 * record.standard_error / record.verified_gain) ** 2
    assert f"{times:.1f} times its samples would tell" in search.summary().advice[0]
    assert times > 1


def test_a_run_that_pays_is_left_alone():
    setting = make("top-2", samples=96)
    setting.scramble()
    search = searching(setting, period=2)
    for part in ((0, 48), (48, 96)):
        record = step(search, setting, *part)
    summary = search.summary()
    assert summary.advice == ()
    assert (summary.outcomes, summary.found, summary.refused_worse, summary.refused_unsure) == (
        (("committed", 1),),
        1,
        0,
        0,
    )
    assert (summary.forecast, summary.verified) == (record.gain, record.verified_gain)
    assert str(summary).splitlines()[0] == "searches  1 in 2 steps: 1 committed"


@pytest.mark.parametrize(("gate", "k"), [("top-2", 2), ("hash", None), ("comet", 2)])
def test_experts_a_sample_against_k(gate, k):
    setting = make(gate)
    search = searching(setting, period=1)
    maps = setting.expert_map.experts.tolist()
    step(search, setting)
    with torch.no_grad():
        searched = setting.moe.gate(setting.inputs[:48], None if setting.ids is None else setting.ids[:48]).weights
    summary = search.summary()
    # Two trees on one expert are one expert.
    of_experts = [
        {maps[t][s] for t, row in enumerate(sample) for s, g in enumerate(row) if g > 0} for sample in searched.tolist()
    ]
    assert summary.experts_per_sample == pytest.approx(sum(map(len, of_experts)) / 48)
    assert summary.k == k
    expected = f"{summary.experts_per_sample:.2f} experts a sample" + (f" for k = {k}" if k else "")
    assert expected in " ".join(str(summary).split())


def test_loads_are_those_of_the_map_that_the_search_left():
    setting = make("hash", n=2, m=4, samples=60)
    setting.scramble(1)
    search = searching(setting, period=2)
    for _ in range(4):
        step(search, setting)
    first, second = search.history
    assert (first.outcome, second.outcome) == ("committed", "no improvement")
    experts = setting.expert_map.experts[0][setting.moe.gate.table[setting.ids]]
    assert list(first.loads) == list(second.loads) == torch.bincount(experts, minlength=2).tolist()
    expected = {
        "search/outcome": 1.0,
        "search/gain": first.verified_gain,
        "load/max": pytest.approx(max(first.loads) / 30),
    }
    assert first.metrics() == expected  # 60 samples are too few to call an expert dead
    assert second.metrics() == {**expected, "search/outcome": 0.0, "search/gain": 0.0, "load/dead": 0.0}
    idle = SearchRecord(step=1, outcome="not finite", num_samples=3)
    assert idle.metrics() == {"search/outcome": 0.0, "search/gain": 0.0}


def test_the_value_of_a_shifted_map_is_that_of_a_true_forward():
    setting = make("hash", n=2, m=4, samples=40)
    search = searching(setting, period=2)
    step(search, setting)
    setting.expert_map.assign(1 - setting.expert_map.experts)
    shifted = setting.true_loss()
    setting.expert_map.assign(1 - setting.expert_map.experts)
    assert step(search, setting).value_shifted == pytest.approx(shifted, rel=1e-9)


@pytest.mark.parametrize("refused", [True, False], ids=["refused", "nothing found"])
def test_the_tenth_search_in_vain_is_told_once(caplog, refused):
    setting = make("hash")
    if refused:
        setting.scramble()
    search = searching(setting, period=2, confidence=1e9 if refused else 1.0)
    resumed = searching(setting, period=2, confidence=1e9)
    with caplog.at_level(logging.WARNING, "moe_search"):
        for count in range(1, 15):
            step(search, setting)
            step(search, setting)
            assert len(caplog.records) == (count >= 10)
        resumed.load_state_dict(search.state_dict())
        step(resumed, setting)
        step(resumed, setting)
    [told] = caplog.records
    assert told.name == "moe_search"
    assert told.message.startswith("the last 10 searches left the expert map as it was\nsearches  10 in 20 steps: ")
    assert {record.outcome for record in resumed.history} == {"refused" if refused else "no improvement"}


def test_a_map_that_a_search_has_found_is_no_search_in_vain(caplog):
    setting = make("hash")
    setting.scramble()
    search = searching(setting, period=2)
    for _ in range(30):
        step(search, setting)
    assert [record.outcome for record in search.history[:2]] == ["committed", "no improvement"]
    assert not caplog.records


def test_records_of_an_earlier_version_are_read():
    setting = make("hash")
    record = step(searching(setting, period=1), setting)
    saved = record.to_dict()
    for name in ("value_shifted", "loads", "dead_experts"):
        del saved[name]
    assert SearchRecord.from_dict(saved) == replace(record, value_shifted=None, loads=None, dead_experts=None)


def test_the_summary_of_a_run_taken_up_is_that_of_the_whole():
    search = contrary()
    setting = make("top-2")
    other = PermutationSearch(setting.model, setting.moe, loss=nn.MSELoss(), period=2)
    other.load_state_dict(search.state_dict())
    assert other.summary() == search.summary()
