import naive_training
import numpy as np
import pytest
import torch
from specialists import lowered, make, random_permutation
from torch import nn
from torch.nn import functional

from moe_search.problems.linear import LinearAssignment
from moe_search.problems.mixture import MixtureAssignment
from moe_search.problems.pairwise import PairwiseAssignment

LOSSES = {
    "absolute": nn.L1Loss(),
    "huber": nn.HuberLoss(delta=0.5),
    "smoothed": nn.CrossEntropyLoss(label_smoothing=0.1),
}


def setting_with(loss, gate="top-2", head="deep", n=4, m=4, samples=24):
    setting = make(gate, head, n, m, samples, "cross_entropy" if loss == "smoothed" else "squared")
    setting.loss = LOSSES[loss]
    setting.scramble()
    return setting


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("n", "m"), [(4, 4), (3, 6)])
@pytest.mark.parametrize(("gate", "head"), [("top-2", "linear"), ("top-2", "deep"), ("sigmoid-2", "deep")])
def test_two_slots_a_sample_take_any_loss_through_any_head(gate, head, n, m, loss):
    setting = setting_with(loss, gate, head, n, m)
    lowering = lowered(setting)
    assert isinstance(lowering.problem, PairwiseAssignment)
    assert not lowering.linearized
    assert lowering.losses is None
    assert lowering.problem.value(lowering.initial) == pytest.approx(setting.true_loss(), rel=1e-9)
    assert lowering.batch_loss == pytest.approx(setting.true_loss(), rel=1e-9)
    rng = np.random.default_rng(1)
    for _ in range(6):
        permutation = random_permutation(lowering.problem, rng)
        setting.expert_map.assign_permutation(permutation)
        assert lowering.problem.value(permutation) == pytest.approx(setting.true_loss(), rel=1e-9)


@pytest.mark.parametrize("m", [2, 4])
def test_pairs_of_slots_in_two_rows_of_the_map(m):
    setting = setting_with("absolute", "comet", n=2, m=m, samples=60)
    with torch.no_grad():  # splits so far from 0 that every tree sends a sample to one leaf
        for parameter in setting.moe.gate.parameters():
            parameter.mul_(1e3)
    lowering = lowered(setting, problem="pairwise")
    assert lowering.problem.size == 2 * m
    assert lowering.problem.block_size == m
    rng = np.random.default_rng(1)
    for _ in range(4):
        permutation = random_permutation(lowering.problem, rng)
        setting.expert_map.assign_permutation(permutation)
        assert lowering.problem.value(permutation) == pytest.approx(setting.true_loss(), rel=1e-9)


def test_costs_are_those_of_a_loop_over_samples_slots_and_experts():
    setting = setting_with("absolute", n=3, m=3, samples=10)
    lowering = lowered(setting)
    setting.model.eval()
    with torch.no_grad():
        expected = naive_training.pairwise_cost(
            setting.moe.gate(setting.inputs).weights[:, 0],
            setting.moe.experts,
            setting.model.head,
            setting.loss,
            setting.inputs,
            setting.targets,
        )
    np.testing.assert_allclose(lowering.problem.cost, expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("gate", ["hash", "top-1", "top-2"])
def test_the_kinds_of_problem_agree_where_several_fit(gate):
    setting = make(gate, "linear", samples=30)
    setting.scramble()
    kinds = {"linear": LinearAssignment, "mixture": MixtureAssignment, "pairwise": PairwiseAssignment}
    if gate == "top-2":
        del kinds["linear"]
    rng = np.random.default_rng(3)
    problems = {kind: lowered(setting, problem=kind).problem for kind in kinds}
    for kind, expected in kinds.items():
        assert type(problems[kind]) is expected
    for _ in range(5):
        permutation = random_permutation(problems["pairwise"], rng)
        setting.expert_map.assign_permutation(permutation)
        for problem in problems.values():
            assert problem.value(permutation) == pytest.approx(setting.true_loss(), rel=1e-9)


def test_a_problem_that_does_not_fit_is_refused():
    setting = make("softmax")
    with pytest.raises(ValueError, match=r"a linear problem must have one slot a sample .* got up to 4 slots a sample"):
        lowered(setting, problem="linear")
    with pytest.raises(ValueError, match="a pairwise problem must have at most two slots a sample, got 4"):
        lowered(setting, problem="pairwise")
    with pytest.raises(ValueError, match="problem must be one of auto, linear, pairwise, mixture, got 'quadratic'"):
        lowered(setting, problem="quadratic")
    setting.loss = nn.L1Loss()
    with pytest.raises(ValueError, match="loss must be one that a mixture can be searched under"):
        lowered(setting)
    two = make("top-2")
    two.loss = nn.L1Loss()
    with pytest.raises(ValueError, match="loss must be one that a mixture can be searched under"):
        lowered(two, problem="mixture")


def test_a_pairwise_problem_beyond_memory_is_refused_before_it_is_made():
    setting = make("top-2", n=128, m=128, samples=4)
    setting.loss = functional.l1_loss
    with pytest.raises(ValueError, match="at most 1 GiB, that of 128 slots and 128 experts takes 6"):
        lowered(setting)
