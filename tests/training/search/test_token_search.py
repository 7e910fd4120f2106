import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from token_models import EXPERTS, TOKENS, WIDTH, taught, token_loss
from torch.nn.functional import cross_entropy

import moe_search as ms
from moe_search.training.lowering.batch import Batch
from moe_search.training.lowering.process_group import ALONE
from moe_search.training.lowering.token_layers import token_layer
from moe_search.training.search.token_search import TokenSearch, confidence_of_best
from moe_search.training.search.verification import verify_tokens


def searching(model, **options):
    given = {
        "problem": "auto",
        "solver": None,
        "load_limit": None,
        "confidence": 1.0,
        "max_rows": 4096,
        "chunk_size": 64,
        "ranks": ALONE,
    }
    return TokenSearch(model, [token_layer(layer) for layer in model.layers], token_loss, **given | options)


def found_by(search, searched, verified, step=1):
    return [record for record, _ in search.search([searched], [verified], stop, seed=0, step=step)]


def stop(_start):
    return ms.MaxIterations(3000)


def mean_loss(model, batch):
    with torch.no_grad():
        return float(token_loss(model(batch.inputs), batch.targets))


def test_scrambled_maps_are_found_again_and_good_ones_left_alone():
    model, searched, verified = taught()
    intact = mean_loss(model, verified)
    records = found_by(searching(model), searched, verified)
    assert {record.outcome for record in records} <= {"refused", "no improvement"}
    assert mean_loss(model, verified) == intact

    for t, layer in enumerate(model.layers):
        layer.gate.expert_map.scramble(torch.Generator().manual_seed(t))
    scrambled = mean_loss(model, verified)
    assert scrambled > intact + 0.2
    for _ in range(2):
        before = mean_loss(model, verified)
        records = found_by(searching(model), searched, verified, step=7)
        assert [(record.layer, record.step, record.num_samples) for record in records] == [(0, 7, 60), (1, 7, 60)]
        gains = sum(record.verified_gain for record in records if record.new_map)
        # Every record says what a true forward of the verified sequences says.
        assert before - mean_loss(model, verified) == pytest.approx(gains, abs=1e-5)
    assert mean_loss(model, verified) < intact + 0.5 * (scrambled - intact)


def test_the_same_seed_finds_the_same_and_the_order_of_chunks_does_not_matter():
    found = []
    for chunk_size in (64, 64, 1000):
        model, searched, verified = taught()
        for layer in model.layers:
            layer.gate.expert_map.scramble(torch.Generator().manual_seed(3))
        found_by(searching(model, chunk_size=chunk_size), searched, verified)
        found.append([layer.gate.expert_map.experts.tolist() for layer in model.layers])
    assert found[0] == found[1] == found[2]


def test_verification_is_that_of_a_ratio_of_sums_over_sequences():
    model, _, verified = taught(sequences=24)
    expert_map = model.layers[0].gate.expert_map
    permutation = np.array([1, 0, 3, 2])
    targets = verified.targets.clone()
    targets[:4, 2:] = -100
    targets[4] = -100
    batch = Batch(verified.inputs, targets)
    [found] = verify_tokens(model, expert_map, token_loss, [permutation], [batch], chunk_size=10)
    each = []
    for _ in range(2):
        with torch.no_grad():
            outputs = model(batch.inputs)
        each.append(cross_entropy(outputs.transpose(1, 2), targets, reduction="none").sum(1).numpy())
        expert_map.assign_permutation(permutation)
    counts = (targets != -100).sum(1).numpy()
    gain = (each[0] - each[1]).sum() / counts.sum()
    assert found.gain == pytest.approx(gain, abs=1e-6)
    assert found.num_samples == 11
    # The jackknife over sequences is another estimate of the same standard error.
    without = [np.arange(12) != b for b in range(12) if counts[b]]
    alone = [(each[0] - each[1])[others].sum() / counts[others].sum() for others in without]
    jackknife = np.sqrt(10 / 11 * ((np.array(alone) - np.mean(alone)) ** 2).sum())
    assert found.standard_error == pytest.approx(jackknife, rel=0.15)
    with pytest.raises(ValueError, match="at least 2 sequences"):
        verify_tokens(model, expert_map, token_loss, [permutation], [batch.part(5, 6)], chunk_size=10)


