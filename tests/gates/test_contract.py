"""What every gate must do. A new gate is one line in `gate_contract.GATES`."""

import copy
import io

import numpy as np
import pytest
import torch
from gate_contract import FEATURES, batch, every_gate, make_seeded
from hypothesis import given, settings, strategies as st

from moe_search.gates.balanced_top_k import BalancedTopK
from moe_search.gates.dselect_k import DSelectK
from moe_search.gates.even_top_k import EvenTopK
from moe_search.gates.gate import Gate, SlotWeights
from moe_search.gates.hash_routing import HashRouting
from moe_search.gates.top_k import TopK
from moe_search.training.gamma_annealing import GammaAnnealing
from moe_search.training.sinkhorn import SinkhornPermutation

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def has_noise(gate):
    return isinstance(gate, TopK) and gate.noise is not None


def total_weights(gate, routing):
    """What the weights of every sample must sum to, by the scores of its slots."""
    size, dtype = len(routing.weights), routing.weights.dtype
    if not isinstance(gate, (TopK, BalancedTopK)):
        return torch.ones(size, dtype=dtype)
    scale = gate.scale if isinstance(gate, TopK) else 1.0
    if gate.renormalize:
        return torch.full((size,), scale, dtype=dtype)
    scores = routing.logits.softmax(2) if gate.scores == "softmax" else routing.logits.sigmoid()
    return scale * (scores * (routing.weights > 0)).sum((1, 2))


def check_weights(gate, routing, size, dtype):
    shape = (size, gate.num_selectors, gate.num_slots)
    assert isinstance(routing, SlotWeights)
    assert routing.weights.shape == shape
    assert routing.weights.dtype == dtype
    assert bool((routing.weights >= 0).all())
    tolerance = 20 * torch.finfo(dtype).eps
    totals = routing.weights.sum((1, 2))
    assert torch.allclose(totals, total_weights(gate, routing), rtol=tolerance, atol=0)
    if routing.logits is not None:
        assert routing.logits.shape == shape
        assert bool(routing.logits.isfinite().all())
    if routing.probabilities is not None:
        assert routing.probabilities.shape == shape
        assert bool((routing.probabilities >= 0).all())
        sums = routing.probabilities.sum(2)
        own = gate.gate if isinstance(gate, GammaAnnealing) else gate
        if isinstance(own, DSelectK) and own.num_slots < 2**own.num_bits:
            assert bool((sums <= 1 + tolerance).all())  # some codes stand for no slot
        else:
            assert torch.allclose(sums, torch.ones(shape[:2], dtype=dtype), rtol=0, atol=tolerance)
    if routing.noisy_logits is not None:
        assert routing.noisy_logits.shape == routing.noise_scale.shape == shape
        assert bool((routing.noise_scale > 0).all())


@every_gate
@settings(deadline=None, max_examples=25)
@given(
    n=st.integers(1, 7),
    capacity=st.integers(1, 3),
    size=st.integers(1, 5),
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([0.0, 0.1, 1.0, 30.0]),
    double=st.booleans(),
)
def test_slot_weights_sum_to_what_they_should(make, n, capacity, size, seed, scale, double):
    dtype = torch.float64 if double else torch.float32
    gate = make_seeded(make, n, n * capacity, seed).to(dtype)
    inputs, ids = batch(size, seed, dtype, scale)
    routing = gate(inputs, ids)
    check_weights(gate, routing, size, dtype)
    expert_weights = gate.expert_map(routing.weights)
    assert expert_weights.shape == (size, n)
    assert torch.allclose(expert_weights.sum(1), routing.weights.sum((1, 2)), rtol=0, atol=1e-5)


@every_gate
def test_sizes(make):
    gate = make(3, 6)
    assert isinstance(gate, Gate)
    assert (gate.num_experts, gate.num_slots, gate.expert_map.capacity) == (3, 6, 2)
    assert gate.expert_map.num_selectors == gate.num_selectors


@every_gate
@dtypes
def test_dtype(make, dtype):
    gate = make(3, 6).to(dtype)
    assert gate.expert_map.experts.dtype == torch.int64
    check_weights(gate, gate(*batch(dtype=dtype)), 7, dtype)


