"""What is wrong with a batch is skipped and recorded; what is wrong with model and loss is told at the first step."""

import warnings

import pytest
import torch
from specialists import FEATURES, make, searching, step
from torch import nn
from torch.utils.checkpoint import checkpoint

from moe_search.gates.gate import Gate, SlotWeights
from moe_search.layers.mixture_of_experts import MixtureOfExperts
from moe_search.layers.stacked_experts import StackedExperts
from moe_search.solvers.heuristic.local_search import LocalSearch
from moe_search.training.search.permutation_search import PermutationSearch


class Broken(LocalSearch):
    def solve(self, problem, stop, seed=0, initial=None):
        raise KeyError("no such move")


class Dropping(Gate):
    """Routes no sample that is all zeros."""

    def forward(self, inputs, ids=None):
        weights = nn.functional.one_hot(inputs.argmax(1) % self.num_slots, self.num_slots).to(inputs.dtype)
        return SlotWeights((weights * inputs.any(1, keepdim=True)).unsqueeze(1), None)


class PerToken(nn.Module):
    """Its layer sees tokens, not sequences."""

    def __init__(self, moe):
        super().__init__()
        self.moe = moe

    def forward(self, inputs):
        return self.moe(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2]).mean(1)


class Pooling(nn.Module):
    """Takes sequences of any length."""

    def __init__(self, moe):
        super().__init__()
        self.moe = moe

    def forward(self, inputs):
        return self.moe(inputs.mean(1))


def two_classes(outputs, targets):
    if len(targets) > 1 and len(targets.unique()) < 2:
        raise ValueError("only one class present")
    return nn.functional.cross_entropy(outputs, targets)


def absolute(outputs, targets):
    return (outputs - targets).abs().mean()


def skipping(search, *batches):
    """The last record after some batches, of which a warning tells."""
    for batch in batches[:-1]:
        search.step(*batch)
    with pytest.warns(RuntimeWarning, match=r"the search at step \d+ was given up and the expert map left as it is: "):
        record = search.step(*batches[-1])
    assert record.outcome == "skipped"
    assert record is search.history[-1]
    return record


