"""The converter against the published formula, written out in plain Python."""

import naive_gates
import numpy as np
import pytest
import torch

from moe_search.gates.official import load_official_dselect_k

FEATURES, SELECTORS = 3, 2


def published(n, static, seed=0):
    """The weights of a published gate, and a function from a sample to its bits, [k][bits], and selectors, [k]."""
    generator = np.random.default_rng(seed)
    bits = (n - 1).bit_length()
    if static:
        z, w = generator.normal(size=(SELECTORS, 1, bits)) / 4, generator.normal(size=(SELECTORS, 1))
        return {"_z_logits": z, "_w_logits": w}, lambda _: (z[:, 0].tolist(), w[:, 0].tolist())
    z, b = generator.normal(size=(FEATURES, SELECTORS * bits)) / 4, generator.normal(size=SELECTORS * bits) / 4
    w, c = generator.normal(size=(FEATURES, SELECTORS)), generator.normal(size=SELECTORS)
    state = {"_z_logits/kernel:0": z, "_z_logits/bias:0": b, "_w_logits/kernel:0": w, "_w_logits/bias:0": c}
    return state, lambda x: ((x @ z + b).reshape(SELECTORS, bits).tolist(), (x @ w + c).tolist())


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("n", [2, 4, 5, 6, 8, 16])
@pytest.mark.parametrize("gamma", [1.0, 3.0])
def test_weights_of_experts_by_hand(n, static, gamma):
    state, values = published(n, static)
    gate = load_official_dselect_k(state, n, gamma=gamma)
    assert (gate.num_experts, gate.k, gate.in_features) == (n, SELECTORS, None if static else FEATURES)
    inputs = torch.randn(25, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    routing = gate(inputs)
    weights = gate.expert_map(routing.weights)
    for x, w, p in zip(inputs.numpy(), weights.tolist(), routing.probabilities.tolist(), strict=True):
        g, expected_p = naive_gates.dselect_k(*values(x), n, gamma)
        assert np.allclose(p, expected_p, rtol=0, atol=1e-12)
        expected = np.sum(g, 0)
        if n & (n - 1) == 0:
            assert expected.sum() == pytest.approx(1, abs=1e-12)
        # Where some codes are no expert's, the published weights sum to less than 1; ours are these over their sum.
        assert w == pytest.approx((expected / expected.sum()).tolist(), abs=1e-12)


def test_the_first_bit_is_the_most_significant():
    state = {"z_logits": torch.tensor([[[1.0, -1.0, -1.0]]]), "w_logits": torch.zeros(1, 1)}
    gate = load_official_dselect_k(state, 8)
    assert gate.expert_map(gate(torch.zeros(1, 1)).weights).argmax().item() == 4


def test_a_permutation_of_every_selector():
    state = {"z_logits": torch.tensor([[[1.0, -1.0]], [[-1.0, 1.0]]]), "w_logits": torch.zeros(2, 1)}
    permutation = torch.stack([torch.eye(4)[[3, 2, 1, 0]], torch.eye(4)[[1, 3, 0, 2]]])
    gate = load_official_dselect_k(state, 4, permutation=permutation)
    # Codes 2 and 1 become experts 1 and 3.
    assert gate.expert_map(gate(torch.zeros(1, 1)).weights).tolist() == [[0, 0.5, 0, 0.5]]


def test_prefix_and_counter():
    state, _ = published(4, True)
    named = {f"model/gate/{name}/.ATTRIBUTES/VARIABLE_VALUE": value for name, value in state.items()}
    named["model/gate/_entropy_reg/_num_calls"] = np.zeros(())
    named["model/gate/_entropy_reg/num_calls:0"] = np.zeros(())
    named["model/head/kernel:0"] = np.zeros(3)
    gate = load_official_dselect_k(named, 4, prefix="model/gate")
    assert torch.equal(gate.values, load_official_dselect_k(state, 4).values)


@pytest.mark.parametrize(
    ("change", "n", "error", "fault"),
    [
        (lambda s: {"z_logits": s["_z_logits"]}, 4, ValueError, "must have the names w_logits, z_logits or .* got z"),
        (lambda s: s | {"extra": np.zeros(1)}, 4, ValueError, "must have the names .* got extra, w_logits, z_logits"),
        (lambda s: s, 9, ValueError, r"shapes .*\(2, 1, 4\).* for 9 experts, n > 1, got .*\(2, 1, 2\)"),
        (lambda s: s | {"_w_logits": np.zeros(2)}, 4, ValueError, "must have the shapes"),
        (lambda s: s | {"_w_logits": np.zeros(())}, 4, ValueError, "must have the shapes"),
        (lambda s: s, 0, ValueError, "num_experts must be an integer >= 1, got 0"),
        (lambda s: s, 2.5, TypeError, "num_experts must be an integer, got 2.5"),
    ],
)  # fmt: skip
def test_wrong_states(change, n, error, fault):
    with pytest.raises(error, match=fault):
        load_official_dselect_k(change(published(4, True)[0]), n)
