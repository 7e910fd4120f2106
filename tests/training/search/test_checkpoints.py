"""Save at any step, load, go on: bit for bit the run that never stopped."""

import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st
from specialists import make

from moe_search.solvers.engine.stop import MaxIterations
from moe_search.training.saved_state import load_state, save_state
from moe_search.training.search.permutation_search import PermutationSearch

STEPS, UNTIL, SAMPLES = 10, 9, 20


class Run:
    """A training run that can be saved and taken up: ten steps on batches of its own, with dropout."""

    def __init__(self, gate, period, batches, asynchronous=False, seed=7):
        self.setting = make(gate, "deep", 6, 6, samples=SAMPLES * STEPS, noise=0.05)
        self.setting.scramble()
        self.optimizer = torch.optim.Adam(self.setting.model.parameters(), lr=0.02)
        # Too few iterations to end the search: what it finds depends on its seed.
        self.search = PermutationSearch(
            self.setting.model,
            self.setting.moe,
            loss=self.setting.loss,
            period=period,
            batches=batches,
            until=UNTIL,
            stop=MaxIterations(25),
            seed=seed,
            asynchronous=asynchronous,
        )

    def train(self, start, stop):
        for i in range(start, stop):
            inputs, targets, ids = self.setting.batch(SAMPLES * i, SAMPLES * (i + 1))
            self.optimizer.zero_grad()
            self.setting.loss(self.setting.model(inputs, ids=ids), targets).backward()
            self.optimizer.step()
            self.search.step(inputs, targets, ids=ids)
            # Waits for the thread, so that the next step decides on its map.
            self.search.state_dict()

    @property
    def parts(self):
        return {"model": self.setting.model, "optimizer": self.optimizer, "search": self.search}

    def state(self):
        return {name: part.state_dict() for name, part in self.parts.items()} | {"random": torch.get_rng_state()}

    def load(self, state):
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["random"])


def through_torch(state, path):
    torch.save(state, path)
    return torch.load(path, weights_only=True)


def through_safetensors(state, path):
    save_state(state, path)
    return load_state(path)


def told(search):
    return [replace(record, seconds=0.0, seconds_solving=0.0, compile_seconds=0.0) for record in search.history]


@settings(max_examples=12, deadline=None)
@given(
    through=st.sampled_from([through_torch, through_safetensors]),
    gate=st.sampled_from(["hash", "top-2"]),
    period=st.integers(1, 4),
    batches=st.integers(1, 3),
    asynchronous=st.booleans(),
    at=st.integers(0, STEPS),
)
def test_a_run_that_was_saved_goes_on_as_if_never_stopped(
    tmp_path_factory, through, gate, period, batches, asynchronous, at
):
    options = gate, period, batches, asynchronous
    whole = Run(*options)
    torch.manual_seed(3)
    whole.train(0, STEPS)
    first, second = Run(*options), Run(*options, seed=1234)
    torch.manual_seed(3)
    first.train(0, at)
    state = through(first.state(), tmp_path_factory.mktemp("saved") / "state")
    torch.manual_seed(99)
    second.load(state)
    assert second.search.seconds == first.search.seconds
    second.train(at, STEPS)
    for run in (whole, second):
        run.search.finish()
    assert told(second.search) == told(whole.search)
    assert len(told(whole.search)) == UNTIL // period
    for name, tensor in whole.setting.model.state_dict().items():
        assert torch.equal(second.setting.model.state_dict()[name], tensor), name


def test_maps_are_committed_in_these_runs():
    run = Run("top-2", 3, 1)
    torch.manual_seed(3)
    run.train(0, STEPS)
    assert "committed" in [record.outcome for record in run.search.history]


def test_a_map_found_before_the_save_is_decided_after_it():
    run, other = Run("top-2", 3, 1, asynchronous=True), Run("top-2", 3, 1, asynchronous=True)
    torch.manual_seed(3)
    run.train(0, 3)
    assert run.search.history == []
    other.load(run.state())
    assert other.search.finish() == replace(run.search.finish(), seconds=other.search.seconds)
    assert torch.equal(other.setting.expert_map.experts, run.setting.expert_map.experts)


@pytest.mark.parametrize(("gate", "n", "m"), [("top-2", 6, 6), ("comet", 4, 4), ("top-2", 4, 8)])
def test_a_state_of_a_map_of_other_sizes(gate, n, m):
    def search(*sizes):
        setting = make(*sizes)
        return setting, PermutationSearch(setting.model, setting.moe, loss=setting.loss)

    _, saved = search(gate, "linear", n, m)
    setting, other = search("top-2", "linear", 4, 4)
    before = setting.expert_map.experts.clone()
    rows = 2 if gate == "comet" else 1
    with pytest.raises(
        ValueError,
        match="state must be that of a search of 4 experts, 1 rows, 4 slots of a row, "
        f"got {n} experts, {rows} rows, {m} slots of a row",
    ):
        other.load_state_dict(saved.state_dict())
    assert torch.equal(setting.expert_map.experts, before)


def test_all_that_a_state_may_hold_comes_back(tmp_path):
    shared = torch.arange(6.0).reshape(2, 3)
    state = {
        "views": [shared, shared[:, 1:], shared.T, shared[0, 0]],
        3: (1, 2.5, None, True, "text", float("inf")),
        "dtypes": {"half": torch.ones(2, dtype=torch.bfloat16), "int": torch.tensor([1]), "none": torch.empty(0, 4)},
        "empty": [{}, [], ()],
    }
    found = through_safetensors(state, tmp_path / "state")
    assert list(found) == list(state)
    assert found[3] == state[3]
    assert found["empty"] == state["empty"]
    for got, want in zip(found["views"], state["views"], strict=True):
        assert torch.equal(got, want)
    for name, want in state["dtypes"].items():
        assert found["dtypes"][name].dtype == want.dtype
        assert torch.equal(found["dtypes"][name], want)


def test_what_a_state_may_not_hold(tmp_path):
    with pytest.raises(TypeError, match=r"state must hold tensors, .* got <class 'object'> in state\.a\.1"):
        save_state({"a": [1, object()]}, tmp_path / "state")
    with pytest.raises(TypeError, match=r"keys must be strings or integers, got tuple in state\.b"):
        save_state({"b": {(1, 2): 3}}, tmp_path / "state")
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another(tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="path must be a file that save_state wrote, got"):
        load_state(tmp_path / "weights.safetensors")


def test_without_safetensors(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        save_state({}, tmp_path / "state")
