import copy
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from shared_map import make_shared
from specialists import make, searching, step
from torch import nn

from moe_search.solvers.engine.stop import MaxIterations
from moe_search.solvers.exact.hungarian import Hungarian
from moe_search.solvers.heuristic.local_search import LocalSearch
from moe_search.training.lowering.lowering import lower
from moe_search.training.search.candidate_map import SearchRecord
from moe_search.training.search.permutation_search import PermutationSearch


def map_of(setting):
    return setting.expert_map.experts.clone()


class Watching(LocalSearch):
    """Local search that remembers what it was asked."""

    def solve(self, problem, stop, seed=0, initial=None):
        self.__dict__.setdefault("asked", []).append((problem, stop, seed, initial))
        return super().solve(problem, stop, seed, initial)


def test_a_search_runs_every_period_up_to_the_last_step():
    setting = make("top-2")
    search = searching(setting, period=3, until=7)
    records = [step(search, setting) for _ in range(12)]
    assert [record is not None for record in records] == [i in (3, 6) for i in range(1, 13)]
    assert [record.step for record in search.history] == [3, 6]
    assert search.history == [record for record in records if record]
    assert search.seconds == pytest.approx(sum(record.seconds for record in search.history))
    assert all(0 < record.seconds_solving < record.seconds for record in search.history)


@pytest.mark.parametrize(
    ("period", "until", "batches", "kept"),
    [
        (5, 10, 2, [0, 0, 1, 2, 0, 0, 0, 1, 2, 0, 0]),
        (5, 9, 2, [0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0]),
        (1, 4, 1, [1, 1, 1, 0, 0]),
        (2, 6, 3, [1, 2, 3, 3, 3, 0, 0]),
    ],
)
def test_batches_are_kept_only_before_a_search(period, until, batches, kept):
    setting = make("top-2", samples=40)
    search = searching(setting, period=period, until=until, batches=batches)
    counts = []
    for _ in kept:
        step(search, setting)
        counts.append(len(search.state_dict()["retained"]))
    assert counts == kept


@pytest.mark.parametrize("gate", ["hash", "top-2"])
def test_the_search_is_on_the_batches_before_and_the_verification_on_the_present_one(gate):
    setting = make(gate, samples=60)
    setting.scramble()
    seen = []
    search = searching(setting, period=4, batches=2, on_search=lambda *found: seen.append(found))
    parts = [(0, 10), (10, 22), (22, 40), (40, 60)]
    searched, verified = setting.true_loss(10, 40), setting.true_loss(40, 60)
    records = [step(search, setting, *part) for part in parts]
    [(record, lowering, _)] = seen
    assert records == [None, None, None, record]
    assert record.num_samples == lowering.num_samples == 30
    assert record.value_before == pytest.approx(searched, rel=1e-9)
    assert record.value_found == pytest.approx(setting.true_loss(10, 40), rel=1e-9)
    assert record.gain == pytest.approx(record.value_before - record.value_found)
    assert record.verified_gain == pytest.approx(verified - setting.true_loss(40, 60), rel=1e-9)
    assert record.outcome == "committed"


def test_without_an_earlier_batch_the_halves_search_and_verify():
    setting = make("top-2", samples=41)
    setting.scramble()
    searched, verified = setting.true_loss(0, 20), setting.true_loss(20, 41)
    record = step(searching(setting, period=1), setting)
    assert record.num_samples == 20
    assert record.value_before == pytest.approx(searched, rel=1e-9)
    assert record.verified_gain == pytest.approx(verified - setting.true_loss(20, 41), rel=1e-9)


def test_a_contradicted_map_is_refused():
    setting = make("top-2", samples=80)
    best = map_of(setting)
    setting.scramble()
    scrambled = map_of(setting)
    assert not torch.equal(best, scrambled)
    search = searching(setting, period=2)
    step(search, setting)
    with torch.no_grad():  # a batch that the scrambled map fits
        contrary = setting.model.eval()(setting.inputs)
    record = search.step(setting.inputs, contrary)
    assert record.outcome == "refused"
    assert record.value_found < record.value_before
    assert record.verified_gain < 0
    assert torch.equal(map_of(setting), scrambled)


