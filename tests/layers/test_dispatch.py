import torch
from hypothesis import given, settings, strategies as st

from moe_search.layers.dispatch import Dispatch

weights = st.integers(1, 6).flatmap(
    lambda n: st.lists(st.lists(st.sampled_from([0.0, 0.0, 0.25, 1.0]), min_size=n, max_size=n), min_size=1, max_size=7)
)


@settings(deadline=None, max_examples=60)
@given(weights)
def test_pairs_are_those_of_a_double_loop(rows):
    dispatch = Dispatch.of(torch.tensor(rows))
    pairs = [(b, row[e]) for e in range(len(rows[0])) for b, row in enumerate(rows) if row[e] != 0]
    assert list(zip(dispatch.samples.tolist(), dispatch.weights.tolist(), strict=True)) == pairs
    assert dispatch.counts == tuple(sum(row[e] != 0 for row in rows) for e in range(len(rows[0])))
    assert dispatch.num_samples == len(rows)


def test_gather_and_scatter_by_hand():
    dispatch = Dispatch.of(torch.tensor([[0.5, 0.5], [0.0, 1.0], [0.0, 0.0]]))
    inputs = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert dispatch.gather(inputs).tolist() == [[1.0, 2.0], [1.0, 2.0], [3.0, 4.0]]
    outputs = torch.tensor([[10.0], [20.0], [30.0]])
    assert dispatch.scatter(outputs).tolist() == [[15.0], [30.0], [0.0]]
    assert dispatch.scatter(outputs.squeeze(1)).tolist() == [15.0, 30.0, 0.0]


def test_scatter_keeps_the_precision_of_the_experts():
    dispatch = Dispatch.of(torch.tensor([[0.5, 0.5]]))
    assert dispatch.scatter(torch.ones(2, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_weight_that_is_nan_shows_in_the_output():
    dispatch = Dispatch.of(torch.tensor([[torch.nan, 0.0], [1.0, 0.0]]))
    assert dispatch.scatter(torch.ones(2, 1)).isnan().tolist() == [[True], [False]]
