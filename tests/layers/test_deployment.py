"""Every way by which torch makes something to deploy of a module: gates, and layers of every dispatch.

A new gate is one line in `gate_contract.GATES`.
"""

import copy
import io
import shutil

import pytest
import torch
from gate_contract import FEATURES, GATES, batch, make_seeded
from torch import nn

from moe_search.gates.gate import Gate
from moe_search.gates.top_k import TopK
from moe_search.layers.mixture_of_experts import MixtureOfExperts
from moe_search.layers.multi_gate_mixture_of_experts import MultiGateMixtureOfExperts
from moe_search.layers.stacked_experts import StackedExperts

pytestmark = pytest.mark.slow


class ExpertWeights(nn.Module):
    """A gate with its map, from tensors to a tensor."""

    def __init__(self, gate):
        super().__init__()
        self.gate = gate

    def forward(self, inputs, ids):
        return self.gate.expert_map(self.gate(inputs, ids).weights)


class Layer(nn.Module):
    """A layer between two others."""

    def __init__(self, moe, width=FEATURES):
        super().__init__()
        self.first, self.moe, self.last = nn.Linear(FEATURES, width), moe, nn.Linear(4, 2)

    def forward(self, inputs, ids):
        return self.last(self.moe(self.first(inputs), ids))


def stacked(dispatch):
    """A layer of widths that `grouped_mm` takes."""
    return Layer(MixtureOfExperts(StackedExperts(3, 8, 4, 8), TopK(8, 3, 2, 6), dispatch=dispatch), 8)


def several():
    gates = [make_seeded(GATES["TopK-2"]), make_seeded(GATES["COMET-2"])]
    return Layer(MultiGateMixtureOfExperts(StackedExperts(3, FEATURES, 4), gates))


LAYERS = {
    dispatch: lambda dispatch=dispatch: stacked(dispatch) for dispatch in ("auto", "dense", "sorted", "grouped")
} | {
    "modules": lambda: Layer(
        MixtureOfExperts([nn.Linear(FEATURES, 4) for _ in range(3)], make_seeded(GATES["TopK-2"]), dispatch="sorted")
    ),
    "several gates": several,
}
MODULES = {name: lambda make=make: ExpertWeights(make_seeded(make)) for name, make in GATES.items()} | LAYERS
OURS = Gate, MixtureOfExperts, MultiGateMixtureOfExperts
every_module = pytest.mark.parametrize("make", MODULES.values(), ids=MODULES.keys())


def evaluated(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = make().eval()
    for gate in module.modules():
        if hasattr(gate, "expert_map"):
            gate.expert_map.scramble(torch.Generator().manual_seed(1))
    return module.requires_grad_(False)


def assert_same(module, deployed, sizes=(2, 7, 30)):
    for size in sizes:
        torch.testing.assert_close(deployed(*batch(size, seed=size)), module(*batch(size, seed=size)))


def dynamic():
    size = torch.export.Dim("batch", min=2, max=4096)
    return {0: size}, {0: size}


@every_module
def test_exported(make):
    module, file = evaluated(make), io.BytesIO()
    program = torch.export.export(module, batch(7), dynamic_shapes=dynamic())
    assert_same(module, program.module())
    torch.export.save(program, file)
    file.seek(0)
    assert_same(module, torch.export.load(file).module())
    # The map is a buffer of the program, not a number in it.
    for name, buffer in program.module().named_buffers():
        if name.endswith("expert_map.experts"):
            assert torch.equal(buffer, module.get_buffer(name))


@pytest.mark.parametrize("strict", [True, False])
def test_exported_in_training_mode(strict):
    """As quantization-aware training does."""
    module = evaluated(LAYERS["auto"]).train()
    program = torch.export.export(module, batch(7), dynamic_shapes=dynamic(), strict=strict)
    assert_same(module, program.module())
    assert module.moe.routing is not None  # of the real forward
    assert float(module.moe.regularization()) == 0


@every_module
@pytest.mark.parametrize("dynamo", [True, False], ids=["of programs", "of traces"])
@pytest.mark.filterwarnings("ignore")  # of the exporters' own
def test_run_by_onnxruntime(make, dynamo):
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason="torch.onnx needs it")
    runtime = pytest.importorskip("onnxruntime", reason="it runs what was exported")
    module, file = evaluated(make), io.BytesIO()
    names = ["inputs", "ids"]
    if dynamo:
        torch.onnx.export(module, batch(7), dynamo=True, dynamic_shapes=dynamic(), verbose=False).save(file)
    else:
        axes = {name: {0: "batch"} for name in names}
        torch.onnx.export(module, batch(7), file, dynamo=False, input_names=names, dynamic_axes=axes)
    session = runtime.InferenceSession(file.getvalue())
    taken = [put.name for put in session.get_inputs()]

    def deployed(inputs, ids):
        given = {"inputs": inputs.numpy(), "ids": ids.numpy()}
        return torch.from_numpy(session.run(None, {name: given[name] for name in taken})[0])

    assert_same(module, deployed)