def test_a_gain_within_its_standard_error_is_refused():
    setting = make("top-2", samples=80)
    setting.scramble()
    scrambled = map_of(setting)
    search = searching(setting, period=2)
    step(search, setting)
    with torch.no_grad():
        contrary = setting.model.eval()(setting.inputs)
    # Half of the samples speak for the found map and half, a little weaker, against it.
    mixed = torch.where(torch.arange(80).unsqueeze(1) % 2 == 0, setting.targets, contrary)
    for weight in np.linspace(1.0, 1.5, 26):
        inputs = setting.inputs.clone()
        trial = copy.deepcopy(search.state_dict())
        record = search.step(inputs, torch.where(mixed == contrary, mixed, mixed * weight))
        if record.outcome == "refused" and record.verified_gain > 0:
            break
        setting.expert_map.assign(scrambled)
        search.load_state_dict(trial)
    assert 0 < record.verified_gain <= record.standard_error
    assert record.outcome == "refused"
    assert torch.equal(map_of(setting), scrambled)


@pytest.mark.parametrize("gate", ["hash", "top-2"])
def test_the_best_map_is_no_improvement(gate):
    setting = make(gate)
    before = map_of(setting)
    search = searching(setting, period=2)
    step(search, setting)
    record = step(search, setting)
    assert record.outcome == "no improvement"
    assert record.gain == pytest.approx(0.0, abs=1e-12)
    assert record.verified_gain is None
    assert record.standard_error is None
    assert torch.equal(map_of(setting), before)


def test_the_default_solver_suits_the_problem():
    for gate, solver in (("hash", Hungarian()), ("top-2", LocalSearch(neighborhood="swap", restarts=True))):
        setting = make(gate)
        record = step(searching(setting, period=1), setting)
        assert record.solver == repr(solver)
        assert (record.bound is not None) == (gate == "hash")


def test_solver_stop_and_present_map_are_passed_on():
    setting = make("comet")
    setting.scramble()
    initial, solver, stop = setting.expert_map.permutation(), Watching(), MaxIterations(300)
    step(searching(setting, period=1, solver=solver, stop=stop), setting)
    [(_, asked_stop, _, asked_initial)] = solver.asked
    assert asked_stop is stop
    np.testing.assert_array_equal(asked_initial, initial)


def test_every_search_has_its_own_seed():
    def seeds(seed):
        setting, solver = make("top-2"), Watching()
        search = searching(setting, period=1, solver=solver, seed=seed)
        for _ in range(4):
            step(search, setting)
        return [asked[2] for asked in solver.asked]

    assert len(set(seeds(0))) == 4
    assert seeds(0) == seeds(0)
    assert not set(seeds(0)) & set(seeds(1))


@pytest.mark.parametrize("gate", ["hash", "top-1", "top-2", "comet"])
def test_a_search_changes_the_map_and_nothing_else(gate):
    setting = make(gate, "deep")
    setting.scramble()
    model = setting.model.train()
    model.head[1].eval()
    inputs, targets, ids = setting.batch()
    torch.manual_seed(4)
    setting.loss(model(inputs, ids=ids), targets).backward()
    map_name = next(name for name, buffer in model.named_buffers() if buffer is setting.expert_map.experts)
    state = copy.deepcopy(model.state_dict())
    gradients = [copy.deepcopy(p.grad) for p in model.parameters()]
    flags = [module.training for module in model.modules()]
    random, routing = torch.get_rng_state(), setting.moe.routing
    search = searching(setting, period=2)
    step(search, setting)
    assert step(search, setting).outcome == "committed"

    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, state[name])}
    assert changed == {map_name}
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        assert (p.grad is None and gradient is None) or torch.equal(p.grad, gradient)
    assert [module.training for module in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), random)
    assert setting.moe.routing is routing
    assert setting.expert_map.experts is dict(model.named_buffers())[map_name]


@pytest.mark.parametrize("gate", ["hash", "top-2"])
def test_a_loss_that_is_not_finite_leaves_the_map_and_warns_once(gate):
    setting = make(gate)
    setting.scramble()
    before = map_of(setting)
    search = searching(setting, period=2)
    with torch.no_grad():
        setting.moe.experts[0].weight.fill_(torch.nan)
    step(search, setting)
    with pytest.warns(
        RuntimeWarning, match="the search at step 2 was given up and the expert map left as it is"
    ) as seen:
        record = step(search, setting)
    assert len(seen) == 1
    assert record.outcome == "not finite"
    assert record.problem is None
    assert search.history == [record]
    assert torch.equal(map_of(setting), before)


