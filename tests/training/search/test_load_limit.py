import dataclasses
import itertools
import json

import naive
import numpy as np
import pytest
import torch
from specialists import make, step
from torch import nn

from moe_search.problems import InfeasibleLimitsError, LoadLimited
from moe_search.solvers import Hungarian, MaxIterations
from moe_search.training.lowering.lowering import lower
from moe_search.training.search.candidate_map import SearchRecord
from moe_search.training.search.load_limit import limit_load
from moe_search.training.search.permutation_search import PermutationSearch

# The class of the inner problem, and a loss that no mixture knows where it is to be pairwise.
KINDS = {
    ("hash", 8, None): "LinearAssignment",
    ("top-2", 8, nn.SmoothL1Loss()): "PairwiseAssignment",
    ("top-2", 8, None): "MixtureAssignment",
    ("comet", 8, None): "MixtureAssignment",
    ("comet-shared", 8, None): "MixtureAssignment",
}
every_kind = pytest.mark.parametrize(("kind", "name"), KINDS.items(), ids=lambda kind: "".join(map(str, kind[:2])))


def make_kind(kind):
    gate, num_slots, loss = kind
    setting = make(gate, "linear", 4, num_slots, samples=120)
    setting.loss = loss or setting.loss
    return setting


def naive_slot_loads(setting, start=0, stop=None):
    """Samples with weight on every slot, in the order of the rows of the map."""
    inputs, _, ids = setting.batch(start, stop)
    with torch.no_grad():
        weights = setting.moe.gate(inputs, ids).weights.tolist()
    rows, m = setting.expert_map.experts.shape
    loads = [0] * (rows * m)
    for sample in weights:
        for r in range(rows):
            for s in range(m):
                loads[r * m + s] += any(sample[t][s] > 0 for t in range(len(sample)) if t % rows == r)
    return loads


def loads_of_map(setting, loads):
    experts = setting.expert_map.experts.flatten().tolist()
    return [sum(load for load, e in zip(loads, experts, strict=True) if e == expert) for expert in range(4)]


@every_kind
@pytest.mark.parametrize("load_limit", [1.3, 2])
def test_slots_weigh_their_samples_and_limits_are_multiples_of_the_mean(kind, name, load_limit):
    setting = make_kind(kind)
    setting.scramble()
    inputs, targets, ids = setting.batch()
    lowering = lower(setting.model, setting.moe, inputs, targets, setting.loss, ids, chunk_size=50)
    assert type(lowering.problem).__name__ == name
    loads = naive_slot_loads(setting)
    assert lowering.slot_loads.tolist() == loads
    problem = limit_load(lowering, load_limit).problem
    assert isinstance(problem, LoadLimited)
    assert problem.problem is lowering.problem
    assert problem.limits.tolist() == pytest.approx([load_limit * sum(loads) / 4] * 4)
    assert problem.slot_loads.tolist() == loads
    assert problem.loads(lowering.initial).tolist() == loads_of_map(setting, loads)


@every_kind
def test_every_expert_may_have_a_limit_of_its_own(kind, name):
    setting = make_kind(kind)
    inputs, targets, ids = setting.batch()
    lowering = lower(setting.model, setting.moe, inputs, targets, setting.loss, ids)
    problem = limit_load(lowering, [4.0, 1.5, 2, 0.9]).problem
    mean = sum(naive_slot_loads(setting)) / 4
    assert problem.limits.tolist() == pytest.approx([4.0 * mean, 1.5 * mean, 2 * mean, 0.9 * mean])


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_search_keeps_limits_of_its_own_for_every_expert(asynchronous):
    limits = [2.0, 1.2, 1.0, 0.6]
    setting = make_kind(("top-2", 8, None))
    setting.scramble(seed=4)
    search = searching(setting, load_limit=limits, asynchronous=asynchronous, seed=1)
    loads = naive_slot_loads(setting, 0, 60)
    mean = sum(loads) / 4
    lowering = lower(setting.model, setting.moe, *setting.batch(0, 60)[:2], setting.loss)
    kept = [
        lowering.problem.value(p)
        for p in itertools.permutations(range(8))
        if all(
            load <= limit * mean + 1e-9
            for load, limit in zip(naive.loads_of_experts(loads, 4, 8, p), limits, strict=True)
        )
    ]
    step(search, setting, 0, 60)
    record = step(search, setting, 60, 120) or search.finish()
    assert record.load_limit == pytest.approx(tuple(limits))
    assert record.value_found == pytest.approx(min(kept))
    assert SearchRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    assert record.outcome in ("committed", "enforced")
    for load, limit in zip(loads_of_map(setting, loads), limits, strict=True):
        assert load <= limit * mean


