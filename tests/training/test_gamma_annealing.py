import io

import pytest
import torch
from torch.nn import functional

from moe_search.gates.comet import COMET
from moe_search.gates.dselect_k import DSelectK
from moe_search.gates.top_k import TopK
from moe_search.layers.mixture_of_experts import MixtureOfExperts
from moe_search.layers.stacked_experts import StackedExperts
from moe_search.training.balance import importance_loss
from moe_search.training.gamma_annealing import GammaAnnealing
from moe_search.training.sinkhorn import SinkhornPermutation

GATES = {"COMET": COMET, "DSelectK": DSelectK}
every_kind = pytest.mark.parametrize("kind", GATES.values(), ids=GATES.keys())


def make(kind=COMET, steps=4, seed=0, last=0.01, balance=0.0, **options):
    torch.manual_seed(seed)
    return GammaAnnealing(kind(5, 4, 2, **options), steps, last, balance)


@every_kind
def test_gamma_falls_as_the_formula_says_and_stays_at_its_last(kind):
    gate, seen = make(kind, gamma=2.0, last=0.02), []
    for _ in range(6):
        seen.append(gate.gate.gamma)
        gate.step()
    assert seen == pytest.approx([2.0, 2.0 / 10**0.5, 0.2, 0.02 * 10**0.5, 0.02, 0.02])
    assert (seen[0], seen[-1]) == (2.0, 0.02)


@every_kind
def test_it_answers_and_penalizes_as_a_gate_of_the_present_gamma(kind):
    gate = make(kind)
    inputs = torch.randn(30, 5)
    for _ in range(6):
        plain = kind(5, 4, 2, gamma=gate.gate.gamma)
        plain.load_state_dict(gate.gate.state_dict())
        routing = gate(inputs)
        assert torch.equal(routing.weights, plain(inputs).weights)
        assert torch.equal(gate.penalty(routing), plain.penalty(plain(inputs)))
        gate.step()


@every_kind
def test_uneven_importance_is_penalized_until_the_last_step(kind):
    gate, plain = make(kind, steps=5, balance=0.5), make(kind, steps=5)
    inputs = torch.randn(30, 5)
    for step in range(7):
        routing = gate(inputs)
        more = (gate.penalty(routing) - plain.penalty(plain(inputs))).item()
        balance = importance_loss(routing, gate.expert_map).item()
        assert more == pytest.approx(0.5 * balance if step < 5 else 0.0, abs=1e-6)
        assert balance > 1e-4
        gate.step(), plain.step()


@every_kind
def test_a_state_brings_its_gamma_with_it(kind):
    gate, other = make(kind, seed=0), make(kind, seed=1)
    gate.step()
    file = io.BytesIO()
    torch.save(gate.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.gate.gamma == gate.gate.gamma
    inputs = torch.randn(9, 5)
    assert torch.equal(other(inputs).weights, gate(inputs).weights)
    other.reset_parameters()
    assert other.gate.gamma == 1.0
    for wrong in (torch.tensor([5]), torch.tensor([-1]), torch.tensor([1, 1]), 1):
        with pytest.raises(ValueError, match=r"the extra state must be a step in 0 \.\. 4, got"):
            gate.set_extra_state(wrong)


@every_kind
def test_samples_come_down_to_k_experts_where_gamma_that_stays_leaves_more(kind):
    """Four clusters, each with an answer of its own."""
    generator = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(4, 5, generator=generator)
    labels = torch.randint(4, (512,), generator=generator)
    inputs = centres[labels] + torch.randn(512, 5, generator=generator)

    def trained(annealed):
        gate = make(kind, steps=150, gamma=4.0, entropy=0.0)
        moe = MixtureOfExperts(StackedExperts(4, 5, 4), gate)
        optimizer = torch.optim.Adam(moe.parameters(), 3e-3)
        for _ in range(200):
            loss = functional.cross_entropy(moe(inputs), labels) + moe.regularization()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if annealed:
                gate.step()
        experts = (gate.expert_map(gate(inputs).weights) > 0).sum(1).double().mean()
        return float(experts), loss.item()

    (more, loss), (few, annealed_loss) = trained(False), trained(True)
    assert few < 2.2 < 2.5 < more
    assert annealed_loss < loss + 0.1


def test_the_map_is_the_gates_own_and_in_the_state_once():
    gate = make()
    assert gate.expert_map is gate.gate.expert_map
    assert [name for name in gate.state_dict() if name.endswith("experts")] == ["gate.expert_map.experts"]
    assert gate.k == 2


@pytest.mark.parametrize(
    ("arguments", "error", "fault"),
    [
        ((TopK(5, 4, 2), 4), TypeError, "gate must be a COMET or a DSelectK, which have a gamma, got TopK"),
        ((COMET(5, 4, 2), 0), ValueError, "steps must be an integer >= 1, got 0"),
        ((COMET(5, 4, 2), 4, 0.0), ValueError, "last must be a finite number > 0, got 0"),
        ((COMET(5, 4, 2), 4, 0.1, -1.0), ValueError, "balance must be a finite number >= 0, got -1"),
    ],
)
def test_wrong_arguments(arguments, error, fault):
    with pytest.raises(error, match=fault):
        GammaAnnealing(*arguments)


WRAPPED = {
    "annealed": lambda: make(steps=2),
    "Sinkhorn": lambda: SinkhornPermutation(TopK(5, 4, 2), steps=2),
}


@pytest.mark.parametrize("make_gate", WRAPPED.values(), ids=WRAPPED.keys())
def test_an_average_of_models_is_at_the_step_of_the_model(make_gate):
    gate, inputs = make_gate(), torch.randn(30, 5)
    averaged = torch.optim.swa_utils.AveragedModel(gate)
    for _ in range(gate.steps):
        gate.step()
        averaged.update_parameters(gate)
        torch.testing.assert_close(averaged(inputs).weights, gate(inputs).weights)
    assert averaged.module.extra_repr() == gate.extra_repr()
    gate.counted.copy_(torch.tensor([0, 1]))
    for broken in (gate, gate.eval()):
        with pytest.raises(ValueError, match=r"the step of a gate must be in 0 \.\. 2, something else wrote \[0, 1\]"):
            broken(inputs)
    gate.reset_parameters()
    gate(inputs)