@every_module
def test_compiled(make):
    module = evaluated(make)
    torch.compiler.reset()
    assert_same(module, torch.compile(module, dynamic=True, backend="eager"))


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_packaged_by_aot_inductor(tmp_path):
    """One module of each kind, all in one program: each takes the compiler some ten seconds."""

    class All(nn.ModuleList):
        def forward(self, inputs, ids):
            return tuple(module(inputs, ids) for module in self)

    kinds = {name.split("-")[0]: name for name in GATES}
    modules = All(evaluated(MODULES[name]) for name in (*kinds.values(), "auto", "several gates"))
    program = torch.export.export(modules, batch(7), dynamic_shapes=dynamic())
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "all.pt2"))
    assert_same(modules, torch._inductor.aoti_load_package(path))


@every_module
def test_traced_symbolically(make):
    module = evaluated(make)
    graph = torch.fx.symbolic_trace(module)
    assert_same(module, graph)
    assert any(
        node.op == "call_module" and isinstance(graph.get_submodule(node.target), OURS) for node in graph.graph.nodes
    )
    # The map is the module's, not a number in the graph.
    for gate in module.modules():
        if hasattr(gate, "expert_map"):
            gate.expert_map.scramble(torch.Generator().manual_seed(3))
    assert_same(module, graph)


@every_module
@pytest.mark.filterwarnings("ignore")  # of torch.jit, that it is deprecated, and of constants
def test_traced(make):
    module = evaluated(make)
    assert_same(module, torch.jit.trace(module, batch(7), check_trace=False))


@every_module
@pytest.mark.filterwarnings("ignore")  # that torch.ao is deprecated
def test_quantized(make):
    """Linear layers of int8: their weight is a method, and they take float32."""
    module = evaluated(make)
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(module), {nn.Linear})
    outputs, expected = quantized(*batch(30)), module(*batch(30))
    assert outputs.shape == expected.shape
    # A sample near a border may go to another expert.
    near = (outputs - expected).abs().flatten(1).amax(1) <= 0.1
    assert float(near.double().mean()) >= 0.8


@every_module
def test_weights_of_integers_are_no_precision_of_inputs(make):
    """As bitsandbytes and others keep them."""

    class Packed(nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.linear = [linear]
            self.weight = nn.Parameter(torch.zeros(1, dtype=torch.int8), requires_grad=False)

        def forward(self, inputs):
            return self.linear[0](inputs)

    module = evaluated(make)
    packed = copy.deepcopy(module)
    for parent in list(packed.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                setattr(parent, name, Packed(child))
    assert_same(module, packed)


@every_module
def test_called_with_other_tensors(make):
    module, other = evaluated(make), evaluated(make)
    for gate in other.modules():
        if hasattr(gate, "expert_map"):
            gate.expert_map.scramble(torch.Generator().manual_seed(2))
    assert_same(other, lambda *args: torch.func.functional_call(module, other.state_dict(), args))


@every_module
@pytest.mark.filterwarnings("ignore")  # of torch.func.jvp, that torch.jit is deprecated
def test_mapped_over_samples_and_differentiated(make):
    """By `torch.func`: values, and derivatives in both modes, equal those of the batch."""
    module, (inputs, ids) = evaluated(make).double(), batch(7, dtype=torch.float64)
    if getattr(getattr(module, "moe", None), "dispatch", None) == "grouped":
        module.float()  # as grouped_mm takes it, which has no derivative in forward mode
        inputs = inputs.float()
    outputs = module(inputs, ids)
    mapped = torch.func.vmap(lambda x, i: module(x[None], i[None])[0])(inputs, ids)
    torch.testing.assert_close(mapped, outputs)
    factors = torch.randn_like(outputs)
    along = torch.randn_like(inputs)
    gradient = torch.func.grad(lambda x: (module(x, ids) * factors).sum())(inputs)
    each = torch.func.vmap(torch.func.grad(lambda x, i, f: (module(x[None], i[None])[0] * f).sum()))
    torch.testing.assert_close(each(inputs, ids, factors), gradient)
    if inputs.dtype == torch.float64:
        value, derivative = torch.func.jvp(lambda x: module(x, ids), (inputs,), (along,))
        torch.testing.assert_close(value, outputs)
        torch.testing.assert_close((derivative * factors).sum(), (gradient * along).sum())
