import numpy as np
import pytest
import torch
from specialists import make

from moe_search.training.lowering.batch import Batch
from moe_search.training.lowering.tasks import Tasks
from moe_search.training.search.verification import Verification, verify


def tasks_of(setting):
    return Tasks.of(setting.moe, setting.loss)


@pytest.mark.parametrize("gate", ["hash", "top-2", "comet"])
def test_gain_and_standard_error_are_those_of_paired_true_losses(gate):
    setting = make(gate, "deep", samples=9)
    new = setting.expert_map.permutation()
    setting.scramble()
    old = setting.expert_map.experts.clone()
    found = verify(setting.model, tasks_of(setting), new, [Batch(*setting.batch())])
    assert torch.equal(setting.expert_map.experts, old)

    before = [setting.true_loss(b, b + 1) for b in range(9)]
    setting.expert_map.assign_permutation(new)
    after = [setting.true_loss(b, b + 1) for b in range(9)]
    gains = [x - y for x, y in zip(before, after, strict=True)]
    mean = sum(gains) / 9
    assert found.gain == pytest.approx(mean, rel=1e-9)
    assert found.standard_error == pytest.approx((sum((g - mean) ** 2 for g in gains) / 8 / 9) ** 0.5, rel=1e-9)
    assert found.num_samples == 9
    assert found.confirmed()


@pytest.mark.parametrize(
    ("gain", "standard_error", "confirmed"),
    [(1.0, 0.5, True), (1.0, 1.0, False), (0.5, 1.0, False), (-1.0, 0.5, False), (0.0, 0.0, False), (0.1, 0.0, True)],
)
def test_a_gain_must_exceed_its_standard_error(gain, standard_error, confirmed):
    assert Verification(gain, standard_error, 10).confirmed() is confirmed


@pytest.mark.parametrize(("confidence", "confirmed"), [(0.0, True), (1.9, True), (2.0, False), (2.1, False)])
def test_a_gain_must_exceed_so_many_standard_errors(confidence, confirmed):
    assert Verification(1.0, 0.5, 10).confirmed(confidence) is confirmed
    assert not Verification(-1.0, 0.5, 10).confirmed(confidence)
    assert not Verification(0.0, 0.5, 10).confirmed(confidence)


def test_one_sample_has_no_standard_error():
    setting = make("top-2", samples=1)
    with pytest.raises(ValueError, match="batches must hold at least 2 samples to verify a map, got 1"):
        verify(setting.model, tasks_of(setting), setting.expert_map.permutation(), [Batch(*setting.batch())])


def test_the_map_and_the_model_are_restored_after_an_error():
    setting = make("top-2")
    new = setting.expert_map.permutation()
    setting.scramble()
    old = setting.expert_map.experts.clone()
    setting.model.train()
    calls = 0

    def breaks(outputs, targets):
        nonlocal calls
        calls += 1
        if not torch.equal(setting.expert_map.experts, old):
            raise KeyError("under the new map")
        return (outputs - targets).pow(2).mean()

    with pytest.raises(KeyError, match="under the new map"):
        verify(setting.model, Tasks.of(setting.moe, breaks), new, [Batch(*setting.batch())])
    assert calls > 1
    assert torch.equal(setting.expert_map.experts, old)
    assert all(module.training for module in setting.model.modules())


def test_a_permutation_that_is_none_leaves_the_map():
    setting = make("top-2")
    old = setting.expert_map.experts.clone()
    with pytest.raises(ValueError, match="permutation"):
        verify(setting.model, tasks_of(setting), np.zeros(4, dtype=np.int64), [Batch(*setting.batch())])
    assert torch.equal(setting.expert_map.experts, old)
