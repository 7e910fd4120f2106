"""The pairs of samples and experts, and the ways between them: equal in value and gradient, each with its demands."""

import copy

import naive_gates
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad

from moe_search.gates.gate import Gate, SlotWeights
from moe_search.gates.hash_routing import HashRouting
from moe_search.gates.softmax import Softmax
from moe_search.gates.top_k import TopK
from moe_search.layers.dispatch import DISPATCHES, Dispatch, fastest_dispatch
from moe_search.layers.mixture_of_experts import MixtureOfExperts
from moe_search.layers.stacked_experts import StackedExperts

rows_of_weights = st.integers(1, 6).flatmap(
    lambda n: st.lists(st.lists(st.sampled_from([0.0, 0.0, 0.25, 1.0]), min_size=n, max_size=n), min_size=1, max_size=7)
)


@settings(deadline=None, max_examples=60)
@given(rows_of_weights)
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


FEATURES, OUTPUTS = 8, 4
every_dispatch = pytest.mark.parametrize("dispatch", DISPATCHES)


class Given(Gate):
    """Weights that are given, one row a sample, as a parameter."""

    def __init__(self, weights):
        super().__init__(weights.shape[1])
        self.rows = nn.Parameter(weights)

    def forward(self, inputs, ids=None):
        return SlotWeights(self.rows.unsqueeze(1), None)


def experts_of(n, hidden, seed, dtype=torch.float64):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return StackedExperts(n, FEATURES, OUTPUTS, hidden, nn.Tanh).to(dtype)


