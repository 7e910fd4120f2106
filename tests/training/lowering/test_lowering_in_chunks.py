import numpy as np
import pytest
from largest_tensor import Largest
from specialists import FEATURES, lowered, make
from torch import nn

from moe_search.problems.mixture import MixtureAssignment

N, CHUNK = 16, 30


@pytest.mark.parametrize("chunk_size", [1, 7, 20, 41, 1000])
@pytest.mark.parametrize(
    ("gate", "loss"), [("hash", "squared"), ("top-2", "squared"), ("top-2", "absolute"), ("comet", "squared")]
)
def test_the_size_of_the_chunks_does_not_change_the_problem(gate, loss, chunk_size):
    setting = make(gate, "deep", 3, 6, samples=41)
    if loss == "absolute":
        setting.loss = nn.L1Loss()
    setting.scramble()
    whole, chunked = lowered(setting, chunk_size=41), lowered(setting, chunk_size=chunk_size)
    assert type(chunked.problem) is type(whole.problem)
    assert chunked.linearized is whole.linearized
    assert chunked.num_samples == 41
    assert chunked.batch_loss == pytest.approx(whole.batch_loss, rel=1e-12)
    names = ("slot_weights", "outputs", "targets") if isinstance(whole.problem, MixtureAssignment) else ("cost",)
    for name in names:
        expected = getattr(whole.problem, name)
        np.testing.assert_allclose(getattr(chunked.problem, name), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("gate", "loss"), [("hash", "squared"), ("softmax", "squared"), ("top-2", "absolute")])
def test_the_largest_tensor_is_bounded_by_the_chunk(gate, loss):
    largest = {}
    for samples in (60, 240):
        setting = make(gate, "deep", N, N, samples=samples)
        if loss == "absolute":
            setting.loss = nn.L1Loss()
        with Largest() as seen:
            lowered(setting, chunk_size=CHUNK)
        largest[samples] = seen.elements
    # Four times the samples take no larger tensor: those with an entry for every sample are smaller than n a chunk.
    assert largest[60] == largest[240] >= CHUNK * N * FEATURES
    with Largest() as seen:
        lowered(setting, chunk_size=240)
    assert seen.elements >= 4 * largest[240]


@pytest.mark.parametrize("gate", ["hash", "top-2"])
def test_no_expert_sees_more_samples_than_a_chunk(gate):
    setting = make(gate, "deep", samples=100)
    seen = []
    for expert in setting.moe.experts:
        expert.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    lowered(setting, chunk_size=CHUNK)
    assert max(seen) == CHUNK
    heads = []
    setting.model.head.register_forward_pre_hook(lambda _, args: heads.append(len(args[0])))
    lowered(setting, chunk_size=CHUNK)
    assert max(heads) == CHUNK


def test_only_the_last_samples_are_looked_at():
    setting = make("top-2", samples=50)
    few = lowered(setting, max_samples=20)
    assert few.num_samples == 20
    assert few.batch_loss == pytest.approx(setting.true_loss(30, 50), rel=1e-9)
    assert lowered(setting, max_samples=51).num_samples == 50


def test_sizes_that_are_none():
    setting = make("top-2")
    for name in ("max_samples", "chunk_size"):
        with pytest.raises(ValueError, match=f"{name} must be an integer >= 1, got 0"):
            lowered(setting, **{name: 0})
        with pytest.raises(TypeError, match=f"{name} must be an integer, got 1.5"):
            lowered(setting, **{name: 1.5})