def test_where_no_map_keeps_limits_in_proportion_their_lowest_multiple_is_kept():
    setting = crowded(heavy=15)
    loads = naive_slot_loads(setting, 0, 100)
    mean = sum(loads) / 4
    limits = [0.7, 0.7, 0.7, 1.9]
    search = searching(setting, load_limit=limits)
    step(search, setting, 0, 100)
    record = step(search, setting, 100, 200)

    def multiple(p):
        borne = naive.loads_of_experts(loads, 4, 8, p)
        return max(load / (limit * mean) for load, limit in zip(borne, limits, strict=True))

    lowest = min(multiple(p) for p in itertools.permutations(range(8)))
    assert lowest > 1
    assert max(got / asked for got, asked in zip(record.load_limit, limits, strict=True)) == pytest.approx(lowest)
    for load, limit in zip(loads_of_map(setting, loads), record.load_limit, strict=True):
        assert load <= limit * mean + 1e-9


def searching(setting, **options):
    options = {"period": 2, "stop": MaxIterations(20_000), **options}
    return PermutationSearch(setting.model, setting.moe, loss=setting.loss, **options)


@pytest.mark.parametrize("kind", [kind for kind, name in KINDS.items() if name == "MixtureAssignment"], ids=str)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_no_map_beyond_the_limit_is_committed(kind, asynchronous):
    free, limited = make_kind(kind), make_kind(kind)
    searched = (0, 60)
    loads = naive_slot_loads(free, *searched)
    mean = sum(loads) / 4
    best = max(loads_of_map(free, loads)) / mean
    records = []
    for setting, load_limit in ((free, None), (limited, max(0.5 + 0.5 * best, 1.15))):
        setting.scramble(seed=4)
        search = searching(setting, load_limit=load_limit, asynchronous=asynchronous, seed=1)
        step(search, setting, *searched)
        records.append(step(search, setting, 60, 120) or search.finish())
    assert records[0].outcome == "committed"
    assert records[1].outcome in ("committed", "enforced", "refused", "no improvement")
    assert [record.problem for record in records] == ["MixtureAssignment"] * 2
    assert records[0].value_before == records[1].value_before
    assert records[0].value_found <= records[1].value_found + 1e-12
    if records[1].outcome in ("committed", "enforced"):
        assert max(loads_of_map(limited, loads)) <= load_limit * mean


def test_the_limit_and_not_the_loss_decides():
    # The specialists' own map is best and gives expert 0 two heavy slots; under the limit one of them must go.
    setting = make("hash", "linear", 4, 8, samples=400)
    setting.moe.gate.table.copy_(torch.tensor([0] * 10 + [1] * 10 + [2, 3, 4, 5, 6, 7] * 3 + [2, 3]))
    experts = setting.expert_map.experts.clone()
    with torch.no_grad():
        setting.targets = setting.model.eval()(setting.inputs, ids=setting.ids)
    setting.scramble(seed=2)
    loads = naive_slot_loads(setting, 0, 200)
    mean = sum(loads) / 4
    assert loads[0] + loads[1] > 1.5 * mean
    for load_limit, kept in ((None, True), (1.5, False)):
        setting.scramble(seed=2)
        search = searching(setting, load_limit=load_limit)
        step(search, setting, 0, 200)
        record = step(search, setting, 200, 400)
        assert record.outcome == "committed"
        assert torch.equal(setting.expert_map.experts, experts) is kept
        assert (max(loads_of_map(setting, loads)) <= 1.5 * mean) is not kept
        assert record.value_found < record.value_before