@every_gate
def test_the_device_meta_tells_the_shape(make):
    gate, (inputs, ids) = make_seeded(make), batch()
    there = copy.deepcopy(gate).to("meta")
    assert there(inputs.to("meta"), ids.to("meta")).weights.shape == gate(inputs, ids).weights.shape


@every_gate
@pytest.mark.parametrize("training", [True, False])
def test_same_batch_same_weights(make, training):
    gate = make(3, 6).train(training)
    state = torch.get_rng_state()
    first = gate(*batch())
    torch.set_rng_state(state)  # noise, if there is any, is torch's
    again = gate(*batch())
    assert torch.equal(first.weights, again.weights)
    assert torch.equal(gate.penalty(first), gate.penalty(again))


@every_gate
def test_training_mode_changes_nothing(make):
    gate = make(3, 6)
    if has_noise(gate) or isinstance(gate, BalancedTopK):
        pytest.skip("noise, or balance, is what training mode changes")
    assert torch.equal(gate.train()(*batch()).weights, gate.eval()(*batch()).weights)


@every_gate
def test_same_seed_same_gate(make):
    first, again = make_seeded(make, seed=4).eval(), make_seeded(make, seed=4).eval()
    assert torch.equal(first(*batch()).weights, again(*batch()).weights)


@every_gate
def test_samples_do_not_depend_on_each_other(make):
    gate = make(3, 6).double().eval()
    inputs, ids = batch(dtype=torch.float64)
    alone = [gate(inputs[b : b + 1], ids[b : b + 1]).weights for b in range(len(inputs))]
    assert torch.allclose(gate(inputs, ids).weights, torch.cat(alone), rtol=0, atol=1e-12)


@every_gate
def test_penalty_is_a_scalar_and_not_negative(make):
    gate = make(3, 6)
    penalty = gate.penalty(gate(*batch()))
    assert penalty.shape == ()
    assert penalty.item() >= 0


@every_gate
def test_no_row_has_more_slots_than_the_gate_says(make):
    gate = make(3, 6)
    counts = (gate(*batch(64)).weights != 0).sum((1, 2))
    assert gate.most_slots is None or counts.max() == gate.most_slots
    # What is sparse by its kind says so, or a device has to make room for all.
    assert isinstance(gate, TopK | BalancedTopK | EvenTopK | HashRouting) == (gate.most_slots is not None)


