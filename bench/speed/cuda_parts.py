"""The parts of `cuda_check`: each is given a device, whether to be as small as can be, and when to measure no more.

A part yields rows, made by `cuda_check.row`, as it finds them.
"""

from __future__ import annotations

import copy
import importlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import moe_search as ms
from moe_search.bench.speed.cuda_check import row
from moe_search.bench.speed.dispatch_cases import Case, cases, our_layer, peer_layer, refuses
from moe_search.layers.device_dispatch import chosen_path, most_experts, seconds_of
from moe_search.layers.dispatch import DISPATCHES
from moe_search.training.lowering.lowering import Lowering
from moe_search.training.search.candidate_map import SearchRecord

ROOT = Path(ms.__file__).parents[1]
"""The checkout, where the package is run from one."""

Row = dict[str, Any]

ROWS = 256
FEATURES, OUTPUTS, HIDDEN, EXPERTS, SLOTS = 8, 16, 32, 4, 8

SINGLE, HALF = (1e-3, 0.02), (0.1, 0.15)
"""How far numbers may be off, and the share of rows that may be off farther: those at the edge of a gate."""

BAR = 1.1
"""The most that "auto" may take, in times of the fastest way."""


def tests(device: str, smallest: bool, deadline: float) -> Iterator[Row]:
    """Run the tests that are marked for CUDA, of a checkout, and count them."""
    marked = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "pytest.mark.cuda" in path.read_text()]
    if not marked:
        yield row("tests", "files", 0, note="the tests are in a checkout, and this is the installed package")
        return
    # The demo takes what the other parts do without: matplotlib, scikit-learn and others.
    files = [str(path) for path in marked if "demo" not in path.parts][: 1 if smallest else None]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", f"--junitxml={report}", *files]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if not report.exists():
            yield row("tests", "pytest", fine=False, note=(done.stdout + done.stderr)[-300:])
            return
        counts: dict[str, int] = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
        root = ElementTree.parse(report).getroot()
        for suite in root.iter("testsuite"):
            for name in counts:
                counts[name] += int(suite.get(name, 0))
    on_cuda = device.startswith("cuda")
    for name, count in counts.items():
        wrong = name in ("failures", "errors") or (name == "skipped" and on_cuda)
        yield row("tests marked cuda", name, count, fine=not count if wrong else None)
    for case in root.iter("testcase"):
        for fault in (*case.iter("failure"), *case.iter("error")):
            yield row(str(case.get("name")), "test", fine=False, note=str(fault.get("message")))


def contract_gates() -> Mapping[str, Callable[[int, int], ms.Gate]]:
    """Return the gates of the contract's tests, by name; without a checkout or pytest, one of each kind."""
    sys.path.insert(0, str(ROOT / "tests" / "helpers"))
    try:
        contract: Any = importlib.import_module("gate_contract")
    except ImportError:
        return {
            "Softmax": lambda n, m: ms.Softmax(FEATURES, n, m),
            "TopK-2": lambda n, m: ms.TopK(FEATURES, n, 2, m),
            "EvenTopK-2": lambda n, m: ms.EvenTopK(FEATURES, n, 2, m, start=1.0),
            "HashRouting-features": lambda n, m: ms.HashRouting(n, m, in_features=FEATURES),
            "COMET-2": lambda n, m: ms.COMET(FEATURES, n, 2, m),
            "DSelectK-2": lambda n, m: ms.DSelectK(FEATURES, n, 2, m),
        }
    finally:
        sys.path.pop(0)
    contract.FEATURES = FEATURES
    return dict(contract.GATES)


