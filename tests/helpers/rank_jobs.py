"""What the processes of a group run in the tests of ranks; a module that a fresh process can import."""

import warnings

import pytest
import torch
from shared_map import make_shared
from specialists import make
from token_models import taught, token_loss
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from moe_search.solvers.engine.stop import MaxIterations
from moe_search.training.balance import LossFreeBalancing
from moe_search.training.lowering.losses import NonFiniteLossError
from moe_search.training.lowering.process_group import ALONE, ranks_of
from moe_search.training.search.permutation_search import PermutationSearch
from moe_search.training.specialization import ExpertSpecialization

RANKS, STEPS, SAMPLES = 2, 7, 32
KINDS = {
    "hash, any loss": "LinearAssignment",
    "top-2, any loss": "PairwiseAssignment",
    "top-2": "MixtureAssignment",
    "comet": "MixtureAssignment",
    "shared map": "MixtureAssignment",
    "shared map, any loss": "PairwiseAssignment",
}


def make_kind(kind):
    gate, _, any_loss = kind.partition(", ")
    if gate == "shared map":
        setting = make_shared(samples=SAMPLES * STEPS, noise=0.2)
        setting.loss = torch.nn.SmoothL1Loss() if any_loss else setting.loss
        setting.scramble()
        return setting
    setting = make(gate, "deep" if any_loss else "linear", 4, 4, samples=SAMPLES * STEPS, noise=0.2)
    if any_loss:
        setting.loss = torch.nn.SmoothL1Loss()
        setting.model.head[2].p = 0.0  # dropout, which would differ
    setting.scramble()
    return setting