@every_gate
def test_state_dict_round_trip(make):
    gate, other = make_seeded(make, seed=1).eval(), make_seeded(make, seed=2).eval()
    gate.expert_map.scramble(torch.Generator().manual_seed(5))
    file = io.BytesIO()
    torch.save(gate.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(gate.expert_map.experts, other.expert_map.experts)
    assert torch.equal(gate(*batch()).weights, other(*batch()).weights)


@every_gate
def test_state_dict_of_other_sizes_is_refused(make):
    with pytest.raises(RuntimeError, match=r"expert_map.experts must have shape .* for 4 experts .* of 8 slots"):
        make(4, 8).load_state_dict(make(3, 6).state_dict())
    state = make(6, 6).state_dict()
    key = next(key for key in state if key.endswith("expert_map.experts"))
    with pytest.raises(RuntimeError, match=r"expert_map.experts must hold every expert 3 times"):
        make(2, 6).load_state_dict(state | {key: make(3, 6).expert_map.experts % 2})


@every_gate
def test_deepcopy_is_equal_and_independent(make):
    gate = make(3, 6).eval()
    weights = gate(*batch()).weights
    weights.sum()  # a graph hangs on the gate's parameters
    copied = copy.deepcopy(gate)
    assert torch.equal(copied(*batch()).weights, weights)
    before = gate.expert_map.experts.clone()
    copied.expert_map.scramble(torch.Generator().manual_seed(1))
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert torch.equal(gate.expert_map.experts, before)
    assert torch.equal(gate(*batch()).weights, weights)


def trace(gate):
    """Everything that hangs on a gate and its submodules: objects by identity, tensors by version too.

    What a map remembers of having been looked at is no trace.
    """
    found = {}
    for path, module in gate.named_modules():
        for name, value in vars(module).items():
            if name == "_checked":
                continue
            found[path, name] = (
                id(value) if not isinstance(value, dict) else tuple((k, id(v)) for k, v in value.items())
            )
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            found[path, name] = (id(tensor), tensor._version, tensor.grad)
    return found


@every_gate
@pytest.mark.parametrize("training", [True, False])
def test_forward_leaves_no_trace(make, training):
    gate = make(3, 6).train(training)
    inputs, ids = batch()
    before, state = trace(gate), torch.get_rng_state()
    gate.penalty(gate(inputs, ids))
    assert trace(gate) == before
    assert torch.equal(torch.get_rng_state(), state) != (training and has_noise(gate))
    assert torch.equal(inputs, batch()[0])
    assert torch.equal(ids, batch()[1])


@every_gate
def test_gradients_reach_every_parameter(make):
    gate = make(3, 6)
    routing = gate(*batch(size=64))
    if not list(gate.parameters()):
        assert not routing.weights.requires_grad
        return
    ((routing.weights**2).sum() + gate.penalty(routing)).backward()
    for parameter in gate.parameters():
        assert bool(parameter.grad.isfinite().all())
        assert bool((parameter.grad != 0).any())


def never_moved(gate, seed=0):
    """How many rows of every parameter get no gradient from the weights of experts, whatever a loss makes of these."""
    inputs, ids = batch(size=512, seed=seed, dtype=torch.float64)
    expert_weights = gate.expert_map(gate(inputs, ids).weights)
    factors = torch.randn(expert_weights.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    gradients = torch.autograd.grad((factors * expert_weights).sum(), list(gate.parameters()), materialize_grads=True)
    return {
        name: int((gradient.flatten(1) if gradient.ndim > 1 else gradient[:, None]).eq(0).all(1).sum())
        for (name, _), gradient in zip(gate.named_parameters(), gradients, strict=True)
    }


@every_gate
@pytest.mark.parametrize(("n", "m"), [(3, 6), (5, 5)])
def test_every_row_of_every_parameter_is_moved_by_the_weights_alone(make, n, m):
    """A penalty moves some too, but a gate whose choice no loss can change learns nothing of the task."""
    gate = make_seeded(make, n, m).double()
    if not list(gate.parameters()):
        pytest.skip("nothing to learn")
    # Slots side by side under one expert would make up for each other.
    gate.expert_map.scramble(torch.Generator().manual_seed(1))
    unmoved = never_moved(gate)
    if isinstance(gate, DSelectK) and gate.k == 1:
        # Its single selector has no other to be weighed against.
        assert unmoved == dict.fromkeys(unmoved, 1)
    else:
        assert unmoved == dict.fromkeys(unmoved, 0)


def test_one_slot_that_is_normalized_learns_nothing():
    """As the documentation says: the reason why it is not by default."""
    for scores in ("softmax", "sigmoid"):
        gate = TopK(FEATURES, 4, 1, scores=scores, renormalize=True).double()
        assert never_moved(gate) == {"linear.weight": 4, "linear.bias": 4}


@every_gate
@pytest.mark.parametrize(
    ("inputs", "fault"),
    [
        (torch.zeros(0, FEATURES), r"at least one row, got shape \(0, 5\)"),
        (torch.tensor(1.0), "got a scalar"),
        (torch.zeros(7, FEATURES, dtype=torch.int64), r"floating point, got dtype torch.int64"),
        (torch.zeros(7, FEATURES, dtype=torch.bool), r"floating point, got dtype torch.bool"),
        (torch.zeros(7, FEATURES, device="meta"), "on the device of the gate, cpu, got meta"),
    ],
)
def test_wrong_inputs(make, inputs, fault):
    with pytest.raises(ValueError, match=f"inputs must .*{fault}"):
        make(3, 6)(inputs, batch()[1])


@every_gate
def test_inputs_that_are_no_tensor(make):
    with pytest.raises(TypeError, match="inputs must be a tensor, got ndarray"):
        make(3, 6)(np.zeros((7, FEATURES), dtype=np.float32), batch()[1])


@every_gate
@pytest.mark.parametrize("shape", [(7, FEATURES + 1), (7,), (7, FEATURES, 2), (7, 0)])
def test_inputs_of_another_shape(make, shape):
    gate = make(3, 6)
    if gate.in_features is None:
        pytest.skip("a gate that routes by id takes any number of features")
    with pytest.raises(ValueError, match=r"inputs must have shape \[\.\.\., 5\], in_features .*, got shape \(7"):
        gate(torch.zeros(shape), batch()[1])


@every_gate
def test_inputs_of_another_precision(make):
    gate = make(3, 6)
    if not list(gate.parameters()):
        # Nothing to learn, so nothing of a precision of its own.
        check_weights(gate, gate(*batch(dtype=torch.float64)), 7, torch.float64)
        return
    with pytest.raises(ValueError, match=r"inputs must have the dtype of the gate, torch.float32, got torch.float64"):
        gate(*batch(dtype=torch.float64))


@every_gate
def test_autocast(make):
    gate = make(3, 6).eval()
    inputs, ids = batch(size=64)
    expected = gate(inputs, ids).weights
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weights = gate(inputs, ids).weights
    errors = (weights.float() - expected).abs().sum((1, 2)) / expected.sum((1, 2))
    # A sample near the edge of a choice may go elsewhere, which ones differs from processor to processor.
    assert (errors > 0.05).double().mean() < 0.1


@every_gate
def test_training_under_autocast(make):
    gate = make(3, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routing = gate(*batch(size=64))
        loss = (routing.weights**2).sum() + gate.penalty(routing)
    assert bool(loss.isfinite())
    if loss.requires_grad:
        loss.backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in gate.parameters())


@every_gate
def test_gradient(make):
    gate = make_seeded(make, seed=3).double()
    names = [name for name, _ in gate.named_parameters()]
    if not names:
        pytest.skip("nothing to learn")
    inputs, ids = batch(size=3, dtype=torch.float64)
    state = torch.get_rng_state()

    def outputs(*parameters):
        torch.set_rng_state(state)
        routing = torch.func.functional_call(gate, dict(zip(names, parameters, strict=True)), (inputs, ids))
        return routing.weights, gate.penalty(routing)

    values = [parameter.detach().clone().requires_grad_() for parameter in gate.parameters()]
    assert torch.autograd.gradcheck(outputs, values, fast_mode=True)


@pytest.mark.slow
@every_gate
@pytest.mark.parametrize(("training", "backend"), [(True, "aot_eager"), (False, "eager")])
def test_compiles_without_a_graph_break(make, training, backend):
    gate = make(2, 4).train(training)

    def outputs(inputs, ids):
        routing = gate(inputs, ids)
        return gate.expert_map(routing.weights), gate.penalty(routing)

    torch.compiler.reset()
    compiled = torch.compile(outputs, fullgraph=True, backend=backend)
    state = torch.get_rng_state()
    expected = outputs(*batch())
    torch.set_rng_state(state)
    weights, penalty = compiled(*batch())
    assert torch.allclose(weights, expected[0], rtol=0, atol=1e-6)
    assert torch.allclose(penalty, expected[1], rtol=0, atol=1e-6)
    if training and list(gate.parameters()):
        ((weights**2).sum() + penalty).backward()
        gradients = [parameter.grad.clone() for parameter in gate.parameters()]
        gate.zero_grad()
        ((expected[0] ** 2).sum() + expected[1]).backward()
        for gradient, parameter in zip(gradients, gate.parameters(), strict=True):
            assert torch.allclose(gradient, parameter.grad, rtol=0, atol=1e-5)


@every_gate
def test_all_axes_but_the_last_are_rows(make):
    gate = make(3, 6).eval()
    inputs, ids = batch(12)
    expected = gate(inputs, ids)
    for shape in ((3, 4), (2, 1, 6)):
        routing = gate(inputs.unflatten(0, shape), ids.unflatten(0, shape))
        assert torch.equal(routing.weights, expected.weights)
        assert torch.equal(gate.penalty(routing), gate.penalty(expected))
    torch.testing.assert_close(gate(inputs[0], ids[0]).weights, expected.weights[:1])


@every_gate
@pytest.mark.parametrize("rest", [(4,), (5,), (0, 1, 2, 6, 11), ()])
def test_padding_has_no_weight_and_counts_nowhere(make, rest):
    """Whatever stands there; all of a batch may be padding."""
    gate = make_seeded(make).double().eval()
    inputs, ids = batch(12, dtype=torch.float64)
    mask = torch.zeros(12, dtype=torch.bool)
    mask[list(rest)] = True
    with_padding, padded_ids = inputs.clone(), ids.clone()
    with_padding[~mask] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e300, 0.0], dtype=torch.float64)
    padded_ids[~mask] = -100
    attention_mask = mask.long().unflatten(0, (3, 4))
    routing = gate(with_padding.unflatten(0, (3, 4)), padded_ids.unflatten(0, (3, 4)), attention_mask)
    assert bool((routing.weights[~mask] == 0).all())
    penalties = [gate.penalty(routing)]
    parts = [routing.weights.square().sum()]
    if rest:
        expected = gate(inputs[mask], ids[mask])
        torch.testing.assert_close(routing.weights[mask], expected.weights)
        penalties.append(gate.penalty(expected))
        parts.append(expected.weights.square().sum())
    elif not isinstance(gate, SinkhornPermutation):  # whose map has a penalty of its own
        assert gate.penalty(routing).item() == 0
    if not list(gate.parameters()):
        return
    gradients = [
        torch.autograd.grad(part + penalty, list(gate.parameters()), materialize_grads=True)
        for part, penalty in zip(parts, penalties, strict=True)
    ]
    for of_padded, *of_rest in zip(*gradients, strict=True):
        assert bool(of_padded.isfinite().all())
        if of_rest:
            torch.testing.assert_close(of_padded, *of_rest)