def test_a_verification_that_is_not_finite_leaves_the_map_and_warns_once():
    setting = make("top-2")
    setting.scramble()
    before = map_of(setting)
    search = searching(setting, period=2)
    step(search, setting)
    setting.targets = setting.targets.clone()
    setting.targets[3] = torch.nan
    with pytest.warns(RuntimeWarning, match="given up") as seen:
        record = step(search, setting)
    assert len(seen) == 1
    assert record.outcome == "not finite"
    assert record.value_found < record.value_before
    assert record.verified_gain is None
    assert torch.equal(map_of(setting), before)


def test_a_loss_that_stays_not_finite_warns_once_a_run():
    def run():
        setting = make("top-2")
        setting.scramble()
        return setting, map_of(setting), searching(setting, period=1)

    setting, before, search = run()
    setting.targets = setting.targets * torch.nan
    with pytest.warns(RuntimeWarning, match="the search at step 1 was given up"):
        step(search, setting)
    for _ in range(3):  # warnings are errors here
        step(search, setting)
    assert [record.outcome for record in search.history] == ["not finite"] * 4
    assert torch.equal(map_of(setting), before)
    other, _, resumed = run()
    other.targets = setting.targets
    resumed.load_state_dict(search.state_dict())
    step(resumed, other)  # the same run, taken up again: no warning
    assert resumed.history[-1].outcome == "not finite"


@pytest.mark.parametrize("gate", ["hash", "top-1", "top-2", "comet"])
@pytest.mark.parametrize("frozen_part", ["gate", "model"])
def test_a_frozen_gate_is_searched_all_the_same(gate, frozen_part):
    setting = make(gate, "deep")
    setting.scramble()
    scrambled = setting.true_loss()
    part = setting.moe.gate if frozen_part == "gate" else setting.model
    part.requires_grad_(False).eval()
    search = searching(setting, period=2)
    step(search, setting)
    assert step(search, setting).outcome == "committed"
    assert setting.true_loss() < 0.9 * scrambled
    assert not any(parameter.requires_grad for parameter in part.parameters())


def test_a_loss_that_changes_is_recognized_again():
    setting = make("top-2", samples=40)
    setting.scramble()
    factor = 1.0
    search = searching(setting, loss=lambda outputs, targets: factor * setting.loss(outputs, targets), period=2)
    found = []
    for factor in (1.0, 1.0, 3.0, 3.0):
        before = factor * setting.true_loss()
        record = step(search, setting)
        found += [] if record is None else [(record.value_before, before)]
    assert [value for value, _ in found] == pytest.approx([before for _, before in found], rel=1e-9)
    assert len(found) == 2


def test_a_layer_that_is_missing():
    setting = make("top-2")
    with pytest.raises(TypeError, match=r"moe must be a MixtureOfExperts or .*, got NoneType"):
        PermutationSearch(setting.model, None, loss=setting.loss)
    with pytest.raises(TypeError, match=r"moe must be a MixtureOfExperts or .*, got TopK"):
        PermutationSearch(setting.model, setting.moe.gate, loss=setting.loss)
    with pytest.raises(ValueError, match="moe must be a submodule of model, got one that Linear does not contain"):
        PermutationSearch(nn.Linear(2, 2), setting.moe, loss=setting.loss)


@pytest.mark.parametrize("gate", [None, nn.Linear(6, 4)], ids=["none", "a layer"])
def test_a_gate_that_is_missing(gate):
    setting, several = make("top-2"), make_shared()
    setting.moe.gate = several.moe.tasks[1].gate = gate
    for broken in (setting, several):
        with pytest.raises(TypeError, match=f"the gate of moe must be a Gate, got {type(gate).__name__}"):
            PermutationSearch(broken.model, broken.moe, loss=broken.loss)
        with pytest.raises(TypeError, match=f"the gate of moe must be a Gate, got {type(gate).__name__}"):
            lower(broken.model, broken.moe, broken.inputs, broken.targets, broken.loss)
    del setting.moe.gate
    with pytest.raises(TypeError, match="the gate of moe must be a Gate, got NoneType"):
        PermutationSearch(setting.model, setting.moe, loss=setting.loss)


