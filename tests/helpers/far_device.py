"""A device called "far", for tests of code that is to run on an accelerator where there is none.

Its tensors are those of the CPU behind a wrapper, so that numbers and gradients are real. Two tensors of different
devices do not mix, as on any device, and what a process would wait for is written down: numbers that are read, sizes
that depend on numbers, copies from and to the CPU.

It can be had once in a process, which stays marked by it: tests of it run in one of their own.
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from moe_search.gates import batch_checks
from moe_search.layers.stacked_experts import GROUPED_DTYPES

READS = ("_local_scalar_dense", "nonzero", "equal", "bincount", "masked_select", "unique2", "unique_consecutive")


class Module:
    """What torch asks of a module of a device."""

    is_available = is_initialized = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    manual_seed_all = staticmethod(lambda seed: None)
    _is_in_bad_fork = staticmethod(lambda: False)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16])
    get_rng_state = staticmethod(lambda device=0: torch.get_rng_state())
    set_rng_state = staticmethod(lambda state, device=0: torch.set_rng_state(state))
    synchronize = staticmethod(lambda device=None: None)


_setup_privateuseone_for_python_backend("far", Module())
FAR = torch.device("far:0")
GROUPED_DTYPES["far"] = (torch.float32, torch.bfloat16)


class FarTensor(Tensor):
    @staticmethod
    def __new__(cls, here):
        far = Tensor._make_wrapper_subclass(
            cls, here.shape, here.stride(), here.storage_offset(), dtype=here.dtype, device=FAR
        )
        far.here = here
        return far

    def tolist(self):
        return self.cpu().tolist()

    def __repr__(self):
        return f"FarTensor({self.here})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {}, [])


class Far(TorchDispatchMode):
    """Within the context there is the device; `waits` are what a process would have waited for, with bytes."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {}, self.waits)

    @property
    def bytes_to_cpu(self):
        return sum(size for name, size in self.waits if name == "to the CPU")


_is_plain = batch_checks.has_memory
batch_checks.has_memory = lambda tensor: isinstance(tensor, FarTensor) or _is_plain(tensor)


def _run(func, args, kwargs, waits):
    name = func.overloadpacket.__name__
    given = tree_leaves((args, kwargs))
    far = [each for each in given if isinstance(each, FarTensor)]
    near = [each for each in given if isinstance(each, Tensor) and not isinstance(each, FarTensor)]
    device = kwargs.get("device")
    is_far = bool(far) if device is None else torch.device(device).type == FAR.type
    if name == "_to_copy" and bool(far) != is_far:
        waits.append(("to the CPU" if far else "from the CPU", _bytes(given[0])))
    elif name == "copy_" and far and near:
        waits.append(("from the CPU" if isinstance(args[0], FarTensor) else "to the CPU", _bytes(args[1])))
        is_far = isinstance(args[0], FarTensor)
    elif far and any(each.ndim > 0 for each in near):
        raise RuntimeError(f"{func} got tensors of two devices: {[tuple(each.shape) for each in near]} are on the CPU")
    elif far and _reads(name, args, kwargs):
        waits.append((name, _bytes(far[0])))
    args_here, kwargs_here = tree_map_only(FarTensor, lambda each: each.here, (args, kwargs))
    if device is not None:
        kwargs_here = {**kwargs_here, "device": torch.device("cpu")}
    found = func(*args_here, **kwargs_here)
    if not is_far:
        # What came from afar must not share memory with what stays there.
        return found.clone() if name == "_to_copy" and far and found is far[0].here else found
    known = {id(each.here): each for each in far}
    found = tree_map_only(Tensor, lambda each: known[id(each)] if id(each) in known else FarTensor(each), found)
    return return_and_correct_aliasing(func, args, kwargs, found) if far else found


def _reads(name, args, kwargs):
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    if name in ("index", "index_put", "index_put_"):
        return any(isinstance(each, Tensor) and each.dtype == torch.bool for each in args[1])
    return name.lstrip("_") in tuple(each.lstrip("_") for each in READS)


def _bytes(tensor):
    return tensor.numel() * tensor.element_size()
