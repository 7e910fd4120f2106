"""Modules made on the device meta, emptied, and started anew, in the orders in which libraries do it."""

import warnings

import pytest
import torch
from gate_contract import GATES, batch, every_gate, make_seeded
from torch import nn

from moe_search.gates.hash_routing import HashRouting
from moe_search.gates.top_k import TopK
from moe_search.layers.mixture_of_experts import MixtureOfExperts
from moe_search.layers.multi_gate_mixture_of_experts import MultiGateMixtureOfExperts
from moe_search.layers.stacked_experts import StackedExperts

LAYERS = {
    "one map": lambda: StackedExperts(3, 5, 2),
    "two maps": lambda: StackedExperts(3, 5, 2, hidden_features=4),
    "gated": lambda: StackedExperts(3, 5, 2, 4, nn.SiLU, gated=True, bias=False),
    "shared": lambda: MixtureOfExperts(
        StackedExperts(3, 5, 2),
        TopK(5, 3, 2),
        shared=StackedExperts(1, 5, 2, 4, nn.SiLU, gated=True),
        shared_gate=nn.Linear(5, 1),
    ),
    "mixture": lambda: MixtureOfExperts(StackedExperts(3, 5, 2), TopK(5, 3, 2, noise=True)),
    "several gates": lambda: MultiGateMixtureOfExperts(
        StackedExperts(3, 5, 2), [TopK(5, 3, 2), TopK(5, 3, 1)], shared_map=True
    ),
}
MODULES = {name: lambda make=make: make(3, 6) for name, make in GATES.items()} | LAYERS
every_module = pytest.mark.parametrize("make", MODULES.values(), ids=MODULES.keys())


def emptied(make):
    """A module from the device meta, of memory garbage."""
    with torch.device("meta"):
        module = make()
    assert all(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))
    module.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.fill_(torch.nan if tensor.is_floating_point() else -7)
    return module


def reset(module):
    if any(True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False))):
        module.reset_parameters()  # as FSDP does: who owns a tensor has the method


def parents_first(module):
    for each in module.modules():
        reset(each)


@every_module
@pytest.mark.parametrize("start", [parents_first, lambda module: module.apply(reset)], ids=["parents", "children"])
def test_who_owns_a_tensor_starts_it_anew(make, start):
    module, fresh = emptied(make), [make().state_dict() for _ in range(40)]
    start(module)
    assert module.state_dict().keys() == fresh[0].keys()
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            # Entry by entry, none is more than twice the largest of forty, which a uniform one never is.
            bound = torch.stack([state[name].abs() for state in fresh]).amax(0)
            assert bool((tensor.abs() <= 2 * bound).all()), name
        else:
            assert torch.equal(tensor, fresh[0][name]), name


@every_gate
def test_a_gate_starts_anew_as_it_started(make):
    gate, fresh = make_seeded(make, seed=3), make_seeded(make, seed=3)
    with torch.no_grad():
        for tensor in (*gate.parameters(), *gate.buffers()):
            tensor.fill_(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        gate.reset_parameters()
    for name, tensor in gate.state_dict().items():
        assert torch.equal(tensor, fresh.state_dict()[name]), name
    state = torch.get_rng_state()
    weights = gate(*batch()).weights
    torch.set_rng_state(state)
    assert torch.equal(weights, fresh(*batch()).weights)


@pytest.mark.parametrize("hidden", [None, 4])
def test_experts_start_anew_as_they_started(hidden):
    torch.manual_seed(3)
    fresh = StackedExperts(3, 5, 2, hidden)
    experts = emptied(lambda: StackedExperts(3, 5, 2, hidden))
    torch.manual_seed(3)
    experts.reset_parameters()
    for name, tensor in experts.state_dict().items():
        assert torch.equal(tensor, fresh.state_dict()[name]), name


@every_gate
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("garbage", [0, -7, 2**40])
def test_a_map_that_is_none_is_refused_at_the_first_forward(make, training, garbage):
    gate = make(3, 6).train(training)
    weights = torch.full((2, gate.num_selectors, 6), 1 / (6 * gate.num_selectors))
    gate.expert_map(weights)
    gate = gate.to_empty(device="cpu")
    gate.expert_map.experts.fill_(garbage)
    with pytest.raises(ValueError, match="was emptied, or made on the device meta, starts anew by reset_parameters"):
        gate.expert_map(weights)
    gate.expert_map.reset_parameters()
    gate.expert_map(weights)


def test_a_table_that_was_given_is_kept():
    table = torch.tensor([2, 0, 1, 1])
    gate = HashRouting(3, table=table)
    table.fill_(0)  # it was copied
    gate.to_empty(device="cpu").reset_parameters()
    assert gate.table.tolist() == [2, 0, 1, 1]


@every_gate
def test_what_transformers_has_loaded_is_left(make):
    """Its initialization runs over modules that are loaded too, and marks their tensors."""
    gate = make_seeded(make)
    gate.expert_map.scramble(torch.Generator().manual_seed(0))
    before = {name: tensor.clone() for name, tensor in gate.state_dict().items()}
    initialization = pytest.importorskip("transformers.initialization", reason="of transformers >= 5")
    for tensor in (*gate.parameters(), *gate.buffers()):
        tensor._is_hf_initialized = True
    with initialization.guard_torch_init_functions():
        gate.reset_parameters()
    for name, tensor in gate.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_dense_checkpoint_of_transformers_in_a_model_with_a_mixture(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers", reason="the extra transformers")

    class Config(transformers.PretrainedConfig):
        model_type = "of-a-test"

        def __init__(self, mixture=False, **options):
            super().__init__(**options)
            self.mixture = mixture

    class Model(transformers.PreTrainedModel):
        config_class = Config

        def __init__(self, config):
            super().__init__(config)
            self.first = nn.Linear(5, 5)
            if config.mixture:
                self.layers = nn.ModuleList(
                    MixtureOfExperts(StackedExperts(3, 5, 5, 4), gate)
                    for gate in [
                        GATES[name](3, 6)
                        for name in (
                            "TopK-2",
                            "HashRouting-features",
                            "COMET-torch",
                            "Annealed-COMET-2",
                            "Sinkhorn-TopK-2",
                        )
                    ]
                )
            self.post_init()

        def _init_weights(self, module):
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()

        def forward(self, inputs):
            inputs = self.first(inputs)
            for layer in self.layers if self.config.mixture else ():
                inputs = inputs + layer(inputs)
            return inputs

    Model(Config()).save_pretrained(tmp_path / "dense")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Model.from_pretrained(tmp_path / "dense", config=Config(mixture=True))
    fresh = Model(Config(mixture=True))
    for name, tensor in model.state_dict().items():
        assert bool(tensor.isfinite().all()), name
        if not tensor.is_floating_point():
            assert torch.equal(tensor, fresh.state_dict()[name]), name
    assert bool(model.train()(torch.randn(7, 5)).isfinite().all())

    # What a search has found comes back with a checkpoint.
    for layer in model.layers:
        layer.gate.expert_map.scramble(torch.Generator().manual_seed(1))
    for layer in model.layers[-2:]:
        layer.gate.step()
    model.save_pretrained(tmp_path / "sparse")
    again = Model.from_pretrained(tmp_path / "sparse")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    inputs = torch.randn(7, 5)
    assert torch.equal(again.eval()(inputs), model.eval()(inputs))