def test_a_load_limit_is_kept():
    torch.manual_seed(0)
    model, searched, verified = taught()
    for layer in model.layers:
        layer.gate = ms.TopK(WIDTH, EXPERTS, k=2, num_slots=4 * EXPERTS)
        layer.gate.expert_map.scramble(torch.Generator().manual_seed(1))
    records = [
        record for record, _ in searching(model, load_limit=1.3).search([searched], [verified], stop, seed=0, step=1)
    ]
    for record in records:
        assert record.load_limit is not None
        assert record.max_load <= max(record.load_limit, 1.3) + 1e-9


def scrambled(seed=3):
    model, searched, verified = taught()
    for layer in model.layers:
        layer.gate.expert_map.scramble(torch.Generator().manual_seed(seed))
    return model, searched, verified


def stepping(model, moe, **options):
    return ms.PermutationSearch(model, moe, loss=token_loss, period=2, stop=ms.MaxIterations(3000), **options)


def test_steps_search_all_layers_and_a_state_takes_them_up():
    model, searched, verified = scrambled()
    told = []
    search = stepping(model, model.layers, on_search=lambda *found: told.append(found))
    assert search.step(searched.inputs, searched.targets) is None
    state = search.state_dict()
    last = search.step(verified.inputs, verified.targets)
    assert [(record.step, record.layer) for record in search.history] == [(2, 0), (2, 1)]
    assert last is search.history[1]
    assert any(record.new_map for record in search.history)
    # Values are losses; of the gain only the forecast is a guess.
    assert search.history[0].value_before == pytest.approx(2.0, abs=1.9)
    assert [lowering.initial.shape for _, lowering, _ in told] == [(EXPERTS,)] * 2
    assert all(result.solver in ("Hungarian()", told[0][2].solver) or result.solver for _, _, result in told)
    assert search.summary().searches == 2

    other, _, _ = scrambled()
    again = stepping(other, list(other.layers))
    again.load_state_dict(state)
    again.step(verified.inputs, verified.targets)
    for mine, its in zip(model.layers, other.layers, strict=True):
        assert torch.equal(mine.gate.expert_map.experts, its.gate.expert_map.experts)
    with pytest.raises(ValueError, match=r"state must be that of a search of .*2 layers"):
        again.load_state_dict(stepping(other, other.layers[0]).state_dict())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda search: pickle.loads(pickle.dumps(search))])
def test_a_copied_search_goes_on_as_the_first_with_a_model_of_its_own(copied):
    model, searched, verified = scrambled()
    search, scrambled_maps = stepping(model, model.layers), copy.deepcopy(model.state_dict())
    search.step(searched.inputs, searched.targets)
    other = copied(search)
    other.step(verified.inputs, verified.targets)
    assert any(record.new_map for record in other.history)
    assert all(torch.equal(each, scrambled_maps[name]) for name, each in model.state_dict().items())
    search.step(verified.inputs, verified.targets)
    assert [each.verified_gain for each in search.history] == [each.verified_gain for each in other.history]


def test_one_layer_of_tokens_is_known_from_the_first_batch():
    model, searched, verified = scrambled()
    search = stepping(model, model.layers[1], problem="mixture")
    search.step(searched.inputs, searched.targets)
    record = search.step(verified.inputs, verified.targets)
    assert (record.layer, record.problem) == (0, "MixtureAssignment")
    with pytest.raises(ValueError, match="asynchronous must be False for layers whose rows are tokens"):
        stepping(model, model.layers[1], asynchronous=True).step(searched.inputs, searched.targets)
    record = stepping(model, model.layers[1], problem="linear").search_batches(
        [(searched.inputs[:30], searched.targets[:30]), (searched.inputs[30:], searched.targets[30:])],
        verify=[(verified.inputs, verified.targets)],
    )
    assert (record.layer, record.problem, record.num_samples) == (0, "LinearAssignment", 60)


