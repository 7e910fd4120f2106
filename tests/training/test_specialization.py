"""The loss of `ExpertSpecialization` against loops and scipy's assignment, and its check against runs written out."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.nn import functional

import moe_search as ms

N, FEATURES, CLASSES = 4, 6, 3
GATES = {
    "switch": lambda: ms.TopK(FEATURES, N, k=1),
    "two slots an expert": lambda: ms.TopK(FEATURES, N, k=2, num_slots=2 * N),
    "comet": lambda: ms.COMET(FEATURES, N, k=2, gamma=5.0),
    "dselect-k": lambda: ms.DSelectK(FEATURES, N, k=2, gamma=5.0),
}


def make(gate="switch", shared=False):
    torch.manual_seed(0)
    experts = ms.StackedExperts(N, FEATURES, 5, hidden_features=7)
    moe = ms.MixtureOfExperts(experts, GATES[gate](), shared=nn.Linear(FEATURES, 5) if shared else None)
    moe.gate.expert_map.scramble(torch.Generator().manual_seed(1))
    return nn.Sequential(nn.Dropout(0.0), moe, nn.Linear(5, CLASSES)), moe


def batch(rows=(12,), seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(*rows, FEATURES, generator=generator)
    return inputs, torch.randint(CLASSES, rows, generator=generator)


def by_loops(model, moe, inputs, targets):
    """Return the loss of every row under every expert, and the log of the gate's probabilities, in plain loops."""
    rows, labels = inputs.flatten(0, -2), targets.flatten().clamp(min=0)
    routing = moe.gate(rows)
    slots = routing.weights if routing.probabilities is not None else routing.logits.softmax(2)
    experts = moe.gate.expert_map.experts
    losses, gate = [], []
    for b, row in enumerate(rows):
        outputs = [moe.experts(row[None])[0, e] + (moe.shared(row) if moe.shared is not None else 0) for e in range(N)]
        losses.append(torch.stack([functional.cross_entropy(model[2](y[None]), labels[b : b + 1]) for y in outputs]))
        gate.append(torch.stack([slots[b][(experts == e).expand_as(slots[b])].sum() for e in range(N)]))
    return torch.stack(losses), torch.stack(gate).clamp(min=torch.finfo().tiny).log()


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("rows", [(12,), (3, 4)], ids=["samples", "tokens"])
@pytest.mark.parametrize("gate", GATES)
def test_competition_is_the_likelihood_of_the_mixture(gate, rows):
    model, moe = make(gate, shared=True)
    inputs, targets = batch(rows)
    if len(rows) == 2:
        targets[0, 1] = -100

    def loss_of_tokens(outputs, labels):
        return functional.cross_entropy(outputs.flatten(0, -2), labels.flatten())

    specialization = ms.ExpertSpecialization(model, moe, loss=loss_of_tokens, assigned=0)
    found = gradients(model, specialization.loss(inputs, targets))
    losses, log_gate = by_loops(model, moe, inputs, targets)
    model(inputs)
    wanted = -(log_gate - losses).logsumexp(1)[targets.flatten() >= 0].mean() + moe.regularization()
    for one, other in zip(found, gradients(model, wanted), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    last = specialization.last
    assert last.phase == "competition"
    assert sum(last.loads) == pytest.approx(N)
    assert last.metrics()["specialization/load_max"] == max(last.loads)


@pytest.mark.slow  # it compiles the kernel of Transport
@pytest.mark.parametrize("limit", [1.0, 1.5, None])
def test_assignment_is_the_best_within_the_load_limit(limit):
    model, moe = make()
    inputs, targets = batch((16,), seed=3)
    specialization = ms.ExpertSpecialization(model, moe, loss=functional.cross_entropy, assigned=1, load_limit=limit)
    total = specialization.loss(inputs, targets)
    losses, log_gate = by_loops(model, moe, inputs, targets)
    cost = (losses - log_gate).detach().double().numpy()
    capacity = 16 if limit is None else int(limit * 16 / N)
    chosen_rows, seats = linear_sum_assignment(np.repeat(cost, capacity, axis=1))
    experts = seats // capacity
    assert float(total.detach()) == pytest.approx(cost[chosen_rows, experts].mean(), rel=1e-5)
    last = specialization.last
    assert last.phase == "assignment"
    np.testing.assert_allclose(last.loads, np.bincount(experts, minlength=N) * N / 16)
    assert last.agreement == pytest.approx((log_gate.argmax(1).numpy() == experts).mean())
    assert last.loss == pytest.approx(losses.detach().numpy()[chosen_rows, experts].mean(), rel=1e-5)
    assert last.mixture_loss == pytest.approx(
        float(functional.cross_entropy(model(inputs), targets).detach()), rel=1e-5
    )


def run(steps, until=4, options=None, specialized=True, stop_at=None, half=False):
    """Train with `ExpertSpecialization`, competition only, or without; with a stop and a new start, if told."""
    options = options or {}
    model, moe = make()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

    def begin():
        return ms.ExpertSpecialization(
            model, moe, loss=functional.cross_entropy, until=until, assigned=0, optimizer=optimizer, **options
        )

    specialization = begin()
    for step in range(steps):
        inputs, targets = batch(seed=step)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            plain = functional.cross_entropy(model(inputs), targets)
            loss = specialization.loss(inputs, targets) if specialized else plain
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if specialized:
            specialization.step()
        if step == stop_at:
            state = copy.deepcopy(specialization.state_dict())
            specialization = begin()
            specialization.load_state_dict(state)
    return model, specialization


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("half", [False, True], ids=["single", "autocast"])
def test_a_run_that_is_not_confirmed_goes_on_as_if_there_had_been_none(half):
    held_out = [batch((20,), seed=s) for s in (100, 101)]
    checked, specialization = run(8, options={"held_out": held_out, "check_after": 1, "confidence": 1e9}, half=half)
    assert not specialization.check.kept
    assert specialization.check.verification.num_samples == 40
    assert same(checked, run(8, specialized=False, half=half)[0])


@pytest.mark.parametrize("with_it", [True, False])
def test_a_run_that_diverged_is_the_worse_one(with_it):
    model, moe = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0 if with_it else 1e38)
    specialization = ms.ExpertSpecialization(
        model, moe, loss=functional.cross_entropy, until=1, check_after=0, optimizer=optimizer, held_out=[batch()]
    )
    specialization.loss(*batch())
    if with_it:
        nn.init.constant_(model[2].weight, math.nan)
    assert specialization.step().kept != with_it
    assert model[2].weight.isfinite().all()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_model_may_be_compiled_and_enter_autocast_and_padding_may_hold_anything():
    class Model(nn.Module):
        def __init__(self, moe):
            super().__init__()
            self.moe, self.head = moe, nn.Linear(5, CLASSES)

        def forward(self, inputs, mask=None):
            with torch.autocast("cpu", torch.bfloat16):
                return self.head(self.moe(inputs.bfloat16(), mask=mask)).float()

    def loss(outputs, targets):
        return functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())

    moe = make()[1]
    model = Model(moe)
    (inputs, targets), mask = batch((3, 4)), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    wanted = gradients(model, ms.ExpertSpecialization(model, moe, loss=loss).loss(inputs, targets, mask=mask))
    inputs[mask == 0] = math.nan
    compiled = torch.compile(model, backend="eager")
    compiled(inputs, mask=mask)
    found = gradients(model, ms.ExpertSpecialization(compiled, moe, loss=loss).loss(inputs, targets, mask=mask))
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