def trained(setting, model, part, **options):
    """Train on a part of every batch: start and stop in it."""
    seen = []
    search = PermutationSearch(
        model,
        setting.moe,
        loss=setting.loss,
        period=3,
        batches=2,
        stop=MaxIterations(3_000),
        on_search=lambda *found: seen.append(found),
        **options,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for i in range(STEPS):
        inputs, targets, ids = setting.batch(SAMPLES * i + part[0], SAMPLES * i + part[1])
        optimizer.zero_grad()
        setting.loss(model(inputs, ids=ids), targets).backward()
        optimizer.step()
        search.step(inputs, targets, ids=ids)
    search.finish()
    return {
        "state": {name: tensor.clone() for name, tensor in setting.model.state_dict().items()},
        "records": [
            (
                r.step,
                r.problem,
                r.outcome,
                r.num_samples,
                r.value_before,
                r.value_found,
                r.verified_gain,
                r.standard_error,
            )
            for r in search.history
        ],
        "told": len(seen),
        "linearized": [lowering.linearized for _, lowering, _ in seen],
    }


def joined_run(rank, kind):
    setting = make_kind(kind)
    size = SAMPLES // RANKS
    return trained(setting, DistributedDataParallel(setting.model), (rank * size, (rank + 1) * size))


def asynchronous_run(rank, kind):
    setting = make_kind(kind)
    size = SAMPLES // RANKS
    model = DistributedDataParallel(setting.model)
    return trained(setting, model, (rank * size, (rank + 1) * size), asynchronous=True)


def limited_run(rank, kind):
    setting = make_kind(kind)
    size = SAMPLES // RANKS
    model = DistributedDataParallel(setting.model)
    return trained(setting, model, (rank * size, (rank + 1) * size), load_limit=1.0)


def searched(setting, batches, groups):
    """Search on batches of these sizes, the last two of which verify, by groups of four samples if asked."""
    search = PermutationSearch(setting.model, setting.moe, loss=setting.loss, stop=MaxIterations(3_000))
    parts = []
    for start, stop in batches:
        inputs, targets, ids = setting.batch(start, stop)
        parts.append((inputs, targets, ids, torch.arange(start, stop) // 4) if groups else (inputs, targets, ids))
    r = search.search_batches(parts[:-2], verify=parts[-2:])
    record = (r.step, r.problem, r.outcome, r.num_samples, r.value_before, r.value_found, r.verified_gain)
    return {"state": dict(setting.model.state_dict()), "records": [(*record, r.standard_error)]}


ALL_BATCHES = [(0, 40), (40, 47), (47, 90), (90, 110), (110, 150), (150, 170), (170, 200), (200, 224)]
"""The first five are the first rank's, where there are two."""


def searched_on_batches(rank, kind):
    return searched(make_kind(kind), ALL_BATCHES[5 * rank :][: 5 - 2 * rank], groups=kind == "hash, any loss")


def balanced(part):
    """Biases and loads after steps on a part of every batch."""
    setting = make_kind("top-2")
    balancing = LossFreeBalancing(setting.moe, rate=0.1, expert_limit=1.0, memory=0.5)
    for i in range(STEPS):
        setting.moe(setting.batch(SAMPLES * i + part[0], SAMPLES * i + part[1])[0])
        balancing.step()
    return setting.moe.gate.linear.bias.detach().clone(), balancing.slot_loads


def balanced_run(rank, _):
    size = SAMPLES // RANKS
    return balanced((rank * size, (rank + 1) * size))


def specialized(setting, model, part):
    """Train on a part of every batch by competition, and stay with the copy that was trained without."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    specialization = ExpertSpecialization(
        model,
        setting.moe,
        loss=setting.loss,
        until=STEPS - 2,
        assigned=0,
        optimizer=optimizer,
        held_out=[setting.batch(*part)],
        check_after=1,
        confidence=1e9,
    )
    for i in range(STEPS):
        optimizer.zero_grad()
        specialization.loss(*setting.batch(SAMPLES * i + part[0], SAMPLES * i + part[1])).backward()
        optimizer.step()
        specialization.step()
    found = specialization.check.verification
    return dict(setting.model.state_dict()), found.gain, found.num_samples


def specialized_run(rank, kind):
    setting = make_kind(kind)
    size = SAMPLES // RANKS
    return specialized(setting, DistributedDataParallel(setting.model), (rank * size, (rank + 1) * size))


def one_rank_not_finite(rank, _):
    setting = make_kind("top-2")
    search = PermutationSearch(setting.model, setting.moe, loss=setting.loss, period=2)
    targets = setting.targets.clone()
    if rank == 1:
        targets[:] = torch.nan
    search.step(setting.inputs, targets)
    with pytest.warns(RuntimeWarning, match="given up"):
        return search.step(setting.inputs, targets).outcome


def one_rank_too_small(rank, _):
    setting = make_kind("top-2")
    search = PermutationSearch(setting.model, setting.moe, loss=setting.loss, period=2)
    for count in (SAMPLES, 1 if rank == 1 else 20, SAMPLES, SAMPLES):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            search.step(setting.inputs[:count], setting.targets[:count])
    return [(record.outcome, record.reason) for record in search.history]


def one_rank_unsearchable(rank, _):
    setting = make_kind("top-2")
    loss = torch.nn.MSELoss(reduction="sum" if rank == 1 else "mean")
    search = PermutationSearch(setting.model, setting.moe, loss=loss, period=2)
    try:
        search.step(setting.inputs, setting.targets)
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"


def solver_fails_with_a_warning(rank, _):
    class Broken:
        def solve(self, problem, stop, seed=0, initial=None):
            raise KeyError("no such move")

    setting = make_kind("top-2")
    search = PermutationSearch(
        setting.model, setting.moe, loss=setting.loss, period=2, solver=Broken(), on_error="warn"
    )
    for _ in range(4):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            search.step(setting.inputs, setting.targets)
    return [(record.step, record.outcome) for record in search.history]


def solver_fails(rank, _):
    class Broken:
        def solve(self, problem, stop, seed=0, initial=None):
            raise KeyError("no such move")

    setting = make_kind("top-2")
    search = PermutationSearch(setting.model, setting.moe, loss=setting.loss, period=2, solver=Broken())
    search.step(setting.inputs, setting.targets)
    try:
        search.step(setting.inputs, setting.targets)
    except (KeyError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"


def unlike_failures(rank, _):
    """What each rank is told where one loss is not finite and the other one has an error."""

    def fail():
        raise NonFiniteLossError("a loss of nan") if rank == 0 else TypeError("no loss")

    try:
        ranks_of(None, lambda: torch.device("cpu")).agree(fail)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def failed_and_resumed(rank, saved):
    """A solver that fails on the first rank, which is the one that solves, and what another run makes of the state.

    It is saved before or after the error has come.
    """

    class Broken:
        def solve(self, problem, stop, seed=0, initial=None):
            raise KeyError("no such move")

    def search(**options):
        options = {"loss": setting.loss, "period": 3, "asynchronous": True, "stop": MaxIterations(50), **options}
        return PermutationSearch(setting.model, setting.moe, **options)

    setting = make_kind("top-2")
    first, second = search(solver=Broken() if rank == 0 else None), search()
    for _ in range(3):
        first.step(setting.inputs, setting.targets)
    if saved == "after":
        with pytest.raises((KeyError, RuntimeError), match="no such move"):
            first.step(setting.inputs, setting.targets)
        assert first.step(setting.inputs, setting.targets) is None
    state = first.state_dict()
    has_one = [None] * RANKS
    distributed.all_gather_object(has_one, state["underway"] is not None)
    if len(set(has_one)) > 1:
        return "one rank would wait for the other"
    second.load_state_dict(state)
    while second.state_dict()["step"] < 6:
        second.step(setting.inputs, setting.targets)
    second.finish()
    return [(record.step, record.outcome) for record in second.history]


def model_moves(rank, kind):
    setting = make_kind(kind)
    weights = {name: tensor.clone() for name, tensor in setting.model.state_dict().items()}
    setting.model.to("meta")
    search = PermutationSearch(setting.model, setting.moe, loss=setting.loss, period=2, stop=MaxIterations(50))
    setting.model.to_empty(device="cpu").load_state_dict(weights)
    inputs, targets, ids = setting.batch()
    search.step(inputs, targets, ids=ids)
    return search.step(inputs, targets, ids=ids).outcome


def explicit_group(rank, _):
    alone = [distributed.new_group([r]) for r in range(RANKS)]
    setting = make_kind("top-2")
    found = ranks_of(alone[rank], lambda: torch.device("cpu")) is ALONE
    try:
        PermutationSearch(setting.model, setting.moe, loss=setting.loss, process_group=alone[1 - rank])
    except ValueError as error:
        return found, str(error)


def child(rank, folder, jobs):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    try:
        torch.save([job(rank, *arguments) for job, *arguments in jobs], folder / f"{rank}.pt")
    finally:
        distributed.destroy_process_group()


def searched_tokens(searched, verified):
    """Search the two layers of a model of tokens on a part of some sequences."""
    model, *_ = taught()
    for layer in model.double().layers:
        layer.gate.expert_map.scramble(torch.Generator().manual_seed(3))
    parts = [(part.inputs.double(), part.targets) for part in (searched, verified)]
    search = PermutationSearch(model, model.layers, loss=token_loss, stop=MaxIterations(3_000))
    search.search_batches(parts[:1], verify=parts[1:])
    records = [
        (r.step, r.problem, r.outcome, r.num_samples, r.value_before, r.verified_gain, r.standard_error)
        for r in search.history
    ]
    return {"state": dict(model.state_dict()), "records": records}


def tokens_run(rank, _):
    _, searched, verified = taught()
    cuts = slice(0, 25) if rank == 0 else slice(25, 60)
    return searched_tokens(searched.part(cuts.start, cuts.stop), verified.part(cuts.start, cuts.stop))


JOBS = [
    (tokens_run, None),
    *((joined_run, kind) for kind in KINDS),
    (asynchronous_run, "top-2"),
    (limited_run, "comet"),
    *((searched_on_batches, kind) for kind in KINDS if "shared map" not in kind),
    (balanced_run, None),
    (specialized_run, "top-2"),
    (one_rank_not_finite, None),
    (one_rank_too_small, None),
    (one_rank_unsearchable, None),
    (solver_fails, None),
    (solver_fails_with_a_warning, None),
    *((failed_and_resumed, saved) for saved in ("before", "after")),
    (unlike_failures, None),
    (model_moves, "hash, any loss"),
    (explicit_group, None),
]
