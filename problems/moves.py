"""Kernels of moves: the change a move makes to the value of a problem, and the move itself.

A compiled search reaches the kernels of a problem through `swap_delta` and `commit_swap`, which Numba resolves by the
type of the NamedTuple that holds the problem's arrays, so one compiled search serves every problem class. An insertion
is a slide, that is a run of swaps of neighbouring seats, hence every problem that can swap can insert.

With `NUMBA_DISABLE_JIT=1` the same functions run as plain Python.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import singledispatch
from typing import Any

from numba import njit, types
from numba.extending import overload


@singledispatch
def swap_delta(state: Any, a: int, b: int) -> Any:
    """Return the change in value when slots `a` and `b` of one block exchange their seats."""
    raise TypeError(f"no swap_delta kernel is registered for {type(state).__name__}")


@singledispatch
def commit_swap(state: Any, a: int, b: int) -> None:
    """Exchange the seats of slots `a` and `b` of one block and bring the arrays of `state` up to date."""
    raise TypeError(f"no commit_swap kernel is registered for {type(state).__name__}")


def kernel(generic: Any, state_class: type | None = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as the kernel of `generic` for states of type `state_class`.

    Parameters
    ----------
    generic : callable
        A function made generic by `functools.singledispatch`, such as `swap_delta`.
    state_class : type, optional
        The NamedTuple class of the problem's state. Without it, the function is the kernel of every class that
        registered none of its own.

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
        overload(generic, jit_options={"nogil": True})(resolve)
        return function

    return register


@njit(cache=True, nogil=True)
def exchange_seats(permutation: Any, order: Any, a: int, b: int) -> None:
    """Exchange the seats of slots `a` and `b` in a permutation and in its inverse."""
    permutation[a], permutation[b] = permutation[b], permutation[a]
    order[permutation[a]] = a
    order[permutation[b]] = b


@njit(cache=True, nogil=True)
def copy_permutation(target: Any, source: Any) -> None:
    """Copy a permutation into an array of its size."""
    # With target[:] = source Numba compiles a check of the shapes and its message, for four seconds in every kernel.
    for k in range(target.shape[0]):
        target[k] = source[k]


@njit(cache=True, nogil=True)
def insertion_delta(state: Any, origin: int, destination: int) -> Any:
    """Return the change in value when the slot at seat `origin` is taken out and put back at seat `destination`.

    The slots between shift by one seat. The state is slid there and back, so integer states come back unchanged and
    floating-point ones up to rounding.
    """
    delta = slide(state, origin, destination)
    slide(state, destination, origin)
    return delta


@njit(cache=True, nogil=True)
def commit_insertion(state: Any, origin: int, destination: int) -> None:
    """Take the slot at seat `origin` out, put it back at seat `destination`; those between shift by one seat."""
    slide(state, origin, destination)


@njit(cache=True, nogil=True)
def slide(state: Any, origin: int, destination: int) -> Any:
    """Carry the slot at seat `origin` to seat `destination` by swaps of neighbours; return the change in value."""
    step = 1 if destination > origin else -1
    carried = state.order[origin]
    # Adding to the delta of a slot with itself, which is zero, gives the sum the type of a delta.
    delta = swap_delta(state, carried, carried)
    seat = origin
    while seat != destination:
        neighbour = state.order[seat + step]
        delta += swap_delta(state, carried, neighbour)
        commit_swap(state, carried, neighbour)
        seat += step
    return delta
