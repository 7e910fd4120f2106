"""What must run on another device as it does on the CPU, without waiting for it: jobs for a process of their own.

It runs them all, and writes what went wrong with each to the file that it is given.
"""

import copy
import json
import sys
import traceback
from pathlib import Path

import numpy as np
import torch
from far_device import FAR, Far
from gate_contract import GATES, batch, make_seeded
from shared_map import make_shared
from specialists import lowered, make
from token_models import taught, token_loss
from torch import nn

import moe_search as ms
from moe_search.layers import device_dispatch
from moe_search.layers.dispatch import DISPATCHES

FEATURES, OUTPUTS, HIDDEN = 4, 8, 16
LAYER_GATES = {
    "Softmax": lambda: ms.Softmax(FEATURES, 3, 6),
    "TopK-2": lambda: ms.TopK(FEATURES, 3, 2, 6),
    "HashRouting": lambda: ms.HashRouting(3, 6, in_features=FEATURES),
    "COMET": lambda: ms.COMET(FEATURES, 3, 2, 6, gamma=0.5),
}
ONE_COUNT = [("to the CPU", 3 * 4)]
"""The wait of "sorted": how many pairs the three experts have."""


def as_far(module):
    """A copy on the device, whose buffers have been looked at."""
    return copy.deepcopy(module).to(FAR)


def close(far, near):
    torch.testing.assert_close(far.cpu(), near, rtol=1e-5, atol=1e-6)


def gate(far, name):
    near = make_seeded(GATES[name])
    there = as_far(near)
    inputs, ids = batch(64)
    mask = torch.arange(64) % 3 > 0
    far_inputs, far_ids, far_mask = inputs.to(FAR), ids.to(FAR), mask.to(FAR)
    there.expert_map(there(far_inputs, far_ids).weights)
    far.waits.clear()
    state, found = torch.get_rng_state(), []
    for module, given in ((there, (far_inputs, far_ids, far_mask)), (near, (inputs, ids, mask))):
        torch.set_rng_state(state)
        routing = module(*given)
        weights, penalty = module.expert_map(routing.weights), module.penalty(routing)
        if weights.requires_grad:
            (weights.square().sum() + penalty).backward()
        if hasattr(module, "step"):
            module.step()
        found.append([weights.detach(), penalty.detach(), *(p.grad for p in module.parameters())])
    assert far.waits == []
    for ours, expected in zip(*found, strict=True):
        close(ours, expected)


def layer(far, name, dispatch, *, modules=False, masked=False):
    torch.manual_seed(0)
    experts = ms.StackedExperts(3, FEATURES, OUTPUTS, HIDDEN)
    if modules:
        experts = [nn.Linear(FEATURES, OUTPUTS) for _ in range(3)]
    near = ms.MixtureOfExperts(experts, LAYER_GATES[name]())
    there = as_far(near)
    there.dispatch = dispatch
    mask = torch.arange(40) % 5 > 1 if masked else None
    inputs = torch.randn(40, FEATURES)
    found = []
    for module, to in ((there, FAR), (near, torch.device("cpu"))):
        given = inputs.to(to).requires_grad_(), None if mask is None else mask.to(to)
        for _ in range(2):
            far.waits.clear()
            module.zero_grad()
            given[0].grad = None
            mixture = module(given[0], mask=given[1])
            (mixture.square().sum() + module.regularization()).backward()
            if to == FAR:
                waits = list(far.waits)
        found.append([mixture.detach(), given[0].grad, *(parameter.grad for parameter in module.parameters())])
    assert waits == (ONE_COUNT if dispatch == "sorted" or modules else []), waits
    for ours, expected in zip(*found, strict=True):
        close(ours, expected)


