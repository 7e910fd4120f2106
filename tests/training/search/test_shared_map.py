"""One expert map for several tasks: lowered to one problem of their summed loss."""

import copy
from dataclasses import replace

import naive
import numpy as np
import pytest
import torch
from largest_tensor import Largest
from shared_map import FEATURES, OUTPUTS, WIDTH, SeveralHeads, make_shared
from specialists import lowered, step
from torch import nn
from torch.nn import functional

from moe_search.gates.top_k import TopK
from moe_search.layers.multi_gate_mixture_of_experts import MultiGateMixtureOfExperts
from moe_search.problems.linear import LinearAssignment
from moe_search.problems.mixture import MixtureAssignment
from moe_search.problems.pairwise import PairwiseAssignment
from moe_search.solvers.engine.stop import MaxIterations, MaxRuntime
from moe_search.solvers.exact.enumeration import Enumeration
from moe_search.solvers.exact.hungarian import Hungarian
from moe_search.training.lowering.lowering import lower
from moe_search.training.search.permutation_search import PermutationSearch


def tripled(outputs, targets):
    return 3.0 * functional.mse_loss(outputs, targets)


def classes(setting):
    with torch.no_grad():  # sure of the classes, which are those of the model's own map
        for parameter in setting.model.heads.parameters():
            parameter.mul_(10.0)
    setting.targets = setting.targets.argmax(2)
    return setting


EXACT = {
    "linear, any losses, any heads": (
        lambda: make_shared(("top-1", "hash"), "deep", 4, 4, loss=[nn.L1Loss(), nn.HuberLoss()]),
        LinearAssignment,
    ),
    "linear, more slots than experts": (lambda: make_shared(("hash", "hash"), "deep", 2, 4), LinearAssignment),
    "pairwise, any losses, any heads": (
        lambda: make_shared(("top-2", "top-1"), "deep", 4, 4, loss=[nn.L1Loss(), nn.MSELoss()]),
        PairwiseAssignment,
    ),
    "mixture, squared, factors": (
        lambda: make_shared(("top-2", "top-3"), n=4, m=4, loss=[nn.MSELoss(), tripled]),
        MixtureAssignment,
    ),
    "mixture, cross-entropy": (
        lambda: classes(make_shared(("top-3", "top-2"), n=2, m=4, loss=nn.CrossEntropyLoss())),
        MixtureAssignment,
    ),
    "mixture, two rows of the map": (lambda: make_shared(("comet", "comet"), n=3, m=3), MixtureAssignment),
    "mixture, trees over one row": (
        lambda: make_shared(("comet-one-row", "comet-one-row"), n=2, m=4),
        MixtureAssignment,
    ),
    "three tasks": (lambda: make_shared(("top-2", "top-1", "top-3")), MixtureAssignment),
    "one task": (lambda: make_shared(("top-2",)), MixtureAssignment),
}


def searching(setting, **options):
    options = {"loss": setting.loss, "period": 2, "stop": MaxIterations(5_000), **options}
    return PermutationSearch(setting.model, setting.moe, **options)


@pytest.mark.parametrize("case", EXACT)
def test_the_optimum_is_the_least_true_loss_over_all_maps(case):
    make, kind = EXACT[case]
    setting = make()
    setting.scramble(1)
    lowering = lowered(setting)
    problem = lowering.problem
    assert type(problem) is kind
    assert not lowering.linearized
    assert lowering.num_samples == len(setting.inputs)
    assert lowering.batch_loss == pytest.approx(setting.true_loss(), rel=1e-9)
    assert problem.value(lowering.initial) == pytest.approx(setting.true_loss(), rel=1e-9)

    losses = []
    for permutation in naive.permutations(problem.size, problem.block_size):
        setting.expert_map.assign_permutation(permutation)
        losses.append(setting.true_loss())
        assert problem.value(permutation) == pytest.approx(losses[-1], rel=1e-9)
    assert max(losses) > 1.5 * min(losses)
    solver = Hungarian() if kind is LinearAssignment else Enumeration()
    result = solver.solve(problem, MaxRuntime(20.0), seed=0, initial=lowering.initial)
    assert result.status == "optimal"
    assert result.value == pytest.approx(min(losses), rel=1e-9)