def test_the_map_of_a_model_restored_with_other_sizes():
    setting, other = make("top-2", n=4, m=4), make("top-2", n=4, m=8)
    with pytest.raises(RuntimeError, match=r"experts must have shape \(1, 4\) for 4 experts and 1 row of 4 slots"):
        setting.model.load_state_dict(other.model.state_dict())


def test_the_wrapper_of_a_distributed_model_is_taken_off(tmp_path):
    setting = make("top-2")
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(setting.model)
        search = PermutationSearch(wrapped, setting.moe, loss=setting.loss, period=1, stop=MaxIterations(100))
        assert step(search, setting).problem == "MixtureAssignment"
    finally:
        torch.distributed.destroy_process_group()


def test_samples_and_chunks_are_bounded():
    setting = make("top-2", samples=60)
    rows = []
    setting.model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    search = searching(setting, period=3, batches=2, max_samples=25, chunk_size=10)
    setting.scramble()
    for start in (0, 20, 40):
        record = step(search, setting, start, start + 20)
    assert record.num_samples == 25
    assert record.verified_gain is not None
    assert max(rows) == 10


def test_what_a_problem_may_be():
    setting = make("top-2")
    record = step(searching(setting, period=1, problem="pairwise"), setting)
    assert record.problem == "PairwiseAssignment"
    with pytest.raises(ValueError, match="problem must be one of auto, linear, pairwise, mixture, got 'quadratic'"):
        searching(setting, problem="quadratic")


def test_the_default_solver_gets_a_share_of_the_time_since_the_last_search(monkeypatch):
    seconds = [0.0]
    clock = SimpleNamespace(perf_counter=lambda: seconds[0])
    monkeypatch.setattr("moe_search.training.search.permutation_search.time", clock)
    setting, solver = make("top-2"), Watching()
    search = searching(setting, period=1, solver=solver, stop=None)
    for passed in (0.0, 0.25, 10.0):
        seconds[0] += passed
        step(search, setting)
    assert [stop.seconds for _, stop, _, _ in solver.asked] == [0.001, pytest.approx(0.0175), 0.05]


def test_a_batch_of_one_between_searches_is_no_error():
    setting = make("top-2")
    search = searching(setting, period=2)
    assert step(search, setting, 0, 1) is None
    assert step(search, setting).num_samples == 1


def test_a_batch_on_another_device_is_met_at_once():
    setting = make("top-2")
    search = searching(setting)
    with pytest.raises(ValueError, match=r"inputs must be on the device of the model \(cpu\), got meta"):
        search.step(setting.inputs.to("meta"), setting.targets)


def test_the_graph_of_a_batch_is_not_kept():
    setting = make("top-2", samples=20)
    search = searching(setting, period=3, batches=2, asynchronous=True)
    inputs = setting.inputs.clone().requires_grad_() * 2
    search.step(inputs, setting.targets)
    search.step(inputs, setting.targets)
    assert all(not batch["inputs"].requires_grad for batch in search.state_dict()["retained"])
    search.step(inputs, setting.targets)
    assert not search.state_dict()["underway"]["batch"]["inputs"].requires_grad
    assert inputs.requires_grad


def test_an_interrupt_of_the_solver_reaches_the_training():
    class Interrupted(LocalSearch):
        def solve(self, problem, stop, seed=0, initial=None):
            return replace(super().solve(problem, stop, seed, initial), status="interrupted")

    setting = make("top-2")
    setting.scramble()
    before = map_of(setting)
    with pytest.raises(KeyboardInterrupt):
        step(searching(setting, period=1, solver=Interrupted()), setting)
    assert torch.equal(map_of(setting), before)


def test_confidence_decides_how_many_standard_errors_it_takes():
    def outcome(**options):
        setting = make("top-2", samples=80)
        setting.scramble()
        search = searching(setting, period=2, **options)
        step(search, setting, 0, 40)
        return step(search, setting, 40)

    first = outcome()
    errors = first.verified_gain / first.standard_error
    assert errors > 1
    for confidence, expected in ((0, "committed"), (0.99 * errors, "committed"), (1.01 * errors, "refused")):
        record = outcome(confidence=confidence)
        assert record.outcome == expected
        assert record.verified_gain == pytest.approx(first.verified_gain, rel=1e-12)