@every_gate
@pytest.mark.parametrize(
    ("mask", "error", "fault"),
    [
        ([True], TypeError, "mask must be a tensor, got list"),
        (torch.ones(7), ValueError, "mask must hold booleans, .*, got dtype torch.float32"),
        (torch.ones(6, dtype=torch.bool), ValueError, r"mask must have shape \(7,\), .*, got shape \(6,\)"),
        (torch.ones(7, 1, dtype=torch.bool), ValueError, r"mask must have shape \(7,\), .*, got shape \(7, 1\)"),
        (torch.ones(7, dtype=torch.bool, device="meta"), ValueError, "mask must be on the device of the inputs, cpu"),
    ],
)
def test_wrong_masks(make, mask, error, fault):
    with pytest.raises(error, match=fault):
        make(3, 6)(*batch(), mask)


@every_gate
@pytest.mark.parametrize(
    ("n", "m", "fault"),
    [
        (0, 4, "num_experts must be an integer >= 1, got 0"),
        (3, 4, "num_slots must be a multiple of num_experts, got 4 slots for 3 experts"),
        (4, 2, "num_slots must be a multiple of num_experts, got 2 slots for 4 experts"),
    ],
)
def test_wrong_sizes(make, n, m, fault):
    with pytest.raises(ValueError, match=fault):
        make(n, m)


@every_gate
@pytest.mark.cuda
def test_cuda(make):
    gate = make(3, 6).double().eval()
    inputs, ids = batch(dtype=torch.float64)
    expected = gate(inputs, ids)
    gate.to("cuda")
    routing = gate(inputs.cuda(), ids.cuda())
    assert torch.allclose(routing.weights.cpu(), expected.weights, rtol=0, atol=1e-12)
    assert torch.allclose(gate.penalty(routing).cpu(), gate.penalty(expected))
    gate.expert_map.scramble(torch.Generator().manual_seed(1))
    permutation = gate.expert_map.permutation()
    gate.expert_map.assign_permutation(permutation)
    assert gate.expert_map.experts.device.type == "cuda"
    assert np.array_equal(gate.expert_map.permutation(), permutation)
    with pytest.raises(ValueError, match="inputs must be on the device of the gate, cuda:0, got cpu"):
        gate(inputs, ids.cuda())