def crowded(heavy=0, samples=200):
    """Expert 0 has two heavy slots, and slot 0 `heavy` ids of 40 more; the loss under the present map is 0."""
    setting = make("hash", "linear", 4, 8, samples=samples)
    setting.moe.gate.table.copy_(torch.tensor([0] * 10 + [1] * 10 + [2, 3, 4, 5, 6, 7] * 3 + [2, 3]))
    setting.moe.gate.table[-heavy or 40 :] = 0
    with torch.no_grad():
        setting.targets = setting.model.eval()(setting.inputs, ids=setting.ids)
    return setting


def naive_best_within(setting, loads, limit, stop):
    """The least loss of all maps whose experts bear at most `limit`, and the least highest load of any map."""
    inputs, targets, ids = setting.batch(0, stop)
    slots = setting.moe.gate.table[ids].tolist()
    with torch.no_grad():
        answers = [setting.model.head(expert(inputs)) for expert in setting.moe.experts]
    errors = [((answer - targets) ** 2).mean(1).tolist() for answer in answers]
    cost = [[0.0] * 4 for _ in range(8)]
    for b, slot in enumerate(slots):
        for e in range(4):
            cost[slot][e] += errors[e][b] / len(slots)
    best, lowest = float("inf"), float("inf")
    for experts in set(itertools.permutations([0, 0, 1, 1, 2, 2, 3, 3])):
        highest = max(sum(load for load, e in zip(loads, experts, strict=True) if e == one) for one in range(4))
        lowest = min(lowest, highest)
        if highest <= limit:
            best = min(best, sum(cost[s][e] for s, e in enumerate(experts)))
    return best, lowest


@pytest.mark.parametrize("asynchronous", [False, True])
def test_while_the_present_map_breaks_the_limit_the_best_that_keeps_it_is_taken(asynchronous):
    setting = crowded()
    loads = naive_slot_loads(setting, 0, 100)
    limit = 1.5 * sum(loads) / 4
    assert max(loads_of_map(setting, loads)) > limit
    best, lowest = naive_best_within(setting, loads, limit, 100)
    assert lowest <= limit
    search = searching(setting, load_limit=1.5, asynchronous=asynchronous)
    step(search, setting, 0, 100)
    record = step(search, setting, 100, 200) or search.finish()
    # The present map has the loss 0, which no penalty raises, so that none that keeps the limit is a gain.
    assert record.value_before == pytest.approx(0.0, abs=1e-20)
    assert record.value_found == pytest.approx(best)
    assert record.verified_gain < 0
    assert record.outcome == "enforced"
    assert record.load_limit == pytest.approx(1.5)
    assert max(loads_of_map(setting, loads)) <= limit
    assert setting.true_loss(0, 100) == pytest.approx(best)
    assert SearchRecord.from_dict(record.to_dict()) == record
    # Now that it keeps the limit, another must lower the loss.
    kept = setting.expert_map.experts.clone()
    step(search, setting, 0, 100)
    record = step(search, setting, 0, 100) or search.finish()
    assert record.outcome == "no improvement"
    assert torch.equal(setting.expert_map.experts, kept)


def test_a_gain_that_is_confirmed_is_committed_though_the_limit_was_broken():
    setting = crowded()
    # All experts wrong, slots 0 and 1 still together: the limit and the loss both ask for another map.
    setting.expert_map.assign((setting.expert_map.experts + 1) % 4)
    loads = naive_slot_loads(setting, 0, 100)
    assert max(loads_of_map(setting, loads)) > 1.5 * sum(loads) / 4
    search = searching(setting, load_limit=1.5)
    step(search, setting, 0, 100)
    record = step(search, setting, 100, 200)
    assert record.outcome == "committed"
    assert record.verified_gain > record.standard_error
    assert max(loads_of_map(setting, loads)) <= 1.5 * sum(loads) / 4