def several_gates(far, dispatch):
    torch.manual_seed(0)
    gates = [ms.TopK(FEATURES, 8, 1), ms.TopK(FEATURES, 8, 2)]
    near = ms.MultiGateMixtureOfExperts(ms.StackedExperts(8, FEATURES, OUTPUTS), gates, shared_map=True)
    there = as_far(near)
    there.dispatch = dispatch
    inputs = torch.randn(40, FEATURES)
    far_inputs = inputs.to(FAR)
    there(far_inputs)
    far.waits.clear()
    outputs = there(far_inputs)
    (outputs.square().sum() + there.regularization()).backward()
    near(inputs).square().sum().backward()
    assert dispatch == "sorted" or far.waits == []
    close(outputs.detach(), near(inputs).detach())
    for ours, expected in zip(there.parameters(), near.parameters(), strict=True):
        close(ours.grad, expected.grad)


def half_precision(far, dispatch):
    torch.manual_seed(0)
    near = ms.MixtureOfExperts(ms.StackedExperts(3, 8, OUTPUTS, HIDDEN), ms.TopK(8, 3, 2)).bfloat16()
    there = as_far(near)
    there.dispatch = dispatch
    inputs = torch.randn(40, 8).bfloat16()
    far_inputs, mixtures = inputs.to(FAR), []
    there(far_inputs)
    far.waits.clear()
    for module, given in ((there, far_inputs), (near, inputs)):
        mixtures.append(module(given))
        mixtures[-1].float().square().sum().backward()
    assert dispatch == "sorted" or far.waits == []
    assert mixtures[0].dtype == torch.bfloat16
    torch.testing.assert_close(mixtures[0].cpu(), mixtures[1], rtol=0.05, atol=0.05)
    for ours, expected in zip(there.parameters(), near.parameters(), strict=True):
        # Sums in another order: single entries lose most digits.
        assert (ours.grad.cpu() - expected.grad).norm() < 0.05 * expected.grad.norm()


def an_infinite_expert(far, dispatch):
    """It spoils no sample that gives it weight 0, though no mixture is looked at."""
    torch.manual_seed(0)
    layer = ms.MixtureOfExperts(ms.StackedExperts(3, FEATURES, OUTPUTS), ms.TopK(FEATURES, 3, 1))
    with torch.no_grad():
        layer.experts.biases[0][2] = torch.inf
    there = as_far(layer)
    device_dispatch.trial = lambda *_: {dispatch: 0.0}
    inputs = torch.randn(40, FEATURES)
    spared = layer.gate(inputs).weights[:, 0, 2] == 0
    assert 0 < spared.sum() < 40
    mixture = there(inputs.to(FAR))
    assert mixture.isfinite().all(1).cpu().tolist() == spared.tolist()
    mixture.cpu()[spared].sum().backward()
    assert there.experts.weights[0].grad[:2].isfinite().all()


def penalties(far):
    torch.manual_seed(0)
    near = ms.TopK(FEATURES, 3, 2, 6, noise=True)
    there = as_far(near)
    inputs = torch.randn(40, FEATURES)
    far_inputs = inputs.to(FAR)
    there.expert_map(there(far_inputs).weights)
    far.waits.clear()
    state, found = torch.get_rng_state(), []
    for module, given in ((there, far_inputs), (near, inputs)):
        torch.set_rng_state(state)
        routing = module(given)
        found.append(
            [
                ms.importance_loss(routing, module.expert_map),
                ms.smooth_load_loss(routing, module.expert_map, 2),
                ms.load_balancing_loss(routing, module.expert_map),
                ms.router_z_loss(routing),
            ]
        )
        sum(found[-1]).backward()
    assert far.waits == []
    for ours, expected in zip(*found, strict=True):
        close(ours.detach(), expected.detach())