def inputs_of(size, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, FEATURES, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()


def run(layer, inputs):
    """The mixture and the gradient of every leaf: inputs, weights, experts."""
    mixture = layer(inputs)
    leaves = (inputs, *layer.parameters())
    torch.sin(mixture).sum().backward()
    gradients = [leaf.grad.clone() if leaf.grad is not None else torch.zeros_like(leaf) for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    return mixture.detach(), gradients


def naive(experts, rows, inputs):
    """The mixture sample by sample, expert by expert."""

    def expert(e):
        def f(x):
            for i, (weight, bias) in enumerate(zip(experts.weights, experts.biases, strict=True)):
                x = x @ weight[e].T + bias[e]
                x = experts.activation(x) if i == 0 else x
            return x

        return f

    return torch.stack(naive_gates.mixture(inputs, rows.tolist(), [expert(e) for e in range(len(experts))]))


rows_of_weights = st.integers(1, 6).flatmap(
    lambda n: st.lists(
        st.lists(st.sampled_from([0.0, 0.0, 0.25, 1.0]), min_size=n, max_size=n).filter(any), min_size=1, max_size=7
    )
)


@settings(deadline=None, max_examples=60)
@given(rows_of_weights, st.sampled_from([None, 12]), st.integers(0, 10**6))
def test_outputs_and_gradients_are_equal(rows, hidden, seed):
    rows = torch.tensor(rows, dtype=torch.float64)
    experts, inputs = experts_of(rows.shape[1], hidden, seed), inputs_of(len(rows), seed)
    found = {path: run(MixtureOfExperts(experts, Given(rows), path), inputs) for path in ("auto", "dense", "sorted")}
    with torch.no_grad():
        expected = naive(experts, rows, inputs)
    for mixture, _ in found.values():
        assert torch.allclose(mixture, expected, rtol=0, atol=1e-12)
    # The gate gets a gradient for a weight of 0 only where the expert runs all the same.
    routed = (rows != 0).double()
    for path in ("auto", "dense"):
        for ours, theirs in zip(found[path][1], found["sorted"][1], strict=True):
            seen = routed if ours.shape == rows.shape and ours is found[path][1][-1] else 1.0
            assert torch.allclose(ours * seen, theirs * seen, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(rows_of_weights, st.sampled_from([None, 12]), st.integers(0, 10**6))
def test_grouped_equals_sorted_in_single_precision(rows, hidden, seed):
    # grouped_mm takes no double precision.
    rows = torch.tensor(rows)
    experts = experts_of(rows.shape[1], hidden, seed, torch.float32)
    inputs = inputs_of(len(rows), seed, torch.float32)
    mixture, gradients = run(MixtureOfExperts(experts, Given(rows), "grouped"), inputs)
    expected, others = run(MixtureOfExperts(experts, Given(rows), "sorted"), inputs)
    assert torch.allclose(mixture, expected, rtol=0, atol=2e-6)
    for ours, theirs in zip(gradients, others, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)


@every_dispatch
def test_a_weight_that_is_nan_shows_in_the_output_of_its_sample(dispatch):
    rows = torch.tensor([[torch.nan, 0.0, 0.0], [0.0, 1.0, 0.0]])
    layer = MixtureOfExperts(experts_of(3, 12, 0, torch.float32), Given(rows), dispatch)
    assert layer(inputs_of(2, 0, torch.float32)).isnan().all(1).tolist() == [True, False]


@every_dispatch
@pytest.mark.parametrize("size", [1, 64])
def test_one_sample_and_an_expert_without_any(dispatch, size):
    rows = torch.zeros(size, 4)
    rows[:, 2] = 1.0
    experts = experts_of(4, 12, 0, torch.float32)
    inputs = inputs_of(size, 0, torch.float32)
    mixture, gradients = run(MixtureOfExperts(experts, Given(rows), dispatch), inputs)
    assert torch.allclose(mixture, naive(experts, rows, inputs), atol=1e-6)
    for parameter, gradient in zip(experts.parameters(), gradients[1:], strict=False):
        assert parameter.shape == gradient.shape
        assert [bool((of != 0).any()) for of in gradient] == [False, False, True, False]


@pytest.mark.parametrize("dispatch", ["dense", "sorted"])
def test_gradcheck(dispatch):
    layer = MixtureOfExperts(experts_of(3, None, 0), TopK(FEATURES, 3, 2).double(), dispatch)
    names = [name for name, _ in layer.named_parameters()]

    def mixture(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    parameters = tuple(p.detach().clone().requires_grad_() for p in layer.parameters())
    assert torch.autograd.gradcheck(mixture, (inputs_of(2, 0), *parameters), fast_mode=True)


@pytest.mark.parametrize("dispatch", ["auto", "dense", "sorted"])
@pytest.mark.parametrize("training", [True, False])
def test_modules_take_all_but_grouped(dispatch, training):
    modules = [nn.Linear(FEATURES, OUTPUTS, dtype=torch.float64) for _ in range(3)]
    gate, inputs = TopK(FEATURES, 3, 2).double(), inputs_of(6, 0)
    layer = MixtureOfExperts(modules, gate, dispatch).train(training)
    weights = gate.expert_map(gate(inputs).weights)
    expected = sum(weights[:, e, None] * module(inputs) for e, module in enumerate(modules))
    assert torch.allclose(layer(inputs), expected, rtol=0, atol=1e-12)


class TestInfiniteExperts:
    """An expert whose outputs overflow, of which only the samples that give it weight must take notice."""

    @staticmethod
    def layer(dispatch, size=9):
        experts = experts_of(4, 12, 0, torch.float32)
        with torch.no_grad():
            experts.biases[-1][2] = torch.inf
        generator = torch.Generator().manual_seed(0)
        rows = torch.rand(size, 4, generator=generator) * (torch.rand(size, 4, generator=generator) < 0.5)
        rows[:, 0] += 0.1
        assert 0 < (rows[:, 2] == 0).sum() < size
        return MixtureOfExperts(experts, Given(rows), dispatch), rows

    @pytest.mark.parametrize("dispatch", ["auto", "sorted", "grouped"])
    def test_spoils_no_sample_that_gives_it_weight_0(self, dispatch):
        layer, rows = self.layer(dispatch)
        inputs = inputs_of(len(rows), 0, torch.float32)
        assert fastest_dispatch(layer.experts, rows) == "dense"
        mixture = layer(inputs)
        spared = rows[:, 2] == 0
        assert mixture.isfinite().all(1).tolist() == spared.tolist()
        healthy = copy.deepcopy(layer.experts)
        with torch.no_grad():
            healthy.biases[-1][2] = 0.0
        assert torch.allclose(mixture[spared], naive(healthy, rows, inputs)[spared], atol=1e-6)
        mixture[spared].sum().backward()
        for parameter in layer.experts.parameters():
            assert parameter.grad[:2].isfinite().all()
            assert (parameter.grad[:2] != 0).any()

    def test_spoils_all_where_dense_is_asked_for(self):
        layer, rows = self.layer("dense")
        assert layer(inputs_of(len(rows), 0, torch.float32)).isnan().any(1)[rows[:, 2] == 0].all()

    @pytest.mark.parametrize("dispatch", DISPATCHES)
    def test_with_finite_values_spoils_gradients_only_where_it_may_run_on_all_samples(self, dispatch):
        class Root(nn.Module):
            def forward(self, values):
                return values.abs().sqrt()

        experts = StackedExperts(4, FEATURES, OUTPUTS, activation=Root)
        with torch.no_grad():
            for parameter in experts.parameters():
                parameter[2] = 0.0
        rows = torch.eye(4)[[0, 1, 3, 3, 0]]
        assert fastest_dispatch(experts, rows) == "dense"
        inputs = inputs_of(5, 0, torch.float32)
        mixture, gradients = run(MixtureOfExperts(experts, Given(rows), dispatch), inputs)
        with torch.no_grad():
            assert torch.allclose(mixture, naive(experts, rows, inputs), atol=1e-6)
        finite = [bool(gradient.isfinite().all()) for gradient in gradients]
        assert all(finite) == (dispatch in ("sorted", "grouped")), finite

    @pytest.mark.parametrize(("hidden", "size"), [(12, 5), (256, 512)])
    @pytest.mark.parametrize("mode", [FakeTensorMode, lambda: torch.device("meta")])
    def test_are_not_looked_for_where_there_are_no_numbers(self, mode, hidden, size):
        with mode():
            layer = MixtureOfExperts(StackedExperts(64, FEATURES, OUTPUTS, hidden), TopK(FEATURES, 64, 2))
            assert layer(torch.randn(size, FEATURES)).shape == (size, OUTPUTS)


class TestRowsThatRun:
    """What conditional compute saves, counted where all experts pass: in the activation."""

    @staticmethod
    def rows(layer, inputs):
        counted = []
        hook = layer.experts.activation.register_forward_hook(lambda _module, _args, y: counted.append(y.shape))
        layer(inputs)
        hook.remove()
        return sum(shape[:-1].numel() for shape in counted)

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize(("dispatch", "rows"), [("sorted", 2 * 40), ("grouped", 2 * 40), ("dense", 6 * 40)])
    def test_top_k(self, dispatch, rows, training):
        layer = MixtureOfExperts(experts_of(6, 12, 0, torch.float32), TopK(FEATURES, 6, 2), dispatch).train(training)
        assert self.rows(layer, inputs_of(40, 0, torch.float32)) == rows

    @pytest.mark.parametrize("training", [True, False])
    def test_auto_runs_few_rows_where_the_problem_is_large(self, training):
        with torch.random.fork_rng(devices=[]):
            experts = StackedExperts(16, FEATURES, OUTPUTS, 512)
        layer = MixtureOfExperts(experts, HashRouting(16, in_features=FEATURES)).train(training)
        assert self.rows(layer, inputs_of(2000, 0, torch.float32)) == 2000

    def test_auto_is_dense_for_a_dense_gate(self):
        layer = MixtureOfExperts(experts_of(6, 12, 0), Softmax(FEATURES, 6).double())
        calls = []
        layer.experts.register_forward_hook(lambda *_: calls.append(1))
        layer(inputs_of(40, 0))
        assert calls == [1]


class TestFastestDispatch:
    """What `bench.dispatch_speed` has found fastest on a CPU."""

    @pytest.mark.parametrize(
        ("sizes", "samples", "k", "gradients", "path"),
        [
            ((4, 16, 32), 16, 1, True, "dense"),
            ((8, 64, 128), 128, 1, True, "grouped"),
            ((64, 64, 128), 128, 4, False, "grouped"),
            ((8, 64, 128), 128, 8, True, "dense"),
            ((8, 64, 128), 128, 4, False, "dense"),
            ((8, 64, 128), 128, 4, True, "grouped"),
            ((4, 64, 128), 256, 2, False, "dense"),
            ((4, 64, 128), 256, 2, True, "grouped"),
            ((8, 256, 512), 4096, 2, True, "sorted"),
            ((64, 64, 128), 128, 64, True, "dense"),
            ((16, 128, 256), 1024, 16, False, "sorted"),
            ((8, 256, 512), 4096, 8, True, "sorted"),
            ((64, 256, 512), 4096, 1, False, "sorted"),
            ((64, 256, 512), 4096, 1, True, "grouped"),
            ((16, 64, 128), 2048, 2, True, "grouped"),
            ((64, 64, 128), 1024, 4, False, "grouped"),
            ((8, 128, 256), 1024, 1, False, "sorted"),
            ((8, 128, 256), 1024, 1, True, "grouped"),
            ((8, 128, 256), 1024, 4, True, "sorted"),
            ((64, 128, 256), 1024, 2, False, "grouped"),
            ((4, 512, 512), 1, 1, False, "grouped"),
            ((4, 512, 512), 1, 1, True, "grouped"),
        ],
    )
    def test_is_the_fastest(self, sizes, samples, k, gradients, path):
        n, width, hidden = sizes
        experts = StackedExperts(n, width, width, hidden)
        weights = torch.zeros(samples, n)
        weights[:, :k] = 1 / k
        with torch.set_grad_enabled(gradients):
            assert fastest_dispatch(experts, weights) == path

    def test_is_sorted_where_grouped_is_not_possible(self):
        weights = torch.eye(8).repeat(16, 1)
        assert fastest_dispatch(StackedExperts(8, 64, 64, 128).double(), weights.double()) == "sorted"
        assert fastest_dispatch(StackedExperts(8, 62, 64, 128), weights) == "sorted"

    @pytest.mark.parametrize("gradients", [True, False])
    @pytest.mark.parametrize(
        ("sizes", "samples", "path"),
        [
            ((8, 16, 32), 600, "dense"),
            ((8, 32, 32), 256, "dense"),
            ((4, 64, 64), 200, "dense"),
            ((4, 64, 64), 400, "sorted"),
        ],
    )
    def test_is_dense_where_the_layer_is_small_and_grouped_is_not_possible(self, sizes, samples, gradients, path):
        n, width, hidden = sizes
        experts = StackedExperts(n, width, width, hidden).double()
        with torch.set_grad_enabled(gradients):
            assert fastest_dispatch(experts, torch.eye(n, dtype=torch.float64)[torch.arange(samples) % n]) == path

    def test_counts_the_multiplications_of_one_expert_on_one_sample(self):
        assert StackedExperts(3, 5, 7).multiplications == 5 * 7
        assert StackedExperts(3, 5, 7, hidden_features=11).multiplications == 5 * 11 + 11 * 7


# torch itself warns in the first derivative in forward mode.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
class TestForwardMode:
    """Derivatives in forward mode, which torch.nn.functional.grouped_mm has none of."""

    @pytest.mark.parametrize("gradients", [True, False])
    def test_auto_has_them_at_every_size(self, gradients):
        layer = MixtureOfExperts(StackedExperts(8, 64, 64, 128), TopK(64, 8, 1))
        inputs, tangent = torch.randn(2, 512, 64).unbind(0)
        weights = layer.gate.expert_map(layer.gate(inputs).weights)
        with torch.set_grad_enabled(gradients):
            assert fastest_dispatch(layer.experts, weights) == "grouped"
            derivatives = []
            for dispatch in ("auto", "sorted", "dense"):
                layer.dispatch = dispatch
                derivatives.append(torch.func.jvp(layer, (inputs,), (tangent,))[1])
                with forward_ad.dual_level():
                    dual = layer(forward_ad.make_dual(inputs, tangent))
                    derivatives.append(forward_ad.unpack_dual(dual).tangent)
        assert derivatives[0].abs().max() > 0
        for derivative in derivatives[1:]:
            assert torch.allclose(derivative, derivatives[0], atol=1e-5)

    def test_grouped_says_that_it_has_none(self):
        layer = MixtureOfExperts(StackedExperts(8, 64, 64, 128), TopK(64, 8, 1), "grouped")
        inputs = torch.randn(512, 64)
        with pytest.raises(ValueError, match=r'dispatch="grouped" needs .* in reverse mode: .* none in forward'):
            torch.func.jvp(layer, (inputs,), (inputs,))


@every_dispatch
@pytest.mark.parametrize("size", [6, 9000])
@pytest.mark.parametrize("autocast", [True, False])
def test_a_gate_that_gives_no_weight(dispatch, size, autocast):
    layer = MixtureOfExperts(StackedExperts(4, FEATURES, 8, 16), Given(torch.zeros(size, 4)), dispatch)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        mixture = layer(inputs_of(size, 0, torch.float32))
    assert mixture.dtype == (torch.bfloat16 if autocast else torch.float32)
    assert mixture.shape == (size, 8)
    assert (mixture == 0).all()
    mixture.sum().backward()


def test_modules_without_a_sample_are_an_error():
    layer = MixtureOfExperts([nn.Linear(FEATURES, OUTPUTS) for _ in range(4)], Given(torch.zeros(6, 4)))
    with pytest.raises(ValueError, match="expert_weights must be other than 0 for at least one sample and expert, got"):
        layer(inputs_of(6, 0, torch.float32))


def test_unknown_dispatch_of_later():
    layer = MixtureOfExperts(experts_of(3, 5, 0), TopK(FEATURES, 3, 2).double())
    layer.dispatch = "Sorted"
    with pytest.raises(ValueError, match=r"dispatch must be one of auto, dense, sorted, grouped, got 'Sorted'"):
        layer(inputs_of(5, 0))


@pytest.mark.parametrize("name", ["sparse", "", None, 3, ["dense"]])
def test_unknown_dispatch(name):
    with pytest.raises(ValueError, match=r"dispatch must be one of auto, dense, sorted, grouped, got "):
        MixtureOfExperts(experts_of(3, 5, 0), TopK(FEATURES, 3, 2), name)


def test_grouped_needs_a_stack():
    with pytest.raises(ValueError, match='dispatch="grouped" needs StackedExperts, got modules of their own'):
        MixtureOfExperts([nn.Linear(FEATURES, OUTPUTS) for _ in range(3)], TopK(FEATURES, 3, 2), "grouped")


@pytest.mark.parametrize(
    ("sizes", "dtype", "fault"),
    [
        ((8, 4, 12), torch.float64, r"needs one of the dtypes \[torch.float32, .*\] on cpu, got torch.float64"),
        ((6, 4, 12), torch.float32, "needs rows of a multiple of 16 bytes, got in_features=6 of torch.float32"),
        ((8, 4, 10), torch.float32, "needs rows of a multiple of 16 bytes, got hidden_features=10 of torch.float32"),
        ((8, 4, 16), torch.bfloat16, "needs rows of a multiple of 16 bytes, got out_features=4 of torch.bfloat16"),
    ],
)
def test_grouped_refuses_before_anything_runs(sizes, dtype, fault):
    before, after, hidden = sizes
    layer = MixtureOfExperts(StackedExperts(3, before, after, hidden), TopK(before, 3, 2), "grouped").to(dtype)
    layer.gate.register_forward_hook(lambda *_: pytest.fail("the gate ran"))
    with pytest.raises(ValueError, match=f'dispatch="grouped" {fault}'):
        layer(torch.zeros(5, before, dtype=dtype))
    with pytest.raises(ValueError, match=f'dispatch="grouped" {fault}'):
        layer.experts.forward_sorted(torch.zeros(5, before, dtype=dtype), (5, 0, 0), grouped=True)
    layer = MixtureOfExperts(layer.experts, layer.gate.train())
    layer.gate._forward_hooks.clear()
    assert layer(torch.zeros(5, before, dtype=dtype)).shape == (5, after)


def test_grouped_refuses_an_old_torch(monkeypatch):
    monkeypatch.delattr(nn.functional, "grouped_mm")
    layer = MixtureOfExperts(experts_of(3, 12, 0, torch.float32), TopK(FEATURES, 3, 2), "grouped")
    with pytest.raises(ValueError, match=r"needs torch.nn.functional.grouped_mm, which torch .* lacks"):
        layer(inputs_of(5, 0, torch.float32))
    assert MixtureOfExperts(layer.experts, layer.gate)(inputs_of(5, 0, torch.float32)).shape == (5, OUTPUTS)
