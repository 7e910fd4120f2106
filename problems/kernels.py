"""How kernels are declared: compiled once for all processes, found by the type of a problem's state, or plain Python.

A kernel is a function at the top level of a module that Numba can compile. It runs without the interpreter's lock, and
its machine code is kept on disk. With `NUMBA_DISABLE_JIT=1`, or for a state that is no NamedTuple, the same functions
run as plain Python.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, partial
from types import FunctionType
from typing import Any

import numpy as np
from numba import njit, types
from numba.core.dispatcher import Dispatcher
from numba.extending import overload

from moe_search.problems.kernel_cache import RESOLVERS, KernelCache

OPTIONS: dict[str, Any] = {"nogil": True, "no_cfunc_wrapper": True}
# Numba has no public name for it, and counts references to arrays and rows otherwise: `Transport` then takes 13 to 25 %
# more of a flow of many rows, and `TabuSearch` twice the time of moves between a dozen slots.
MAKES_NO_ARRAY = {"_nrt": False}


def compiled(function: Callable[..., Any], fastmath: bool | set[str] = False, allocates: bool = True) -> Any:
    """Declare a kernel; it may call others that stand below it in its file.

    One that makes no array and assigns to no slice may say so: it is compiled a tenth sooner, and its calls with arrays
    need no atomic operations.
    """
    options = OPTIONS | {"fastmath": fastmath} | ({} if allocates else MAKES_NO_ARRAY)
    dispatcher: Any = njit(**options)(function)
    if isinstance(dispatcher, Dispatcher):
        # Numba has no public way to keep machine code elsewhere than in its own files, which go stale.
        dispatcher._cache = KernelCache(dispatcher)  # type: ignore[attr-defined]
        _compile_once_for_kernels(dispatcher, options)
    return dispatcher


# Declares a kernel that does not allocate.
in_place = partial(compiled, allocates=False)


def _compile_once_for_kernels(dispatcher: Any, options: dict[str, Any]) -> None:
    """Let kernels that call this one compile it for themselves, without what a call from Python needs.

    It becomes a part of them and is not kept by itself. It is compiled once for all numbers that stand in their code,
    where Numba would do so once for each number.
    """
    inside = njit(**options, no_cpython_wrapper=True)(dispatcher.py_func)

    def template(arguments: Any, keywords: Any) -> Any:
        return inside.get_call_template(tuple(map(types.unliteral, arguments)), keywords)

    dispatcher.get_call_template, dispatcher.get_overload = template, inside.get_overload


def resolved(plain: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare what compiled code calls in place of a plain function, by the types of the arguments.

    Parameters
    ----------
    plain : callable
        The function as plain Python calls it.

    Returns
    -------
    callable
        A decorator of a function that is given Numba's types of the arguments and returns what to compile.
    """

    def register(resolve: Callable[..., Any]) -> Callable[..., Any]:
        RESOLVERS[plain] = resolve
        overload(plain, jit_options=OPTIONS)(resolve)
        return resolve

    return register


def kernel(
    generic: Any, state_class: type | None = None, allocates: bool = True
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as the kernel of `generic` for states of type `state_class`.

    Parameters
    ----------
    generic : callable
        A function made generic by `functools.singledispatch`, such as `moe_search.problems.moves.swap_delta`.
    state_class : type, optional
        The NamedTuple class of the problem's state. Without it, the function is the kernel of every class that
        registered none of its own.
    allocates : bool, default True
        As of `compiled`.

    Returns
    -------
    callable
        A decorator that registers a function which Numba can compile, with the signature of `generic`, and returns it
        unchanged.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        generic.register(object if state_class is None else state_class, function)

        def resolve(state: Any, *_: Any) -> Callable[..., Any] | None:
            # A NamedTuple whose fields all have one type reaches Numba as NamedUniTuple; this matches both.
            if not isinstance(state, types.BaseNamedTuple):
                return None
            if state_class is None:
                return None if state.instance_class in generic.registry else function
            return function if state.instance_class is state_class else None

        # Numba asks for equal signatures and counts the annotations in.
        resolve.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
        overload(generic, jit_options=OPTIONS if allocates else OPTIONS | MAKES_NO_ARRAY)(resolve)
        return function

    return register


def kernel_for(state: Any, compiled_kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Return a compiled kernel as it is for a NamedTuple of arrays, and as plain Python for any other state."""
    if isinstance(state, tuple):
        return compiled_kernel
    python = _as_python(compiled_kernel)

    def run(*arguments: Any) -> Any:
        # Random numbers are made by multiplications that overflow on purpose.
        with np.errstate(over="ignore"):
            return python(*arguments)

    return run


@cache
def _as_python(compiled_kernel: Any) -> FunctionType:
    """Return the Python function of a compiled kernel, which calls the Python functions of other kernels in turn."""
    python = getattr(compiled_kernel, "py_func", compiled_kernel)
    names = dict(python.__globals__)
    for name in python.__code__.co_names:
        if hasattr(names.get(name), "py_func"):
            names[name] = _as_python(names[name])
    return FunctionType(python.__code__, names, python.__name__, python.__defaults__)
