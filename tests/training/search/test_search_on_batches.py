"""A search on all batches of a data set, one after another, against definitions and against one joined batch."""

import itertools

import numpy as np
import pytest
import torch
from largest_tensor import Largest
from naive_training import linear_cost
from shared_map import make_shared
from specialists import make, searching
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from moe_search.training.lowering.batch import Batch
from moe_search.training.lowering.lowering import lower

SEARCHED = ((0, 17), (17, 18), (18, 40), (40, 60))
VERIFYING = ((60, 70), (70, 96))


def parts(setting, cuts=SEARCHED):
    return [setting.batch(start, stop) for start, stop in cuts]


def searched(setting, **options):
    """The record and the lowering of a search on the first 60 samples, verified on the others."""
    seen = []
    search = searching(setting, on_search=lambda *found: seen.append(found), **options)
    record = search.search_batches(iter(parts(setting)), verify=iter(parts(setting, VERIFYING)))
    assert search.history == [record]
    return record, seen[0][1]


def test_a_table_is_the_best_of_all_by_the_losses_of_all_batches():
    setting = make("hash", "deep", 2, 6)
    setting.loss = nn.SmoothL1Loss()
    setting.scramble()
    training = [module.training for module in setting.model.modules()]
    record, lowering = searched(setting)

    setting.model.eval()
    slots = setting.moe.gate.table[setting.ids[:60]].tolist()
    with torch.no_grad():
        data = setting.inputs[:60], setting.targets[:60]
        cost = linear_cost(slots, 6, list(setting.moe.experts), setting.model.head, setting.loss, *data)
    np.testing.assert_allclose(lowering.problem.cost, cost, rtol=1e-9)
    assert lowering.slot_loads.tolist() == np.bincount(slots, minlength=6).tolist()
    tables = [table for table in itertools.product(range(2), repeat=6) if sum(table) == 3]
    best = min(sum(cost[s, table[s]] for s in range(6)) for table in tables)
    assert record.value_found == pytest.approx(best, rel=1e-9)
    assert (record.problem, record.num_samples, record.step) == ("LinearAssignment", 60, 0)
    assert record.outcome == "committed"
    found = setting.expert_map.experts[0].tolist()
    assert sum(cost[s, found[s]] for s in range(6)) == pytest.approx(best, rel=1e-9)
    setting.model.train()
    assert training == [module.training for module in setting.model.modules()]


@pytest.mark.parametrize(
    ("gate", "loss", "kind"),
    [("top-2", "squared", "Mixture"), ("comet", "cross_entropy", "Mixture"), ("top-2", "absolute", "Pairwise")],
)
def test_the_problem_of_batches_is_that_of_the_joined_batch(gate, loss, kind):
    setting = make(gate, "linear", 3, 6, loss="squared" if loss == "absolute" else loss)
    if loss == "absolute":
        setting.loss = nn.L1Loss()
    setting.scramble()
    before = setting.expert_map.permutation()
    record, lowering = searched(setting)
    found = setting.expert_map.permutation()
    setting.expert_map.assign_permutation(before)
    inputs, targets, _ = setting.batch(0, 60)
    joined = lower(setting.model, setting.moe, inputs, targets, setting.loss)
    assert record.problem == type(joined.problem).__name__ == f"{kind}Assignment"
    assert lowering.initial.tolist() == before.tolist()
    assert lowering.batch_loss == pytest.approx(joined.batch_loss, rel=1e-12)
    for permutation in (before, found):
        expected = joined.problem.value(permutation)
        assert lowering.problem.value(permutation) == pytest.approx(expected, rel=1e-12)
    assert record.outcome == "committed"


def test_a_map_that_tasks_share_is_searched_on_all_batches():
    setting = make_shared(samples=96)
    setting.scramble()
    record, lowering = searched(setting)
    assert record.outcome == "committed"
    assert lowering.problem.value(setting.expert_map.permutation()) == pytest.approx(setting.true_loss(0, 60), rel=1e-9)


def test_groups_are_what_gains_are_compared_by():
    setting = make("hash", "deep", 3, 6)
    setting.scramble()
    old = setting.expert_map.experts.clone()
    # Groups that cross batches, and one of a single sample.
    groups = [*([7, 3, 3, 9] * 9)[:35], 100]
    verifying, start = [], 60
    for size in (10, 26):
        inputs, targets, ids = setting.batch(start, start + size)
        verifying.append((inputs, targets, ids, torch.tensor(groups[start - 60 : start - 60 + size])))
        start += size
    record = searching(setting).search_batches(parts(setting), verify=verifying)

    after = [setting.true_loss(b, b + 1) for b in range(60, 96)]
    setting.expert_map.assign(old)
    before = [setting.true_loss(b, b + 1) for b in range(60, 96)]
    sums = dict.fromkeys(groups, 0.0)
    for group, x, y in zip(groups, before, after, strict=True):
        sums[group] += x - y
    mean = sum(sums.values()) / 4
    error = (sum((gain - mean) ** 2 for gain in sums.values()) / 3 / 4) ** 0.5
    assert record.verified_gain == pytest.approx(sum(sums.values()) / 36, rel=1e-9)
    assert record.standard_error == pytest.approx(error * 4 / 36, rel=1e-9)
    assert (record.outcome == "committed") is (mean > error)


@pytest.mark.parametrize("groups", [None, torch.zeros(36, dtype=torch.int64)])
def test_one_sample_or_group_verifies_nothing(groups):
    setting = make("hash")
    setting.scramble()
    old = setting.expert_map.experts.clone()
    what, verifying = ("samples", setting.batch(60, 61)) if groups is None else ("groups", (*setting.batch(60), groups))
    with pytest.raises(ValueError, match=f"batches must hold at least 2 {what} to verify a map, got 1"):
        searching(setting).search_batches(parts(setting), verify=[verifying])
    assert torch.equal(setting.expert_map.experts, old)