@pytest.mark.parametrize("confidence", [1.0, 2.0])
def test_few_maps_are_committed_on_random_labels(confidence):
    """No map knows more than another of independent labels: a normal deviate exceeds 1 with p = .16, 2 with p = .02."""
    setting = make("hash", samples=40)
    generator = torch.Generator().manual_seed(0)
    search = searching(setting, period=2, until=400, confidence=confidence)
    for _ in range(400):
        search.step(setting.inputs, torch.randn(40, 4, generator=generator, dtype=torch.float64), ids=setting.ids)
    decided = [record for record in search.history if record.verified_gain is not None]
    assert len(decided) > 150
    share = sum(record.outcome == "committed" for record in decided) / len(decided)
    expected = {1.0: 0.159, 2.0: 0.023}[confidence]
    assert share <= expected + 4 * (expected * (1 - expected) / len(decided)) ** 0.5


def test_what_the_constructor_accepts():
    setting, other = make("top-2"), make("top-2")
    for wrong, error in ((-0.1, ValueError), (float("nan"), ValueError), (float("inf"), ValueError), ([], TypeError)):
        with pytest.raises(error, match="confidence must"):
            searching(setting, confidence=wrong)
    with pytest.raises(ValueError, match="moe must be a submodule of model"):
        PermutationSearch(setting.model, other.moe, loss=setting.loss)
    with pytest.raises(TypeError, match=r"moe must be a MixtureOfExperts or .*, got Linear"):
        PermutationSearch(setting.model, nn.Linear(1, 1), loss=setting.loss)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
        PermutationSearch(len, setting.moe, loss=setting.loss)
    for name in ("period", "until", "batches", "max_samples", "chunk_size"):
        for wrong in (0, -1):
            with pytest.raises(ValueError, match=f"{name} must be an integer >= 1, got {wrong}"):
                searching(setting, **{name: wrong})
        for wrong in (1.5, True, "3"):
            with pytest.raises(TypeError, match=f"{name} must be an integer, got {wrong!r}"):
                searching(setting, **{name: wrong})
    with pytest.raises(ValueError, match="until must be at least period, or no search begins, got until=1000"):
        searching(setting, period=1001)
    with pytest.raises(ValueError, match="seed must be an integer >= 0, got -1"):
        searching(setting, seed=-1)
    with pytest.raises(TypeError, match="loss must be a callable"):
        searching(setting, loss="mse")
    with pytest.raises(TypeError, match="solver must have a method solve, got str"):
        searching(setting, solver="local search")
    with pytest.raises(TypeError, match="stop must be a stopping criterion"):
        searching(setting, stop=0.05)
    with pytest.raises(TypeError, match="on_search must be a callable"):
        searching(setting, on_search=[])


def test_a_solver_without_a_result_is_told_so():
    class Forgetful:
        def solve(self, problem, stop, seed=0, initial=None):
            LocalSearch().solve(problem, stop, seed, initial)

    setting = make("hash")
    with pytest.raises(TypeError, match="Forgetful must return a Result, got NoneType"):
        step(searching(setting, period=1, solver=Forgetful()), setting)


def test_a_record_goes_through_a_dict():
    setting = make("hash")
    record = step(searching(setting, period=1), setting)
    assert SearchRecord.from_dict(record.to_dict()) == record
    with pytest.raises(ValueError, match="a search record must have the keys"):
        SearchRecord.from_dict({"step": 1})


def test_states_that_are_none():
    setting = make("top-2")
    search = searching(setting, period=2)
    step(search, setting)
    state = search.state_dict()
    with pytest.raises(TypeError, match="state must be a dict, as it was saved, got list"):
        search.load_state_dict([])
    with pytest.raises(ValueError, match=r"state must have the keys step, searches, seed, .* got none"):
        search.load_state_dict({})
    with pytest.raises(ValueError, match="step must be an integer >= 0, got -1"):
        search.load_state_dict(state | {"step": -1})
    with pytest.raises(ValueError, match="a search record must have the keys"):
        search.load_state_dict(state | {"history": [{}]})
    with pytest.raises(TypeError, match="targets must be a tensor"):
        search.load_state_dict(state | {"retained": [{"inputs": setting.inputs, "targets": None}]})
    assert search.state_dict()["step"] == 1
    with warnings.catch_warnings():
        search.load_state_dict(state)
    assert step(search, setting) is not None