@pytest.mark.parametrize("gate", ["hash", "top-2"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_too_few_samples(gate, asynchronous):
    setting = make(gate)
    before = setting.expert_map.experts.clone()
    search = searching(setting, period=2, asynchronous=asynchronous)
    step(search, setting)
    record = skipping(search, setting.batch(0, 1))
    assert record.reason == "inputs must hold at least 2 samples to verify a search, got 1 (shape (1, 6))"
    assert (record.step, record.num_samples, record.problem) == (2, 0, None)
    assert torch.equal(setting.expert_map.experts, before)
    for _ in range(2):  # a run goes on, and is warned no more
        step(search, setting, 0, 1)
        step(search, setting, 0, 1)
    step(search, setting)
    step(search, setting)
    search.finish()
    assert [record.outcome for record in search.history] == ["skipped"] * 3 + ["no improvement"] * 2
    assert [record.step for record in search.history] == [2, 4, 6, 7, 8]
    assert search.seconds == pytest.approx(sum(record.seconds for record in search.history))


def test_a_search_is_put_off_to_the_next_batch_of_enough_samples():
    """As where the last batch of every epoch has one sample, and the period is an epoch; in a run that resumes, too."""
    setting = make("top-2", samples=60)
    setting.scramble()
    runs = searching(setting, period=3, until=6, seed=3), searching(setting, period=3, until=6, seed=3)
    step(runs[0], setting, 0, 20)
    step(runs[0], setting, 20, 40)
    record = skipping(runs[0], setting.batch(0, 1))
    assert runs[0].state_dict()["put_off"]
    runs[1].load_state_dict(runs[0].state_dict())
    kept = setting.expert_map.experts.clone()
    for search in runs:
        setting.expert_map.assign(kept)
        assert step(search, setting, 1, 2) is None
        record = step(search, setting, 40, 60)
        # It is searched on what came before, not on single samples.
        assert (record.step, record.outcome, record.num_samples) == (5, "committed", 20)
        assert [step(search, setting, 0, 1) is None for _ in range(3)] == [False, True, True]
        assert [record.step for record in search.history] == [3, 5, 6]
        assert search.state_dict()["retained"] == []


def test_too_few_samples_for_halves():
    setting = make("top-2")
    search = searching(setting, period=1)
    record = skipping(search, setting.batch(0, 2))
    assert record.reason.startswith("inputs must hold at least 3 samples to be searched and verified by halves")
    assert step(search, setting, 0, 3).outcome != "skipped"


def test_an_empty_batch_is_a_step_and_is_not_kept():
    setting = make("top-2")
    search = searching(setting, period=2)
    step(search, setting, 0, 0)
    assert search.state_dict()["retained"] == []
    assert step(search, setting).num_samples == len(setting.inputs) // 2
    step(search, setting)
    assert skipping(search, setting.batch(0, 0)).reason.endswith("got 0 (shape (0, 6))")


def test_sequences_of_several_lengths():
    setting = make("top-2")
    model = Pooling(setting.moe)
    search = PermutationSearch(model, setting.moe, loss=nn.MSELoss(), period=3, batches=2)
    batches = [(torch.randn(8, length, FEATURES, dtype=torch.float64), torch.randn(8, FEATURES)) for length in (3, 4)]
    record = skipping(search, *batches, batches[0])
    assert record.reason.startswith("inputs of batches searched together must agree in the shape of a sample")
    # A batch of another length verifies all the same.
    for batch in (batches[0], batches[0], batches[1]):
        record = search.step(*batch)
    assert record.outcome != "skipped"


def test_ids_with_some_batches_only():
    setting = make("hash")
    search = searching(setting, period=3, batches=2)
    step(search, setting)
    record = skipping(search, setting.batch()[:2], setting.batch())
    assert record.reason.startswith("ids must come with every batch or with none")


@pytest.mark.parametrize("part", ["searched", "verifying"])
def test_samples_of_one_class(part):
    setting = make("hash", loss="cross_entropy")
    setting.scramble()
    search = searching(setting, loss=two_classes, period=2)
    step(search, setting)
    step(search, setting)
    before = setting.expert_map.experts.clone()
    setting.scramble(1)
    inputs, _, ids = setting.batch()
    one = inputs, torch.zeros_like(setting.targets), ids
    batches = [one, setting.batch()] if part == "searched" else [setting.batch(), one]
    assert skipping(search, *batches).reason == "only one class present"
    assert not torch.equal(setting.expert_map.experts, before)


def test_nothing_routed():
    torch.manual_seed(0)
    moe = MixtureOfExperts(StackedExperts(3, 4, 2), Dropping(3), dispatch="sorted")
    search = PermutationSearch(moe, moe, loss=nn.MSELoss(), period=2)
    batch, empty = (torch.randn(10, 4), torch.randn(10, 2)), (torch.zeros(10, 4), torch.randn(10, 2))
    for first, second in ((batch, empty), (empty, batch), (empty, empty), (batch, batch)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            search.step(*first)
            record = search.step(*second)
        record.metrics()
        str(search.summary())
    assert record.outcome in ("committed", "refused", "no improvement")


@pytest.mark.parametrize("gate", ["hash", "top-2"])
@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (nn.MSELoss(reduction="none"), r"loss must return a scalar, the mean over the samples, got a tensor of shape"),
        (nn.MSELoss(reduction="sum"), "loss must be the mean over the samples"),
        (lambda outputs, targets: 0.5, "loss must return a scalar tensor, got float"),
    ],
    ids=["vector", "sum", "number"],
)
def test_a_loss_that_is_none_is_told_at_the_first_step(gate, loss, message):
    setting = make(gate)
    setting.scramble()
    before = setting.expert_map.experts.clone()
    search = searching(setting, loss=loss)
    with pytest.raises((ValueError, TypeError), match=message):
        step(search, setting)
    assert torch.equal(setting.expert_map.experts, before)
    assert step(search, setting) is None  # and once

    search = searching(setting, loss=loss, period=2, on_error="warn")
    with pytest.warns(RuntimeWarning, match="no search of this model and loss can run: loss must"):
        step(search, setting)
    with pytest.warns(RuntimeWarning, match="the search at step 2 was given up"):
        record = step(search, setting)
    assert record.outcome == "skipped"
    assert torch.equal(setting.expert_map.experts, before)


def test_a_layer_of_tokens_that_cannot_be_searched_is_told_at_the_first_step():
    setting = make("top-2")
    search = PermutationSearch(PerToken(setting.moe), setting.moe, loss=nn.MSELoss(), asynchronous=True)
    with pytest.raises(ValueError, match="asynchronous must be False for layers whose rows are tokens"):
        search.step(torch.randn(8, 5, FEATURES, dtype=torch.float64), torch.randn(8, FEATURES, dtype=torch.float64))


class Checkpointed(nn.Module):
    def __init__(self, model, reentrant):
        super().__init__()
        self.model = model
        self.reentrant = reentrant

    def forward(self, inputs, ids=None):
        return self.model.head(checkpoint(self.model.moe, inputs, ids, use_reentrant=self.reentrant))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # eval mode
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("gate", ["hash", "top-2"])
def test_a_checkpointed_layer(reentrant, gate):
    setting = make(gate)
    setting.scramble()
    model = Checkpointed(setting.model, reentrant)
    search = PermutationSearch(model, setting.moe, loss=setting.loss, period=2)
    if reentrant and gate == "top-2":
        with pytest.raises(
            ValueError, match=r"a torch\.utils\.checkpoint with use_reentrant=True, which use_reentrant=F"
        ):
            step(search, setting)
        return
    step(search, setting)
    assert step(search, setting).outcome == "committed"


@pytest.mark.parametrize("gate", ["softmax", "comet"])
def test_a_loss_of_few_slots(gate):
    """Softmax never has two slots a sample, a COMET of two trees has them in the end."""
    setting = make(gate, loss="squared")
    setting.loss = absolute
    search = searching(setting, period=2)
    if gate == "softmax":
        with pytest.raises(
            ValueError, match=r"loss must be one .* and up to 4 slots a sample where any other loss takes"
        ):
            step(search, setting)
        return
    with torch.no_grad():
        setting.moe.gate.nodes.weight[:] *= 0.1
    step(search, setting)
    record = skipping(search, setting.batch())
    assert "and up to 6 slots a sample where any other loss takes two" in record.reason
    with torch.no_grad():
        setting.moe.gate.nodes.weight[:] *= 1e6
    step(search, setting)
    assert step(search, setting).problem == "PairwiseAssignment"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_solver_that_raises_may_be_only_warned_of(asynchronous):
    setting = make("top-2")
    before = setting.expert_map.experts.clone()
    search = searching(setting, solver=Broken(), period=2, asynchronous=asynchronous, on_error="warn")
    step(search, setting)
    if asynchronous:
        step(search, setting)
    with pytest.warns(RuntimeWarning, match="given up and the expert map left as it is: 'no such move'"):
        search.finish() if asynchronous else step(search, setting)
    for _ in range(4):
        step(search, setting)
    search.finish()
    assert [(record.step, record.outcome) for record in search.history] == [(i, "failed") for i in (2, 4, 6)]
    assert torch.equal(setting.expert_map.experts, before)
    assert search.history[0].reason == "'no such move'"


def test_batches_of_ones_own_raise_all_the_same():
    setting = make("hash", loss="cross_entropy")
    search = searching(setting, loss=two_classes)
    one = setting.inputs, torch.zeros_like(setting.targets), setting.ids
    for searched, verifying in ((one, setting.batch()), (setting.batch(0, 0), setting.batch())):
        with pytest.raises(ValueError, match=r"only one class present|inputs must hold at least one sample"):
            search.search_batches([searched], verify=[verifying])


def test_the_first_step_leaves_no_trace():
    def run(tried):
        setting = make("comet", "deep")
        setting.scramble()
        search = searching(setting, period=3)
        search._tried = not tried
        torch.manual_seed(3)
        records = []
        for start in (0, 30, 60):
            setting.model.train()(setting.inputs)  # dropout draws
            records.append(step(search, setting, start, start + 30))
        last = records[-1]
        return last.value_before, last.value_found, last.verified_gain, setting.expert_map.experts.tolist()

    assert run(True) == run(False)


def test_what_on_error_may_be():
    with pytest.raises(ValueError, match="on_error must be one of raise, warn, got 'ignore'"):
        searching(make("hash"), on_error="ignore")