def balancing(far):
    torch.manual_seed(0)
    near = ms.MixtureOfExperts(ms.StackedExperts(3, FEATURES, OUTPUTS), ms.TopK(FEATURES, 3, 2, 6))
    there = as_far(near)
    given = [torch.randn(40, FEATURES) for _ in range(4)]
    given[0][:] = torch.nan
    given[2][:] = torch.nan
    far_given = [inputs.to(FAR) for inputs in given]
    there(far_given[0])
    far.waits.clear()
    of_far, of_near = (ms.LossFreeBalancing(module, rate=0.1, slot_limit=0.6, memory=0.5) for module in (there, near))
    for inputs, far_inputs in zip(given, far_given, strict=True):
        for module, step, rows in ((there, of_far.step, far_inputs), (near, of_near.step, inputs)):
            module(rows)
            step()
    assert far.waits == []
    close(of_far.slot_loads, of_near.slot_loads)
    close(there.gate.linear.bias.detach(), near.gate.linear.bias.detach())
    again = ms.LossFreeBalancing(there)
    again.load_state_dict(of_far.state_dict())
    there(far_given[1])
    again.step()


def statistics(far, masked):
    torch.manual_seed(0)
    near = ms.COMET(FEATURES, 3, 2, 6, gamma=0.5)
    there = as_far(near)
    inputs, mask = torch.randn(40, FEATURES), torch.arange(40) % 3 > 0 if masked else None
    given = inputs.to(FAR), None, None if mask is None else mask.to(FAR)
    there.expert_map(there(*given).weights)
    far.waits.clear()
    of_far, of_near = ms.RoutingStatistics(window=1), ms.RoutingStatistics(window=1)
    for _ in range(3):
        of_far.update(there(*given), there.expert_map)
        of_near.update(near(inputs, None, mask), near.expert_map)
    assert far.waits == []
    found, expected = of_far.summary(), of_near.summary()
    assert found.num_samples == expected.num_samples
    for name in ("load", "co_activation", "experts_per_sample"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    close(found.importance, expected.importance)
    assert abs(found.sample_entropy - expected.sample_entropy) < 1e-5
    assert np.array_equal(of_far.loads(), of_near.loads())


def move(setting):
    setting.model.to(FAR)
    setting.inputs, setting.targets = setting.inputs.to(FAR), setting.targets.to(FAR)
    setting.ids = None if setting.ids is None else setting.ids.to(FAR)


def array_bytes(problem):
    """What the arrays of a problem take."""
    return sum(value.nbytes for value in vars(problem).values() if isinstance(value, np.ndarray))


def lowering(far, name, head="deep"):
    near, there = make(name, head, 4, 4, samples=120), make(name, head, 4, 4, samples=120)
    move(there)
    far.waits.clear()
    found = lowered(there)
    crossed = far.bytes_to_cpu
    expected = lowered(near)
    assert type(found.problem) is type(expected.problem)
    assert abs(found.problem.value(expected.initial) - expected.problem.value(expected.initial)) < 1e-5
    # The arrays of the problem, and a few numbers for each sample: targets, losses, and what tells which loss it is.
    assert crossed <= array_bytes(found.problem) + 120 * 1000, (crossed, array_bytes(found.problem))


def lowering_of_several_gates(far):
    near, there = make_shared(samples=60), make_shared(samples=60)
    move(there)
    expected, found = lowered(near), lowered(there)
    assert abs(found.problem.value(expected.initial) - expected.problem.value(expected.initial)) < 1e-5


def lowering_of_tokens(far):
    near, first, _ = taught(sequences=20)
    there = as_far(near)
    expected = ms.lower_tokens(near, near.layers, first.inputs, first.targets, token_loss)
    found = ms.lower_tokens(there, there.layers, first.inputs.to(FAR), first.targets.to(FAR), token_loss)
    for ours, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.first_order.cost, other.first_order.cost, rtol=1e-3, atol=1e-6)