def test_a_confirmed_run_goes_on_as_without_a_check_also_when_it_was_interrupted():
    wanted, _ = run(8)
    assert not same(wanted, run(8, specialized=False)[0])
    # What the specialized model says is right here, so that it is the better one.
    at_the_check, _ = run(5)
    inputs = batch((20,), seed=100)[0]
    held_out = [(inputs, at_the_check(inputs).detach().softmax(1))]
    options = {"held_out": held_out, "check_after": 1}
    for stop_at in (None, 2):
        checked, specialization = run(8, options=options, stop_at=stop_at)
        assert specialization.check.kept
        assert specialization.check.verification.gain > 0
        assert specialization.check.metrics()["specialization/kept"] == 1.0
        assert same(checked, wanted)


def test_after_the_last_step_and_in_eval_mode_it_is_the_loss_of_the_model():
    model, specialization = run(4)
    inputs, targets = batch()
    assert specialization.phase is None
    assert torch.equal(specialization.loss(inputs, targets), functional.cross_entropy(model(inputs), targets))
    model, moe = make()
    specialization = ms.ExpertSpecialization(model.eval(), moe, loss=functional.cross_entropy)
    assert torch.equal(specialization.loss(inputs, targets), functional.cross_entropy(model(inputs), targets))


def test_what_is_wrong_is_said():
    model, moe = make()
    inputs, targets = batch()

    def begin(**options):
        return ms.ExpertSpecialization(model, moe, **{"loss": functional.cross_entropy} | options)

    with pytest.raises(ValueError, match="assigned must be at most until, 10, got 11"):
        begin(until=10, assigned=11)
    with pytest.raises(ValueError, match="optimizer must be given for held_out, got None"):
        begin(held_out=[(inputs, targets)])
    checked = {"held_out": [(inputs, targets)], "optimizer": torch.optim.SGD(model.parameters())}
    with pytest.raises(ValueError, match=r"inputs must have shape \[..., 6\]"):
        begin(**checked | {"held_out": [(inputs[:, :2], targets)]}).loss(inputs, targets)
    ended, plain = begin(**checked), begin()
    for specialization in (ended, plain):
        specialization.loss(inputs, targets)
        specialization.step()
    for one, other, words in ((ended, plain, "without samples"), (plain, ended, "with samples")):
        with pytest.raises(ValueError, match=f"state must be that of a run {words} held out"):
            other.load_state_dict(one.state_dict())
    state = ended.state_dict()
    with pytest.raises(ValueError, match="state must be that of a model of the same shapes"):
        ended.load_state_dict(state | {"other": state["other"][1:]})
    with pytest.raises(ValueError, match=r"load_limit must be a finite number >= 1, got 0\.5"):
        begin(load_limit=0.5)
    with pytest.raises(ValueError, match="loss must be the mean over the samples"):
        begin(loss=nn.CrossEntropyLoss(reduction="sum"), assigned=0).loss(inputs, targets)
    table = ms.MixtureOfExperts(ms.StackedExperts(N, FEATURES, 2), ms.HashRouting(N, in_features=FEATURES))
    with pytest.raises(ValueError, match="must have parameters to train, got a HashRouting with none"):
        ms.ExpertSpecialization(table, table, loss=functional.mse_loss)
    pooled = nn.Sequential(moe, nn.Flatten(1))
    with pytest.raises(ValueError, match=r"outputs must have an entry for each row of moe, shape \(3, 4\)"):
        ms.ExpertSpecialization(pooled, moe, loss=functional.mse_loss, assigned=0).loss(
            torch.randn(3, 4, FEATURES), torch.randn(3, 20)
        )