def test_what_a_search_of_layers_refuses_and_what_a_batch_cannot_do():
    model, searched, verified = scrambled()
    with pytest.raises(ValueError, match="moe must hold submodules of model, got one, number 1, that Teacher"):
        stepping(model, [model.layers[0], taught()[0].layers[0]])
    with pytest.raises(ValueError, match="at least one layer"):
        stepping(model, [])
    with pytest.raises(ValueError, match="problem must be auto or linear or mixture for a layer"):
        stepping(model, model.layers, problem="pairwise").search_batches(
            [(searched.inputs, searched.targets)], verify=[(verified.inputs, verified.targets)]
        )
    groups = torch.zeros(len(searched.inputs), dtype=torch.long)
    with pytest.raises(ValueError, match="groups must be None for layers whose rows are tokens"):
        stepping(model, model.layers).search_batches(
            [(searched.inputs, searched.targets, None, groups)], verify=[(verified.inputs, verified.targets)]
        )
    search = stepping(model, model.layers)
    search.step(searched.inputs, torch.full_like(searched.targets, -100))
    with pytest.warns(RuntimeWarning, match="given up"):
        record = search.step(verified.inputs, verified.targets)
    assert record.outcome == "skipped"
    assert "by a target that counts" in record.reason


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_checkpointed_layer_needs_no_reentrance():
    from torch.utils.checkpoint import checkpoint

    model, searched, _ = scrambled()

    class Checkpointed(torch.nn.Module):
        def __init__(self, reentrant):
            super().__init__()
            self.model, self.reentrant = model, reentrant

        def forward(self, inputs):
            return checkpoint(self.model, inputs, use_reentrant=self.reentrant)

    plain = ms.lower_tokens(model, model.layers, searched.inputs, searched.targets, token_loss)
    again = ms.lower_tokens(Checkpointed(False), model.layers, searched.inputs, searched.targets, token_loss)
    for one, other in zip(plain, again, strict=True):
        np.testing.assert_allclose(one.drift, other.drift, rtol=1e-3, atol=1e-5)
    with pytest.raises((ValueError, RuntimeError)):
        ms.lower_tokens(Checkpointed(True), model.layers, searched.inputs, searched.targets, token_loss)


