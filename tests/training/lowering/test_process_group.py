"""Two processes that train one model together against one process on the joined batch."""

import functools

import pytest
import torch
from rank_jobs import (
    ALL_BATCHES,
    JOBS,
    KINDS,
    RANKS,
    SAMPLES,
    balanced,
    child,
    make_kind,
    searched,
    searched_tokens,
    specialized,
    trained,
)
from token_models import taught
from torch import multiprocessing

from moe_search.training.search.permutation_search import PermutationSearch


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What every job returned on every rank; all of them in one pair of processes, which take seconds to start."""
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(child, (folder, JOBS), nprocs=RANKS)
    results = zip(*(torch.load(folder / f"{rank}.pt") for rank in range(RANKS)), strict=True)
    return dict(zip([(job.__name__, argument) for job, argument in JOBS], results, strict=True))


@functools.cache
def alone(kind):
    setting = make_kind(kind)
    return trained(setting, setting.model, (0, SAMPLES))


def assert_same(a, b):
    assert a["state"].keys() == b["state"].keys()
    for name, tensor in a["state"].items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, b["state"][name], rtol=1e-9, atol=1e-12)
        else:
            assert torch.equal(tensor, b["state"][name]), name
    for mine, other in zip(a["records"], b["records"], strict=True):
        assert mine[:4] == other[:4]
        for number, expected in zip(mine[4:], other[4:], strict=True):
            assert number == (expected if expected is None else pytest.approx(expected, rel=1e-7))


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_end_as_one_process_on_the_joined_batch(found, kind):
    first, second = found["joined_run", kind]
    assert [record[1] for record in first["records"]] == [KINDS[kind]] * 2
    assert "committed" in [record[2] for record in first["records"]]
    assert_same(first, alone(kind))
    assert_same(first, second)
    assert (first["told"], second["told"]) == (2, 0)
    assert first["linearized"] == alone(kind)["linearized"]


def test_ranks_search_tokens_as_one_process_on_all_sequences(found):
    first, second = found["tokens_run", None]
    _, searched, verified = taught()
    alone = searched_tokens(searched, verified)
    assert_same(first, second)
    assert_same(first, alone)
    assert [record[3] for record in first["records"]] == [60, 60]
    assert "committed" in [record[2] for record in first["records"]]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "shared map" not in kind])
def test_ranks_with_different_numbers_of_batches_search_as_one_process_on_all(found, kind):
    first, second = found["searched_on_batches", kind]
    batches = [*(ALL_BATCHES[i] for i in (0, 1, 2, 5)), (90, 150), (170, 224)]
    assert_same(first, second)
    assert_same(first, searched(make_kind(kind), batches, groups=kind == "hash, any loss"))
    assert first["records"][0][3] == 110
    assert first["records"][0][2] == "committed"


def test_a_search_on_a_thread_ends_with_one_map_on_all_ranks(found):
    first, second = found["asynchronous_run", "top-2"]
    assert "committed" in [record[2] for record in first["records"]]
    assert_same(first, second)


def test_a_limit_on_the_samples_of_all_ranks_is_kept_on_all(found):
    first, second = found["limited_run", "comet"]
    assert {record[2] for record in first["records"]} & {"committed", "enforced"}
    assert_same(first, second)


def test_biases_are_lowered_by_the_loads_of_all_ranks(found):
    biases, loads = balanced((0, SAMPLES))
    for rank in found["balanced_run", None]:
        assert torch.equal(rank[0], biases)
        torch.testing.assert_close(rank[1], loads)
    assert not torch.equal(biases, make_kind("top-2").moe.gate.linear.bias)


def test_two_ranks_specialize_as_one_process_on_the_joined_batch(found):
    setting = make_kind("top-2")
    state, gain, size = specialized(setting, setting.model, (0, SAMPLES))
    for other, *told in found["specialized_run", "top-2"]:
        torch.testing.assert_close(other, state)
        assert told == [pytest.approx(gain), size]


def test_a_loss_that_is_not_finite_on_one_rank_ends_the_search_on_all(found):
    assert found["one_rank_not_finite", None] == ("not finite", "not finite")


def test_what_is_raised_on_one_rank_is_raised_on_all(found):
    other, own = found["one_rank_unsearchable", None]
    assert own.startswith("ValueError: loss must be the mean over the samples")
    assert other == f"RuntimeError: the search failed on another rank: {own}"
    own, other = found["solver_fails", None]
    assert own == "KeyError: 'no such move'"
    assert other == f"RuntimeError: the search failed on another rank: {own}"


def test_a_batch_too_small_on_one_rank_is_skipped_by_all(found):
    for rank in found["one_rank_too_small", None]:
        # Put off to the next step; then one that is due.
        assert [outcome == "skipped" for outcome, _ in rank] == [True, False, False]
        assert "inputs must hold at least 2 samples to verify a search, got 1" in rank[0][1]


def test_a_solver_that_raises_may_be_only_warned_of_on_all_ranks(found):
    assert found["solver_fails_with_a_warning", None] == ([(2, "failed"), (4, "failed")],) * 2


def test_ranks_agree_on_a_saved_search_whose_solver_failed(found):
    for rank in found["failed_and_resumed", "before"]:
        assert rank[0] == (3, "failed")
        assert [step for step, _ in rank] == [3, 6]
    for rank in found["failed_and_resumed", "after"]:
        assert [step for step, _ in rank] == [6]


def test_ranks_that_fail_in_unlike_ways_raise_alike(found):
    assert found["unlike_failures", None] == (
        "RuntimeError: the search failed on another rank: TypeError: no loss",
        "TypeError: no loss",
    )


def test_a_model_may_move_to_another_device_after_the_search_is_made(found):
    assert found["model_moves", "hash, any loss"] == ("committed", "committed")


def test_a_group_may_be_given(found):
    for ranks_alone, error in found["explicit_group", None]:
        assert ranks_alone
        assert error == "process_group must contain this process, got a group without it"


def test_what_is_no_group():
    setting = make_kind("top-2")
    with pytest.raises(TypeError, match=r"process_group must be a torch\.distributed\.ProcessGroup, got str"):
        PermutationSearch(setting.model, setting.moe, loss=setting.loss, process_group="gloo")