def test_the_best_map_for_all_is_best_for_no_single_task():
    """Tasks that want different maps: their sum decides, which no search of one task could."""
    setting = make_shared(("top-1", "top-1"), samples=60)
    contrary = make_shared(("top-1", "top-1"), samples=60)
    contrary.expert_map.assign([[1, 0, 3, 2]])
    with torch.no_grad():
        setting.targets[:, 1] = contrary.model.eval()(setting.inputs)[:, 1]
    lowering = lowered(setting)
    best = Hungarian().solve(lowering.problem, MaxRuntime(5.0)).value
    of_tasks = []
    for permutation in naive.permutations(4, 4):
        setting.expert_map.assign_permutation(permutation)
        with torch.no_grad():
            outputs = setting.model(setting.inputs)
        of_tasks.append([float((outputs - setting.targets)[:, t].pow(2).mean()) for t in range(2)])
    of_tasks = np.array(of_tasks)
    assert best == pytest.approx(of_tasks.sum(1).min(), rel=1e-9)
    assert of_tasks[:, 0].argmin() != of_tasks[:, 1].argmin()
    assert best > of_tasks.min(0).sum() + 0.01


def test_a_deep_head_is_linearized_task_by_task():
    setting = make_shared(("top-2", "top-3"), "deep")
    setting.scramble()
    lowering = lowered(setting)
    assert lowering.linearized
    assert lowering.problem.value(lowering.initial) == pytest.approx(setting.true_loss(), rel=1e-9)
    setting.model.eval()
    step_size = 1e-5
    with torch.no_grad():
        mixtures, answers = setting.moe(setting.inputs), setting.moe.expert_outputs(setting.inputs)
        for t, head in enumerate(setting.model.heads):
            z = mixtures[:, t]
            for e in range(4):
                ahead, behind = (head(z + sign * step_size * (answers[:, e] - z)) for sign in (1, -1))
                expected = head(z) + (ahead - behind) / (2 * step_size)
                np.testing.assert_allclose(lowering.problem.outputs[t::2, e], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", ["linear, any losses, any heads", "pairwise, any losses, any heads", "three tasks"])
@pytest.mark.parametrize("chunk_size", [1, 7, 30])
def test_the_size_of_the_chunks_does_not_change_the_problem(case, chunk_size):
    setting = EXACT[case][0]()
    whole, chunked = lowered(setting), lowered(setting, chunk_size=chunk_size)
    for permutation in naive.permutations(4, 4):
        assert chunked.problem.value(permutation) == pytest.approx(whole.problem.value(permutation), rel=1e-9)


@pytest.mark.parametrize(("gates", "head"), [(("hash", "hash"), "deep"), (("top-3", "top-3"), "deep")])
def test_the_largest_tensor_is_bounded_by_the_chunk(gates, head):
    largest = {}
    for samples in (60, 240):
        setting = make_shared(gates, head, 8, 8, samples=samples)
        with Largest() as seen:
            lowered(setting, chunk_size=120)
        largest[samples] = seen.elements
    assert largest[60] == largest[240] >= 120 * 8 * WIDTH


@pytest.mark.parametrize("case", EXACT)
def test_a_scrambled_map_is_restored_for_all_tasks(case):
    setting = EXACT[case][0]()
    best = setting.true_loss()
    setting.scramble(1)
    scrambled = setting.true_loss()
    assert scrambled > 1.5 * best
    search = searching(setting)
    assert step(search, setting, 0, 20) is None
    record = step(search, setting, 20)
    assert record.outcome == "committed"
    assert record.num_samples == 20
    assert setting.true_loss() == pytest.approx(best, rel=1e-9)
    for task in setting.moe.tasks:
        assert task.gate.expert_map is setting.expert_map


def test_verification_is_of_the_summed_loss_by_sample():
    setting = make_shared(samples=30)
    setting.scramble(1)
    before = [setting.true_loss(b, b + 1) for b in range(10, 30)]
    search = searching(setting)
    step(search, setting, 0, 10)
    record = step(search, setting, 10)
    gains = np.array(before) - [setting.true_loss(b, b + 1) for b in range(10, 30)]
    assert record.outcome == "committed"
    assert record.verified_gain == pytest.approx(gains.mean(), rel=1e-9)
    assert record.standard_error == pytest.approx(gains.std(ddof=1) / 20**0.5, rel=1e-9)


def test_a_map_that_helps_one_task_and_hurts_another_more_is_refused():
    setting = make_shared(("top-1", "top-1"), samples=60)
    setting.loss = [nn.MSELoss(), tripled]
    before = setting.expert_map.experts.clone()
    search = searching(setting)
    other = copy.deepcopy(setting)
    other.expert_map.assign([[1, 0, 3, 2]])
    with torch.no_grad():
        contrary = other.model.eval()(setting.inputs)
    search.step(setting.inputs, contrary)
    targets = setting.targets.clone()
    targets[:, 0] = contrary[:, 0]
    record = search.step(setting.inputs, targets)
    assert record.outcome == "refused"
    assert record.verified_gain < 0
    assert torch.equal(setting.expert_map.experts, before)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_saved_search_goes_on(asynchronous):
    def run(saved):
        setting = make_shared(("top-3", "top-2"), n=6, m=6, samples=100, loss=[nn.MSELoss(), tripled], noise=1.0)
        setting.scramble(1)
        options = {"asynchronous": asynchronous, "stop": MaxIterations(30), "batches": 2, "period": 3}
        search = searching(setting, **options)
        for i in range(10):
            step(search, setting, 10 * i, 10 * i + 10)
            state = search.state_dict()  # waits for the thread
            if saved and i in (2, 4):
                search = searching(setting, **options)
                search.load_state_dict(state)
        search.finish()
        records = [replace(record, seconds=0.0, seconds_solving=0.0) for record in search.history]
        return records, setting.expert_map.experts.tolist()

    assert run(True) == run(False)
    assert len(run(True)[0]) == 3


def test_a_state_of_another_number_of_tasks():
    state = searching(make_shared(("top-2",) * 3)).state_dict()
    search = searching(make_shared())
    with pytest.raises(ValueError, match=r"4 slots of a row, 2 tasks, got .* 4 slots of a row, 3 tasks"):
        search.load_state_dict(state)


def test_a_load_limit_is_kept_over_all_tasks():
    setting = make_shared(("hash", "hash"), "deep", 3, 12, samples=120)
    setting.scramble(1)
    search = searching(setting, load_limit=1.05, stop=MaxIterations(20_000))
    step(search, setting)
    record = step(search, setting)
    assert record.outcome == "committed"
    loads = torch.zeros(3)
    for task in setting.moe.tasks:
        loads += setting.expert_map((task.gate(setting.inputs).weights > 0).double()).sum(0)
    assert loads.max() <= 1.05 * loads.sum() / 3


def test_gates_with_frozen_parameters_are_searched_all_the_same():
    setting = make_shared()
    best = setting.expert_map.experts.clone()
    setting.moe.tasks[1].gate.requires_grad_(False)
    setting.scramble(1)
    search = searching(setting)
    step(search, setting)
    assert step(search, setting).outcome == "committed"
    assert torch.equal(setting.expert_map.experts, best)


class TestRefused:
    def test_maps_that_are_not_shared(self):
        gates = [TopK(FEATURES, 3, 2), TopK(FEATURES, 3, 1)]
        multi = MultiGateMixtureOfExperts([nn.Linear(FEATURES, 2) for _ in range(3)], gates)
        with pytest.raises(ValueError, match=r"moe must have one map to be searched, got 2 tasks with maps of their"):
            PermutationSearch(multi, multi, loss=nn.MSELoss())

    @pytest.mark.parametrize("count", [0, 1, 3])
    def test_losses_that_are_not_as_many_as_the_tasks(self, count):
        setting = make_shared()
        setting.loss = [nn.MSELoss()] * count
        with pytest.raises(ValueError, match=f"one callable, or one for each of the 2 tasks, got {count}"):
            searching(setting)
        with pytest.raises(ValueError, match=f"one callable, or one for each of the 2 tasks, got {count}"):
            lowered(setting)

    def test_losses_that_are_none(self):
        setting = make_shared()
        with pytest.raises(TypeError, match=r"loss must be a callable .* got str"):
            searching(setting, loss=[nn.MSELoss(), "mse"])
        with pytest.raises(TypeError, match=r"loss must be a callable .* got str"):
            searching(setting, loss="mse")

    def test_targets_without_a_task(self):
        setting = make_shared()
        search = searching(setting)
        fault = r"targets must have shape \[B, 2, \.\.\.\], an entry for each of the 2 tasks, got shape "
        for targets in (setting.targets[:, :1], setting.targets[:, 0, 0]):
            with pytest.raises(ValueError, match=fault):
                search.step(setting.inputs, targets)
            with pytest.raises(ValueError, match=fault):
                lower(setting.model, setting.moe, setting.inputs, targets, setting.loss)
        assert search.state_dict()["step"] == 0

    def test_a_model_that_leaves_out_a_task(self):
        class One(SeveralHeads):
            def forward(self, inputs, ids=None):
                return super().forward(inputs, ids)[:, :1]

        setting = make_shared()
        setting.model = One(setting.moe, setting.model.heads)
        fault = r"the outputs of model must have shape \[B, 2, \.\.\.\], .* got shape \(40, 1, 3\)"
        with pytest.raises(ValueError, match=fault):
            lowered(setting)

    @pytest.mark.parametrize("gates", [("top-1", "top-1"), ("top-2", "top-2")])
    @pytest.mark.parametrize("samples", [1, 40])
    def test_heads_that_see_the_mixture_of_another_task(self, gates, samples):
        class Mixing(SeveralHeads):
            def forward(self, inputs, ids=None):
                outputs = super().forward(inputs, ids)
                return outputs + torch.stack([torch.zeros_like(outputs[:, 0]), 0.01 * outputs[:, 0]], 1)

        setting = make_shared(gates, samples=samples)
        setting.model = Mixing(setting.moe, setting.model.heads)
        before = setting.expert_map.experts.clone()
        with pytest.raises(ValueError, match="the outputs of a task must depend on no mixture but its own"):
            lowered(setting)
        assert torch.equal(setting.expert_map.experts, before)

    def test_a_task_cut_off_from_its_mixture(self):
        class Detached(SeveralHeads):
            def forward(self, inputs, ids=None):
                mixtures = self.moe(inputs, ids)
                return torch.stack([self.heads[0](mixtures[:, 0]), self.heads[1](mixtures[:, 1].detach())], 1)

        setting = make_shared(("top-3", "top-3"))
        setting.model = Detached(setting.moe, setting.model.heads)
        with pytest.raises(ValueError, match="the outputs of task 1 must depend on its mixture by differentiable"):
            lowered(setting)
        exact = make_shared(("top-1", "top-1"))  # no derivative is needed
        exact.model = Detached(exact.moe, exact.model.heads)
        assert type(lowered(exact).problem) is LinearAssignment

    def test_losses_of_several_kinds_in_a_mixture(self):
        def bce(outputs, targets):
            return functional.binary_cross_entropy_with_logits(outputs, targets.sigmoid())

        setting = make_shared(("top-3", "top-3"), loss=[nn.MSELoss(), functional.binary_cross_entropy_with_logits])
        setting.targets = setting.targets.sigmoid()
        with pytest.raises(ValueError, match=r"must be of one kind .* got \['bce', 'squared'\]"):
            lowered(setting)
        setting = make_shared(("top-2", "top-2"), loss=[nn.MSELoss(), bce])
        assert type(lowered(setting).problem) is PairwiseAssignment
        assert lowered(setting).problem.value([0, 1, 2, 3]) == pytest.approx(setting.true_loss(), rel=1e-9)


def test_outputs_have_the_width_of_a_task():
    setting = make_shared()
    assert lowered(setting).problem.outputs.shape == (80, 4, OUTPUTS)