@dataclass(frozen=True)
class Setting:
    """A gate of the contract, alone or in a layer, with its inputs, on the CPU."""

    name: str
    module: nn.Module
    inputs: Tensor
    ids: Tensor

    @property
    def gate(self) -> ms.Gate:
        """The gate itself."""
        return self.module.gate if isinstance(self.module, ms.MixtureOfExperts) else self.module  # type: ignore[return-value]

    def step(self, device: str, dtype: torch.dtype, autocast: bool) -> list[Tensor]:
        """Return the outputs of a forward by rows, in float32 on the CPU, and the gradients after a backward."""
        torch.manual_seed(0)
        module = copy.deepcopy(self.module).to(device, dtype)
        inputs, ids = self.inputs.to(device, dtype), self.ids.to(device)
        context = torch.autocast(torch.device(device).type, torch.bfloat16) if autocast else nullcontext()
        with context:
            outputs, penalty = outputs_of(module, inputs, ids)
        if outputs.requires_grad or penalty.requires_grad:
            torch.autograd.backward(outputs.float().square().mean() + penalty.float())
        found = [outputs.detach(), *(p.grad for p in module.parameters() if p.grad is not None)]
        return [each.float().cpu() for each in found]


def outputs_of(module: nn.Module, inputs: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the outputs of a layer, or the weights of experts by a gate, by rows; and the penalty."""
    if isinstance(module, ms.MixtureOfExperts):
        return module(inputs, ids), module.regularization()
    assert isinstance(module, ms.Gate)
    routing = module(inputs, ids)
    return module.expert_map(routing.weights), module.penalty(routing)


def settings(smallest: bool) -> Iterator[Setting]:
    """Yield every gate of the contract, alone and in a layer of every dispatch."""
    gates = contract_gates()
    for name, make in list(gates.items())[: 2 if smallest else None]:
        torch.manual_seed(0)
        gate = make(EXPERTS, SLOTS)
        if getattr(gate, "noise", None) is not None and not isinstance(gate, ms.SinkhornPermutation):
            gate.eval()  # two devices draw other noise
        gate.expert_map.scramble(torch.Generator().manual_seed(1))
        inputs, ids = torch.randn(ROWS, FEATURES), torch.randint(30, (ROWS,))
        yield Setting(f"gate {name}", gate, inputs, ids)
        for dispatch in DISPATCHES:
            layer = ms.MixtureOfExperts(ms.StackedExperts(EXPERTS, FEATURES, OUTPUTS, HIDDEN), gate, dispatch)
            yield Setting(f"layer {name} {dispatch}", layer, inputs, ids)


def equality(device: str, smallest: bool, deadline: float) -> Iterator[Row]:
    """Compare gates and layers, forward and backward, with the CPU in float32."""
    precisions = {
        "float32": (torch.float32, False, SINGLE),
        "bfloat16": (torch.bfloat16, False, HALF),
        "autocast": (torch.float32, True, HALF),
    }
    for setting in settings(smallest):
        dispatch = setting.module.dispatch if isinstance(setting.module, ms.MixtureOfExperts) else ""
        reference = copy.deepcopy(setting.module)
        if dispatch:
            reference.dispatch = "sorted"  # type: ignore[assignment]
        expected = Setting("", reference, setting.inputs, setting.ids).step("cpu", torch.float32, False)
        for name, (dtype, autocast, allowed) in precisions.items():
            if time.monotonic() > deadline:
                yield row(setting.name, name, note="no time was left")
                return
            try:
                found = setting.step(device, dtype, autocast)
            except Exception as error:
                # What grouped_mm does not take is an answer.
                refused = dispatch == "grouped" and 'dispatch="grouped" needs' in str(error)
                yield row(setting.name, name, fine=None if refused else False, note=f"{type(error).__name__}: {error}")
                continue
            yield compared(setting.name, name, found, expected, allowed)


def compared(case: str, measure: str, found: list[Tensor], expected: list[Tensor], allowed: tuple[float, float]) -> Row:
    """Return a row of the share of outputs, by rows, that are off, and of how much the gradients are together."""
    tolerance, share = allowed
    scale = expected[0].abs().amax().clamp(min=1e-3)
    off = float(((found[0] - expected[0]).abs().amax(-1) > tolerance * scale).float().mean())
    if len(found) != len(expected):
        return row(case, measure, off, fine=False, note=f"{len(found)} gradients and {len(expected)} on the CPU")
    gradients = zip(found[1:], expected[1:], strict=True)
    squares = [(float((a - b).square().sum()), float(b.square().sum())) for a, b in gradients]
    difference = (sum(a for a, _ in squares) / max(sum(b for _, b in squares), 1e-12)) ** 0.5 if squares else 0.0
    finite = all(bool(each.isfinite().all()) for each in found)
    fine = finite and off <= share and difference <= max(10 * tolerance, 2 * share)
    return row(case, measure, off, fine, f"share of rows off by more than {tolerance:g}; gradients by {difference:.2g}")


def compiled(device: str, smallest: bool, deadline: float) -> Iterator[Row]:
    """Compare compiled gates and layers with themselves uncompiled."""
    backend = "aot_eager" if smallest else "inductor"
    kinds = ("TopK-2",) if smallest else ("TopK-2", "COMET-2", "HashRouting-features", "DSelectK-2", "Softmax")
    wanted = {f"{what} {kind}{end}" for kind in kinds for what, end in (("gate", ""), ("layer", " auto"))}
    for setting in settings(False):
        if setting.name not in wanted:
            continue
        if time.monotonic() > deadline:
            yield row(setting.name, backend, note="no time was left")
            return
        module = copy.deepcopy(setting.module).to(device)
        inputs, ids = setting.inputs.to(device), setting.ids.to(device)
        found = []
        try:
            torch.compiler.reset()
            for call in (torch.compile(outputs_of, fullgraph=True, backend=backend), outputs_of):
                module.zero_grad()
                outputs, penalty = call(module, inputs, ids)
                if outputs.requires_grad:
                    torch.autograd.backward(outputs.square().mean() + penalty)
                gradients = [p.grad for p in module.parameters() if p.grad is not None]
                found.append([outputs.detach().cpu(), *(each.cpu() for each in gradients)])
        except Exception as error:
            yield row(setting.name, backend, fine=False, note=f"{type(error).__name__}: {error}")
            continue
        yield compared(setting.name, backend, found[0], found[1], SINGLE)


def graphs(device: str, smallest: bool, deadline: float) -> Iterator[Row]:
    """Capture a training step of layers in a CUDA graph, and compare what it replays with plain steps."""
    if not device.startswith("cuda"):
        yield row("CUDA graphs", "capture", note="there are none on this device")
        return
    for gate in ("TopK-2", "COMET-2", "HashRouting-features"):
        for dispatch in ("auto", "grouped", "dense"):
            case = f"layer {gate} {dispatch}"
            if time.monotonic() > deadline:
                yield row(case, "capture", note="no time was left")
                return
            try:
                yield _captured(case, gate, dispatch, device)
            except Exception as error:
                yield row(case, "capture", fine=False, note=f"{type(error).__name__}: {error}")


def _captured(case: str, gate: str, dispatch: str, device: str) -> Row:
    torch.manual_seed(0)
    experts = ms.StackedExperts(EXPERTS, FEATURES, OUTPUTS, HIDDEN)
    layer = ms.MixtureOfExperts(experts, contract_gates()[gate](EXPERTS, SLOTS), dispatch).to(device, torch.bfloat16)
    inputs = torch.randn(ROWS, FEATURES, device=device, dtype=torch.bfloat16)

    def step() -> Tensor:
        layer.zero_grad(set_to_none=False)
        outputs = layer(inputs)
        torch.autograd.backward(outputs.float().square().mean() + layer.regularization())
        return outputs

    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = step()
    inputs.copy_(torch.randn(ROWS, FEATURES).to(inputs))
    graph.replay()
    replayed = [
        outputs.detach().float().cpu(),
        *(p.grad.float().cpu() for p in layer.parameters() if p.grad is not None),
    ]
    plain = [step().detach().float().cpu(), *(p.grad.float().cpu() for p in layer.parameters() if p.grad is not None)]
    return compared(case, "capture", replayed, plain, HALF)


def dispatch(device: str, smallest: bool, deadline: float) -> Iterator[Row]:
    """Time "auto" and all ways by themselves, and the block of Transformers, at the sizes of the CPU's table and above.

    The large case comes first: the others are as many as the time allows, by turns from everywhere in the table.
    """
    large = Case(8192, 1024, 2048, 64, 2, "uniform", True)
    others = list(cases())
    order = [others[(37 * i) % len(others)] for i in range(len(others))]
    for case in order[:1] if smallest else (large, *order):
        if time.monotonic() > deadline:
            yield row("all others", "dispatch", note="no time was left")
            return
        yield from _dispatched(case, device, case is large)


def _dispatched(case: Case, device: str, large: bool) -> Iterator[Row]:
    torch.manual_seed(0)
    direction = "forward+backward" if case.backward else "forward"
    name, dtype = f"{case} {direction}", torch.float32 if device == "cpu" else torch.bfloat16
    router, inputs = case.router(), case.inputs().to(device, dtype).requires_grad_(case.backward)
    layer = our_layer(case, router).to(device, dtype)
    steps: dict[str, Callable[[], None]] = {}
    for way in DISPATCHES:
        refused = refuses(case, layer, way)
        # On a device the large one is within reach for all.
        if refused is None or (large and way == "dense"):
            steps[way] = _step(layer, inputs, case.backward, way)
    for peer in ("mixtral", "mixtral_grouped"):
        try:
            steps[peer] = _step(peer_layer(case, router, peer).to(device, dtype), inputs, case.backward)
        except (ImportError, ValueError) as error:
            yield row(name, peer, note=str(error))
    times: dict[str, list[float]] = {}
    where = torch.device(device)
    for _ in range(3):
        for way, step in steps.items():
            try:
                times.setdefault(way, []).append(1e3 * seconds_of(step, where))
            except RuntimeError as error:
                yield row(name, way, fine=None if way == "dense" else False, note=str(error)[:200])
        steps = {way: step for way, step in steps.items() if way in times}
    medians = {way: statistics.median(each) for way, each in times.items()}
    for way, milliseconds in medians.items():
        yield row(name, f"{way}, ms", milliseconds)
    best = min((way for way in medians if way in DISPATCHES[1:]), key=medians.__getitem__)
    if "auto" in medians:
        ratio = medians["auto"] / medians[best]
        # The rule of the CPU has a benchmark of its own.
        fine = None if device == "cpu" else ratio <= BAR
        yield row(name, "auto / best", ratio, fine, f"best {best}, auto {_choice(layer, inputs, case.backward)}")


def _step(layer: nn.Module, inputs: Tensor, backward: bool, way: str | None = None) -> Callable[[], None]:
    def step() -> None:
        if way is not None:
            layer.dispatch = way  # type: ignore[assignment]
        with torch.set_grad_enabled(backward):
            outputs = layer(inputs)
        if backward:
            torch.autograd.backward(outputs.float().square().sum())
            layer.zero_grad()
            inputs.grad = None

    return step


def _choice(layer: ms.MixtureOfExperts, inputs: Tensor, backward: bool) -> str:
    if inputs.is_cpu:
        return "by the rule of the CPU"
    assert isinstance(layer.experts, ms.StackedExperts)
    with torch.set_grad_enabled(backward):
        weights = layer.gate.expert_map(layer.gate(inputs).weights)
        return chosen_path(layer.experts, inputs, [weights], most_experts([layer.gate], len(layer.experts)))


class ToTheCPU(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within the context, counts the bytes that are copied from a device to the CPU."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count what it copies."""
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        source = args[1] if name == "copy_" else args[0] if name == "_to_copy" else None
        if isinstance(source, Tensor) and isinstance(found, Tensor) and found.is_cpu and not source.is_cpu:
            self.bytes += source.numel() * source.element_size()
        return found


@contextmanager
def no_waiting(device: str) -> Iterator[None]:
    """Within the context, whatever waits for the device raises RuntimeError, on CUDA."""
    if not device.startswith("cuda"):
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


SEARCH_KINDS = ("TopK, 2 slots, cross-entropy", "TopK, 1 slot, any loss", "TopK, 2 slots, asynchronous", "COMET")


def search(device: str, smallest: bool, deadline: float) -> Iterator[Row]:
    """Train with a search: its share of the time, steps that wait, and what crosses to the CPU."""
    for kind in SEARCH_KINDS[: 1 if smallest else None]:
        if time.monotonic() > deadline:
            yield row(kind, "search", note="no time was left")
            return
        try:
            yield from _searched(kind, device, smallest)
        except Exception as error:
            yield row(kind, "search", fine=False, note=f"{type(error).__name__}: {error}")


def _searched(kind: str, device: str, smallest: bool) -> Iterator[Row]:
    torch.manual_seed(0)
    width, n, size, period = (16, 4, 64, 5) if smallest else (256, 16, 4096, 25)
    steps = 2 * period if smallest else 4 * period
    gate = ms.COMET(width, n, 2) if kind == "COMET" else ms.TopK(width, n, 1 if "1 slot" in kind else 2)
    moe = ms.MixtureOfExperts(ms.StackedExperts(n, width, width, 2 * width), gate)
    model = nn.Sequential(moe, nn.Linear(width, 10)).to(device)
    inputs = torch.randn(size, width, device=device)
    targets = torch.randint(10, (size,), device=device)
    loss = nn.functional.cross_entropy
    lowered: list[tuple[SearchRecord, Lowering]] = []
    searching = ms.PermutationSearch(
        model,
        moe,
        loss=loss,
        period=period,
        until=steps,
        max_samples=min(size, 1024),
        asynchronous="asynchronous" in kind,
        on_search=lambda record, lowering, _: lowered.append((record, lowering)),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    half: AbstractContextManager[Any] = torch.autocast(torch.device(device).type, torch.bfloat16)
    waiting: list[str] = []
    crossed, sizes = [], []
    seconds, plain_steps, started = 0.0, 0, 0.0

    def step() -> None:
        optimizer.zero_grad()
        with half:
            value = loss(model(inputs).float(), targets) + moe.regularization()
        torch.autograd.backward(value)
        optimizer.step()
        searching.step(inputs, targets)

    def now() -> float:
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        return time.perf_counter()

    for number in range(1, steps + 1):
        # The first steps try the layer and the loss. In the others nothing is new but where a search comes, and where
        # one that ran on a thread is decided.
        plain = number > 3 and bool(number % period) and "asynchronous" not in kind
        if plain:
            started = started or now()
            try:
                with no_waiting(device):
                    step()
            except RuntimeError as error:
                waiting.append(str(error))
                break
            plain_steps += 1
            continue
        if started:
            seconds, started = seconds + now() - started, 0.0
        before = len(lowered)
        with ToTheCPU() as to_cpu:
            step()
        if len(lowered) > before:
            crossed.append(to_cpu.bytes)
            problem = lowered[-1][1].problem
            sizes.append(sum(each.nbytes for each in vars(problem).values() if isinstance(each, np.ndarray)))
    searching.finish()
    if plain_steps or waiting:
        note = waiting[0] if waiting else "" if device.startswith("cuda") else "only CUDA can tell"
        yield row(kind, "steps that wait", len(waiting), not waiting if device.startswith("cuda") else None, note)
    of_step = 1e3 * seconds / plain_steps if seconds else 0.0
    if of_step:
        yield row(kind, "a step, ms", of_step)
    if crossed and device != "cpu":
        # Beside the arrays: targets, losses, and what tells which loss it is, some numbers for each sample.
        most = statistics.median(sizes) + 1000 * min(size, 1024)
        bytes_crossed = statistics.median(crossed)
        note = f"{statistics.median(sizes):.0f} bytes are the problem's arrays"
        yield row(kind, "crosses to the CPU, bytes", bytes_crossed, bytes_crossed <= most, note)
    records = searching.history
    yield row(kind, "searches", len(records), bool(records) or bool(waiting))
    if records:
        of_search = 1e3 * statistics.median(record.seconds for record in records)
        yield row(kind, "a search, ms", of_search, note=", ".join(sorted({record.outcome for record in records})))
        if of_step:
            # At the default of a search every 100 steps.
            yield row(kind, "share at period 100", of_search / (100 * of_step))


def comet(device: str, smallest: bool, deadline: float) -> Iterator[Row]:
    """Time a training step of COMET over one of its own linear layer."""
    where = torch.device(device)
    for compile_it in (False,) if smallest else (False, True):
        for n, size in ((8, 64),) if smallest else ((16, 4096), (64, 4096), (64, 16384)):
            case = f"n={n}, {size} rows{', compiled' if compile_it else ''}"
            if time.monotonic() > deadline:
                yield row(case, "comet", note="no time was left")
                return
            try:
                yield from _over_linear(case, n, size, where, compile_it)
            except Exception as error:
                yield row(case, "comet", fine=False, note=f"{type(error).__name__}: {error}")


def _over_linear(case: str, n: int, size: int, device: torch.device, compile_it: bool) -> Iterator[Row]:
    torch.manual_seed(0)
    gate = ms.COMET(256, n, 2).to(device)
    inputs = torch.randn(size, 256, device=device)
    of_weights = torch.randn(size, 2, n, device=device)
    of_nodes = torch.randn(size, gate.nodes.out_features, device=device)

    def outputs(inputs: Tensor) -> tuple[Tensor, Tensor]:
        routing = gate(inputs)
        return routing.weights, gate.penalty(routing)

    call = torch.compile(outputs) if compile_it else outputs
    ours = 1e3 * seconds_of(lambda: torch.autograd.backward(call(inputs), (of_weights, None)), device)
    linear = 1e3 * seconds_of(lambda: gate.nodes(inputs).backward(of_nodes), device)
    yield row(case, "COMET, ms", ours)
    yield row(case, "its linear layer, ms", linear)
    yield row(case, "times", ours / linear)


def ranks(device: str, smallest: bool, deadline: float) -> Iterator[Row]:
    """Run one process over NCCL, and two over gloo that search together with tensors on the device."""
    from torch import distributed
    from torch.multiprocessing.spawn import spawn

    from moe_search.training.lowering.process_group import Ranks

    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if device.startswith("cuda") else "gloo"
        case = f"{backend}, one process"
        try:
            distributed.init_process_group(backend, init_method=f"file://{folder}/one", rank=0, world_size=1)
            here = Ranks(distributed.group.WORLD, lambda: torch.device(device))
            array = np.arange(5.0)
            found = [
                np.array_equal(here.sum(array.copy()), array),
                here.collect("a") == ["a"],
                here.gather("b") == ["b"],
                here.from_first(lambda: "c") == "c",
                here.agree(lambda: "d") == "d",
            ]
            yield row(case, "collectives that are right", sum(found), all(found))
            distributed.destroy_process_group()
        except Exception as error:
            yield row(case, "collectives", fine=False, note=f"{type(error).__name__}: {error}")
        case = "gloo, two processes"
        try:
            spawn(_rank, (folder, device), nprocs=2)  # type: ignore[no-untyped-call]
            first, second = (torch.load(f"{folder}/{rank}.pt") for rank in range(2))
        except Exception as error:
            yield row(case, "search", fine=False, note=f"{type(error).__name__}: {error}")
            return
        yield row(case, "searches", len(first["outcomes"]), len(first["outcomes"]) > 0)
        yield row(case, "the same outcomes", fine=first["outcomes"] == second["outcomes"], note=str(first["outcomes"]))
        yield row(case, "the same map", fine=torch.equal(first["map"], second["map"]))
        yield row(case, "the same weights", fine=torch.equal(first["weights"], second["weights"]))


def _rank(rank: int, folder: str, device: str) -> None:
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    distributed.init_process_group("gloo", init_method=f"file://{folder}/two", rank=rank, world_size=2)
    torch.manual_seed(0)
    router = ms.TopK(8, 4, k=1)
    moe = ms.MixtureOfExperts(ms.StackedExperts(4, 8, 8), router)
    inputs = torch.randn(256, 8)
    with torch.no_grad():
        targets = moe(inputs)
    moe.gate.expert_map.scramble(torch.Generator().manual_seed(1))
    model = nn.Sequential(moe).to(device)
    here = DistributedDataParallel(model)
    loss = nn.functional.mse_loss
    searching = ms.PermutationSearch(here, moe, loss=loss, period=2, stop=ms.MaxIterations(500))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x, y = (each[rank::2].to(device) for each in (inputs, targets))
    for start in range(0, 128, 32):
        optimizer.zero_grad()
        torch.autograd.backward(loss(here(x[start : start + 32]), y[start : start + 32]))
        optimizer.step()
        searching.step(x[start : start + 32], y[start : start + 32])
    found = {
        "map": moe.gate.expert_map.experts.cpu(),
        "weights": router.linear.weight.detach().cpu(),
        "outcomes": [record.outcome for record in searching.history],
    }
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()