def search(far, k):
    torch.manual_seed(0)
    near = ms.MixtureOfExperts(ms.StackedExperts(4, FEATURES, OUTPUTS), ms.TopK(FEATURES, 4, k))
    inputs = torch.randn(400, FEATURES)
    targets = near(inputs).detach()
    near.gate.expert_map.scramble(torch.Generator().manual_seed(1))
    there, found = as_far(near), []
    device_dispatch.trial = lambda *_: {"grouped": 0.0}
    for module, batches in ((there, (inputs.to(FAR), targets.to(FAR))), (near, (inputs, targets))):
        searched = ms.PermutationSearch(
            module, module, loss=nn.functional.mse_loss, period=4, stop=ms.MaxIterations(500), confidence=0.0
        )
        optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
        for step, (x, y) in enumerate(zip(*(each.split(100) for each in batches), strict=True)):
            far.waits.clear()
            optimizer.zero_grad()
            (nn.functional.mse_loss(module(x), y) + module.regularization()).backward()
            optimizer.step()
            searched.step(x, y)
            # The first step tries model and loss, the last one searches.
            assert far.waits == [] or step in (0, 3), (step, far.waits)
        found.append((searched.history[0].outcome, module.gate.expert_map.experts.tolist()))
    assert found[0] == found[1]
    assert found[0][0] == "committed"


def specialization(far):
    """What is held out, and the state that was saved, come from the CPU, as from files."""
    torch.manual_seed(0)
    module = as_far(ms.MixtureOfExperts(ms.StackedExperts(3, FEATURES, OUTPUTS), ms.TopK(FEATURES, 3, 1)))
    optimizer = torch.optim.Adam(module.parameters())
    inputs, targets = torch.randn(4, 20, FEATURES), torch.randn(4, 20, OUTPUTS)
    options = {"loss": nn.functional.mse_loss, "until": 2, "check_after": 1, "optimizer": optimizer}
    specialized = ms.ExpertSpecialization(module, module, held_out=[(inputs[3], targets[3])], **options)
    for x, y in zip(inputs[:3], targets[:3], strict=True):
        optimizer.zero_grad()
        specialized.loss(x.to(FAR), y.to(FAR)).backward()
        optimizer.step()
        specialized.step()
        if specialized.check is None:
            state = specialized.state_dict()
            state["other"] = [tensor.cpu() for tensor in state["other"]]
            for each in state["other_optimizer"]:
                each.update({name: value.cpu() for name, value in each.items()})
            specialized.load_state_dict(state)
    assert specialized.check.verification.num_samples == 20


def jobs():
    yield from ((gate, (name,), {}) for name in GATES)
    for name in LAYER_GATES:
        yield from (
            (layer, (name, dispatch), {"masked": masked}) for dispatch in DISPATCHES for masked in (False, True)
        )
        yield layer, (name, "auto"), {"modules": True}
    yield from ((several_gates, (dispatch,), {}) for dispatch in DISPATCHES)
    yield from ((half_precision, (dispatch,), {}) for dispatch in DISPATCHES)
    yield from ((an_infinite_expert, (dispatch,), {}) for dispatch in DISPATCHES[1:])
    yield from (
        (job, (), {}) for job in (penalties, balancing, specialization, lowering_of_several_gates, lowering_of_tokens)
    )
    yield from ((statistics, (masked,), {}) for masked in (False, True))
    yield from ((lowering, (name,), {}) for name in ("hash", "top-1", "top-2", "comet"))
    yield from ((search, (k,), {}) for k in (1, 2))


def name_of(job, args, options):
    return " ".join([job.__name__, *map(str, args), *(f"{key}={value}" for key, value in options.items())])


def main(path):
    torch.set_num_threads(1)
    faults = {}
    for job, args, options in jobs():
        fault = ""
        device_dispatch._kept.clear()
        # What is fastest is no one's question here, and trials have threads of their own.
        device_dispatch.trial = lambda *_: {"dense": 0.0}
        try:
            with Far() as far:
                job(far, *args, **options)
        except Exception:
            fault = traceback.format_exc(limit=-6)
        faults[name_of(job, args, options)] = fault
    Path(path).write_text(json.dumps(faults), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
