import copy
import threading

import pytest
import torch
from specialists import make, step

from moe_search.solvers.engine.stop import MaxIterations
from moe_search.solvers.heuristic.local_search import LocalSearch
from moe_search.training.search.permutation_search import PermutationSearch


class Gated:
    """Local search that starts when it is let, and tells on which threads it ran."""

    def __init__(self):
        self.threads = []
        self.begun, self.free = threading.Semaphore(0), threading.Event()

    def solve(self, problem, stop, seed=0, initial=None):
        self.threads.append(threading.current_thread())
        self.begun.release()
        assert self.free.wait(120)
        return LocalSearch().solve(problem, stop, seed, initial)

    def joined(self):
        """Let the search go and wait until its thread has ended."""
        assert self.begun.acquire(timeout=120)
        self.free.set()
        self.threads[-1].join(120)


def searching(setting, **options):
    options = {"loss": setting.loss, "stop": MaxIterations(5_000), "asynchronous": True, "period": 3, **options}
    return PermutationSearch(setting.model, setting.moe, **options)


@pytest.mark.parametrize("gate", ["hash", "top-2"])
def test_the_map_is_found_on_a_thread_and_committed_at_a_later_step(gate):
    setting, solver = make(gate), Gated()
    setting.scramble()
    scrambled = setting.expert_map.experts.clone()
    search = searching(setting, solver=solver, until=3)
    assert [step(search, setting) for _ in range(5)] == [None] * 5
    assert torch.equal(setting.expert_map.experts, scrambled)
    assert search.history == []
    solver.joined()
    assert solver.threads != [threading.current_thread()]
    record = step(search, setting)
    assert record.outcome == "committed"
    assert record.step == 3
    assert search.history == [record]
    assert search.seconds == record.seconds > 0
    assert not torch.equal(setting.expert_map.experts, scrambled)
    assert setting.true_loss() == pytest.approx(record.value_found, rel=1e-9)
    assert step(search, setting) is None


def test_a_map_that_the_present_batch_contradicts_is_refused():
    setting, solver = make("top-2"), Gated()
    setting.scramble()
    scrambled = setting.expert_map.experts.clone()
    search = searching(setting, solver=solver)
    for _ in range(3):
        step(search, setting)
    solver.joined()
    with torch.no_grad():  # a batch that the scrambled map fits
        contrary = setting.model.eval()(setting.inputs)
    record = search.step(setting.inputs, contrary)
    assert record.outcome == "refused"
    assert record.value_found < record.value_before
    assert torch.equal(setting.expert_map.experts, scrambled)


def test_one_search_is_under_way_at_a_time():
    setting = make("top-2")
    setting.scramble()
    solver = Gated()
    search = searching(setting, solver=solver)
    for _ in range(5):
        step(search, setting)
    threading.Timer(0.1, solver.free.set).start()
    record = step(search, setting)  # waits for the first search and begins the second
    assert record.step == 3
    assert all(solver.begun.acquire(timeout=120) for _ in range(2))
    assert len(solver.threads) == 2
    assert search.finish().step == 6
    assert [record.step for record in search.history] == [3, 6]


def test_finish_decides_by_the_batch_of_the_last_step():
    setting, solver = make("top-2", samples=60), Gated()
    setting.scramble()
    search = searching(setting, solver=solver)
    for start in (0, 10, 20, 30, 40):
        step(search, setting, start, start + 10)
    before = setting.true_loss(40, 50)
    solver.free.set()
    record = search.finish()
    assert record.outcome == "committed"
    assert record.verified_gain == pytest.approx(before - setting.true_loss(40, 50), rel=1e-9)
    assert search.finish() is None


def test_a_copy_has_what_the_search_under_way_finds():
    setting = make("top-2")
    setting.scramble()
    search = searching(setting, solver=LocalSearch())
    for _ in range(3):
        step(search, setting)
    other = copy.deepcopy(search)
    found = search.finish()
    assert (found.step, found.outcome) == (3, "committed")
    assert other.finish().verified_gain == found.verified_gain


def test_on_search_is_told_when_the_map_is_decided():
    setting, solver, seen = make("top-2"), Gated(), []
    search = searching(setting, solver=solver, on_search=lambda *found: seen.append(found))
    for _ in range(4):
        step(search, setting)
    assert seen == []
    solver.free.set()
    record = search.finish()
    [(told, lowering, result)] = seen
    assert told is record
    assert lowering.problem.value(result.permutation) == record.value_found


def test_what_the_solver_raises_comes_at_the_next_step():
    class Broken(LocalSearch):
        def solve(self, problem, stop, seed=0, initial=None):
            raise KeyError("no such move")

    setting = make("top-2")
    before = setting.expert_map.experts.clone()
    search = searching(setting, solver=Broken())
    for _ in range(3):
        step(search, setting)
    state = search.state_dict()
    with pytest.raises(KeyError, match="no such move"):
        step(search, setting)
    assert torch.equal(setting.expert_map.experts, before)
    assert step(search, setting) is None
    assert search.history == []

    resumed = searching(setting)
    resumed.load_state_dict(state)
    record = step(resumed, setting)
    assert (record.step, record.outcome, record.num_samples) == (3, "failed", len(setting.inputs))
    assert resumed.history == [record]
    assert torch.equal(setting.expert_map.experts, before)


def test_a_loss_that_is_not_finite_begins_no_search():
    setting = make("top-2")
    search = searching(setting, period=2)
    targets = torch.full_like(setting.targets, torch.nan)
    search.step(setting.inputs, targets)
    with pytest.warns(RuntimeWarning, match="the search at step 2 was given up"):
        record = search.step(setting.inputs, targets)
    assert record.outcome == "not finite"
    assert search.finish() is None


def test_a_batch_of_one_leaves_the_decision_to_the_one_before():
    setting, solver = make("top-2"), Gated()
    setting.scramble()
    search = searching(setting, solver=solver)
    for _ in range(3):
        step(search, setting)
    solver.joined()
    record = step(search, setting, 0, 1)
    assert record.outcome == "committed"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_same_maps_are_found_on_a_thread(asynchronous):
    def run(asynchronous):
        setting = make("comet", n=6, m=6, noise=1.0)
        setting.scramble()
        search = searching(setting, asynchronous=asynchronous, stop=MaxIterations(25), seed=5)
        for start in range(0, 90, 10):
            step(search, setting, start, start + 10)
            search.finish()
        return setting.expert_map.experts.tolist(), [record.value_found for record in search.history]

    assert run(asynchronous) == run(False)