class Masked(torch.nn.Module):
    """A model as those of Transformers are: ids of tokens and a mask in, a dict with logits out."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.embedding = torch.nn.Embedding(20, WIDTH)

    def forward(self, input_ids, attention_mask):
        return {"logits": self.model(self.embedding(input_ids) * attention_mask[..., None])}


def test_keywords_reach_the_model_are_kept_and_saved():
    model, _, _ = scrambled()
    masked = Masked(model)
    tokens, targets = torch.randint(20, (2, 24, TOKENS)), torch.randint(4, (2, 24, TOKENS))
    targets[:, :, 3:] = -100
    mask = (torch.arange(TOKENS) < 3).expand(24, TOKENS)
    search = stepping(masked, model.layers)
    with pytest.raises(TypeError, match="attention_mask"):
        stepping(masked, model.layers).step(tokens[0], targets[0])
    search.step(tokens[0], targets[0], attention_mask=mask)
    other, _, _ = scrambled()
    other_masked = Masked(other)
    other_masked.load_state_dict(masked.state_dict())
    again = stepping(other_masked, other.layers)
    again.load_state_dict(search.state_dict())
    for each in (search, again):
        assert each.step(tokens[1], targets[1], attention_mask=mask).num_samples == 24
    assert search.history[0].value_found == again.history[0].value_found
    record = stepping(masked, model.layers).search_batches(
        [(tokens[0], targets[0], None, None, {"attention_mask": mask})],
        verify=[(tokens[1], targets[1], None, None, {"attention_mask": mask})],
    )
    assert record.num_samples == 24
    [first, _] = ms.lower_tokens(masked, model.layers, tokens[0], targets[0], token_loss, attention_mask=mask)
    assert first.loss == pytest.approx(record.value_before, rel=0.5)
    with pytest.raises(ValueError, match=r"keywords\.attention_mask must hold as many samples"):
        search.step(tokens[0], targets[0], attention_mask=mask[:3])


def test_the_first_step_leaves_no_trace():
    class Noisy(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model, self.norm, self.drop = model, torch.nn.BatchNorm1d(TOKENS), torch.nn.Dropout()

        def forward(self, inputs):
            return self.drop(self.norm(self.model(inputs)))

    model, batch, _ = taught()
    noisy = Noisy(model).train()
    drawn, mean = torch.get_rng_state(), noisy.norm.running_mean.clone()
    statistics = ms.RoutingStatistics()
    with statistics.watch(model.layers[0]):
        stepping(noisy, model.layers).step(batch.inputs, batch.targets)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert torch.equal(noisy.norm.running_mean, mean)
    with pytest.raises(ValueError, match="at least one batch"):
        statistics.summary()


def test_a_compiled_model_is_searched_as_it_was_written():
    model, batch, _ = taught()
    compiled = torch.compile(model, backend="eager")
    compiled(batch.inputs)
    search = stepping(compiled, model.layers)
    search.step(batch.inputs, batch.targets)
    assert search.step(batch.inputs, batch.targets).outcome != "skipped"


def test_the_summary_tells_the_dead_of_each_layer_and_no_problem_that_tokens_do_not_take():
    model, batch, _ = taught()
    with torch.no_grad():
        for expert, layer in enumerate(model.layers):
            layer.gate.linear.bias[expert] = -1e4
    search = stepping(model, model.layers)
    for _ in range(6):
        search.step(batch.inputs, batch.targets)
    advice = " ".join(search.summary().advice)
    for index, layer in enumerate(model.layers):
        dead = int(layer.gate.expert_map.experts[0, index])
        assert f"Expert {dead} of layer {index} got none" in advice
    assert "pairwise" not in advice
    assert search.summary().k is None


def test_batches_searched_together_may_have_sequences_of_other_lengths():
    model, batch, _ = taught()
    search = ms.PermutationSearch(model, model.layers, loss=token_loss, period=3, batches=2)
    for length in (5, 4, 3):
        record = search.step(batch.inputs[:, :length], batch.targets[:, :length])
    assert (record.outcome != "skipped", record.num_samples) == (True, 120)


def test_the_best_of_several_must_exceed_more():
    assert confidence_of_best(1.0, 1) == pytest.approx(1.0)
    # The largest of five independent standard normal numbers exceeds it as often as one of them exceeds 1.
    threshold = confidence_of_best(1.0, 5)
    largest = np.random.default_rng(0).standard_normal((200_000, 5)).max(axis=1)
    assert (largest > threshold).mean() == pytest.approx(0.1587, abs=0.005)
    assert confidence_of_best(0.0, 5) > 1.0
    assert confidence_of_best(50.0, 5) == 50.0


@pytest.mark.parametrize("shift", [0, 1])
def test_a_first_batch_of_one_token_a_sequence_has_tokens_for_rows(shift):
    layer = ms.MixtureOfExperts(ms.StackedExperts(4, 8, 8), ms.TopK(8, 4, k=2))
    model = torch.nn.Sequential(torch.nn.Embedding(20, 8), layer, torch.nn.Linear(8, 20))

    def loss(logits, ids):
        return cross_entropy(logits[:, : ids.shape[1] - shift].flatten(0, 1), ids[:, shift:].flatten())

    search = ms.PermutationSearch(model, layer, loss=loss, period=2, stop=ms.MaxIterations(3000))
    search.step(torch.zeros(12, 1, dtype=torch.long), torch.zeros(12, 1, dtype=torch.long))
    for step in range(2, 5):
        ids = torch.randint(20, (12, 6), generator=torch.Generator().manual_seed(step))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            record = search.step(ids, ids)
    assert (record.layer, record.num_samples) == (0, 12)
    assert [record.outcome == "skipped" for record in search.history] == [shift == 1, False]


def test_a_first_batch_without_samples_tells_nothing():
    model, searched, verified = scrambled()
    search = stepping(model, model.layers[1])
    search.step(searched.inputs[:0], searched.targets[:0])
    with pytest.warns(RuntimeWarning, match="given up"):
        assert search.step(searched.inputs[:2], searched.targets[:2]).outcome == "skipped"
    search.step(searched.inputs, searched.targets)
    assert search.step(verified.inputs, verified.targets).layer == 0