def test_a_limit_holds_for_the_loads_of_all_batches():
    setting = make("hash", n=3, m=12)
    setting.scramble()
    record, lowering = searched(setting, load_limit=1.1)
    slots = setting.moe.gate.table[setting.ids[:60]]
    loads = torch.bincount(setting.expert_map.experts[0][slots], minlength=3)
    assert record.load_limit >= 1.1
    assert loads.max() <= record.load_limit * 20 + 1e-9
    assert lowering.problem.slot_loads.sum() == 60


def test_a_data_loader_and_batches_computed_on_the_way_are_searched_alike():
    found = []
    for computed in (False, True):
        setting = make("hash", "deep", 3, 6)
        setting.scramble()
        first, second = (TensorDataset(*setting.batch(start, stop)) for start, stop in ((0, 60), (60, 96)))
        batches = DataLoader(first, batch_size=25)
        if computed:
            stream = torch.get_rng_state()

            def compute(model=setting.model, loader=batches):
                for inputs, targets, ids in loader:
                    torch.rand(3)
                    assert not model.training
                    assert not torch.is_grad_enabled()
                    yield Batch(inputs, targets, ids)

            batches = compute()
        record = searching(setting).search_batches(batches, verify=DataLoader(second, batch_size=30))
        if computed:
            assert torch.equal(stream, torch.get_rng_state())
        assert setting.model.training
        found.append((record.value_found, record.verified_gain, setting.expert_map.experts.tolist()))
    assert found[0] == found[1]


def test_memory_is_bounded_by_a_batch():
    largest = []
    for copies in (1, 8):
        setting = make("hash", "deep", 4, 40)
        setting.scramble()
        with Largest() as seen:
            searching(setting).search_batches(parts(setting) * copies, verify=parts(setting, VERIFYING) * copies)
        largest.append(seen.elements)
    assert largest[0] == largest[1]


def test_searches_of_steps_go_on_beside():
    setting = make("hash", m=8)
    setting.scramble()
    search = searching(setting, period=2, until=4, asynchronous=True)
    records = []
    for step in range(4):
        inputs, targets, ids = setting.batch(20 * step, 20 * step + 20)
        search.step(inputs, targets, ids=ids)
        if step == 1:
            records.append(search.search_batches(parts(setting), verify=parts(setting, VERIFYING)))
    search.finish()
    # The search under way was decided before.
    assert [record.step for record in search.history] == [2, 2, 4]
    assert records[0] is search.history[1]
    assert search.state_dict()["searches"] == 3
    assert search.seconds == pytest.approx(sum(record.seconds for record in search.history))


def test_a_loss_that_is_not_finite_gives_the_search_up():
    setting = make("hash")
    old = setting.expert_map.experts.clone()
    batches = parts(setting)
    batches[2][1][0] = torch.nan
    with pytest.warns(RuntimeWarning, match="given up"):
        record = searching(setting).search_batches(batches, verify=parts(setting, VERIFYING))
    assert (record.outcome, record.num_samples) == ("not finite", 40)
    assert torch.equal(setting.expert_map.experts, old)


def test_a_later_batch_must_fit_the_class_that_the_first_decided():
    setting = make("comet", "deep", 4, 4)
    setting.loss = nn.SmoothL1Loss()
    few = (setting.moe.gate(setting.inputs).weights > 0).sum((1, 2)) <= 2
    assert 2 < int(few.sum()) < 96
    batches = [(setting.inputs[some], setting.targets[some]) for some in (few, ~few)]
    with pytest.raises(ValueError, match="a pairwise problem must have at most two slots a sample, got"):
        searching(setting).search_batches(batches, verify=batches)
    with pytest.raises(ValueError, match="loss must be one that a mixture can be searched under"):
        searching(setting).search_batches(batches[::-1], verify=batches)


@pytest.mark.parametrize(
    ("batches", "kind", "message"),
    [
        (lambda one: [], ValueError, "batches must hold at least one batch, got none"),
        (lambda one: [one[0]], TypeError, "a batch must be (inputs, targets), (inputs, targets, ids), (inputs"),
        (lambda one: [(one[0],)], TypeError, "got tuple"),
        (lambda one: [{"inputs": one[0]}], TypeError, "got dict"),
        (lambda one: [(one[0], 3.0)], TypeError, "targets must be a tensor"),
        (lambda one: [(*one, one[0])], ValueError, "groups must be integers of shape [B]"),
        (lambda one: [tuple(tensor[:0] for tensor in one)], ValueError, "inputs must hold at least one sample"),
    ],
)
def test_batches_that_are_none(batches, kind, message):
    setting = make("hash")
    setting.scramble()
    old = setting.expert_map.experts.clone()
    one = setting.batch()
    with pytest.raises(kind) as caught:
        searching(setting).search_batches(batches(one), verify=[one])
    assert message in str(caught.value)
    if batches(one):
        with pytest.raises(kind) as caught:
            searching(setting).search_batches([one], verify=batches(one))
        assert message in str(caught.value)
    assert torch.equal(setting.expert_map.experts, old)
    assert setting.model.training


def test_groups_come_with_all_batches_that_verify_or_none():
    setting = make("hash")
    setting.scramble()
    one, other = setting.batch(0, 40), (*setting.batch(40), torch.arange(56))
    with pytest.raises(ValueError, match="groups must come with every batch that verifies or with none"):
        searching(setting).search_batches([one, other], verify=[one, other])