@pytest.mark.parametrize("asynchronous", [False, True])
def test_where_no_map_keeps_the_limit_the_lowest_is_kept(asynchronous):
    setting = crowded(heavy=15)
    loads = naive_slot_loads(setting, 0, 100)
    mean = sum(loads) / 4
    lowest = naive_best_within(setting, loads, 0, 100)[1]
    assert lowest > 1.3 * mean
    assert max(loads_of_map(setting, loads)) > lowest
    best = naive_best_within(setting, loads, lowest, 100)[0]
    with pytest.raises(InfeasibleLimitsError, match="limits must"):
        limit_load(lower(setting.model, setting.moe, *setting.batch(0, 100)[:2], setting.loss, setting.ids[:100]), 1.3)
    search = searching(setting, load_limit=1.3, asynchronous=asynchronous)
    step(search, setting, 0, 100)
    record = step(search, setting, 100, 200) or search.finish()
    assert record.outcome == "enforced"
    assert record.load_limit == pytest.approx(lowest / mean)
    assert record.value_found == pytest.approx(best)
    assert max(loads_of_map(setting, loads)) == lowest


def test_where_all_samples_have_one_slot_the_map_may_stay():
    setting = make("hash", "linear", 4, 8, samples=100)
    setting.moe.gate.table.zero_()
    with torch.no_grad():
        setting.targets = setting.model.eval()(setting.inputs, ids=setting.ids)
    before = setting.expert_map.experts.clone()
    search = searching(setting, load_limit=3.9)
    records = [step(search, setting, 0, 50) for _ in range(4)]
    assert [record and (record.outcome, record.load_limit) for record in records] == [
        None,
        ("no improvement", pytest.approx(4.0)),
    ] * 2
    assert torch.equal(setting.expert_map.experts, before)


def test_a_search_under_a_limit_is_reproducible():
    found = []
    for _ in range(2):
        setting = make("comet", "linear", 4, 8, samples=120)
        setting.scramble()
        search = searching(setting, load_limit=1.2, stop=MaxIterations(300), seed=3)
        step(search, setting, 0, 60)
        record = step(search, setting, 60, 120)
        found.append((setting.expert_map.experts.tolist(), dataclasses.replace(record, seconds=0, seconds_solving=0)))
    assert found[0] == found[1]


def test_what_the_limit_may_be():
    setting = make("hash")
    lowering = lower(setting.model, setting.moe, setting.inputs, setting.targets, setting.loss, setting.ids)
    for wrong, error, fault in (
        (0.99, ValueError, "load_limit must be at least 1, the mean load, got 0.99"),
        (-1, ValueError, "load_limit must be a finite number > 0, got -1"),
        (np.nan, ValueError, "load_limit must be a finite number > 0, got nan"),
        ("much", TypeError, "load_limit must be a number, got 'much'"),
        ([1.0, 2.0], ValueError, "load_limit must be a number, or 4 of them, one for each expert, got 2"),
        ([1.0, 2.0, 0.5, 0.4], ValueError, "load_limit must be at least 1 in the mean, the mean load, got 0.975"),
        ([1.0, 2.0, 0.0, 4.0], ValueError, r"load_limit\[2\] must be a finite number > 0, got 0"),
        ([1.0, 2.0, "x", 4.0], TypeError, r"load_limit\[2\] must be a number, got 'x'"),
    ):
        with pytest.raises(error, match=fault):
            searching(setting, load_limit=wrong)
        with pytest.raises(error, match=fault):
            limit_load(lowering, wrong)


def test_a_solver_that_takes_no_limits_says_so():
    setting = make("hash", "linear", 4, 8)
    search = searching(setting, load_limit=2.0, solver=Hungarian())
    step(search, setting)
    with pytest.raises(ValueError, match="Hungarian cannot take this LoadLimited: it solves LinearAssignment only"):
        step(search, setting)


def test_naive_loads_are_those_of_the_problems():
    setting = make("comet", "linear", 4, 8)
    loads = naive_slot_loads(setting)
    p = setting.expert_map.permutation().tolist()
    assert naive.loads_of_experts(loads, 4, 8, p) == loads_of_map(setting, loads)
