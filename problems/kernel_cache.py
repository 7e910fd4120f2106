"""Where compiled kernels are kept: never a stale one, and nothing fails without them.

A kernel is kept under a name that holds a hash of all that its machine code depends on: the types of its arguments, the
sources of every function that it can inline, the versions of what compiled it and the processor. Whatever is wrong with
the files, the kernel is compiled as if there were none.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import platform
import re
import signal
import sys
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import llvmlite
import numba
import numpy as np
from numba import types
from numba.core import event
from numba.core.caching import CompileResultCacheImpl
from numba.core.dispatcher import Dispatcher
from numba.core.serialize import dumps

LOGGER = logging.getLogger("moe_search")
HERE = Path(__file__).resolve().parent
DIGEST_BYTES = 32
STARTED = time.time()

RESOLVERS: dict[Callable[..., Any], Callable[..., Any]] = {}
"""What compiled code calls in place of a plain function: given the types of the arguments, it returns the kernel."""

_told: set[Any] = set()


@dataclass
class CompileTime:
    """Seconds that threads have spent on what only a first call does: compile or load kernels, and import.

    As a context it counts what is done inside, once where several threads do it at a time.
    """

    ended: float = 0.0
    depth: int = 0
    began: float = 0.0

    def __enter__(self) -> None:
        if self.depth == 0:
            self.began = time.perf_counter()
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        self.depth -= 1
        if self.depth == 0:
            self.ended += time.perf_counter() - self.began

    @property
    def seconds(self) -> float:
        """Seconds spent so far, those of what is being compiled included."""
        return self.ended + (time.perf_counter() - self.began if self.depth else 0.0)


class _OneThread(CompileTime):
    """Those of a thread, which are some of all."""

    def __enter__(self) -> None:
        super().__enter__()
        with _lock:
            _all_threads.__enter__()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        with _lock:
            _all_threads.__exit__()


class _Threads(threading.local):
    def __init__(self) -> None:
        self.time = _OneThread()


_threads = _Threads()
_all_threads, _lock = CompileTime(), threading.Lock()


def compile_time() -> CompileTime:
    """Return what the calling thread has spent on compiling, which grows as it compiles."""
    return _threads.time


def compile_time_of_all_threads() -> CompileTime:
    """Return how long any thread has been compiling, which grows as they compile."""
    return _all_threads


class _Watch(event.Listener):  # type: ignore[misc]
    """Adds up the time under Numba's lock, under which a kernel is looked for, compiled and kept.

    Ctrl-C has to wait for the end of the innermost one: LLVM calls Python back, where an exception would be lost and
    leave half a kernel.
    """

    def __init__(self) -> None:
        self.handler: Any = None
        self.interrupts: list[tuple[Any, Any]] = []

    def on_start(self, event: Any) -> None:
        if compile_time().depth == 0 and threading.current_thread() is threading.main_thread():
            self.handler = signal.getsignal(signal.SIGINT)
            if callable(self.handler):
                signal.signal(signal.SIGINT, lambda *given: self.interrupts.append(given))
        compile_time().__enter__()

    def on_end(self, event: Any) -> None:
        compile_time().__exit__()
        if threading.current_thread() is threading.main_thread() and callable(self.handler):
            if compile_time().depth == 0:
                signal.signal(signal.SIGINT, self.handler)
            if self.interrupts:
                given = self.interrupts.pop()
                self.interrupts.clear()
                self.handler(*given)


event.register("numba:compiler_lock", _Watch())


class KernelCache(CompileResultCacheImpl):  # type: ignore[misc]
    """The files of one kernel, with the methods that Numba calls.

    Parameters
    ----------
    dispatcher : Dispatcher
        The kernel.
    """

    # Numba's constructor looks for a folder and fails where there is none; what is inherited needs none.
    def __init__(self, dispatcher: Any) -> None:
        self.function = dispatcher.py_func
        self.options = _options(dispatcher)

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """Return the kernel as it was compiled for a signature, None if no file can be used."""
        target_context.refresh()
        name = self._file_name(signature, target_context.codegen())
        if name is not None:
            for folder in cache_folders():
                found = self._load(folder / name, target_context)
                if found is not None:
                    return found
        self._announce(signature, kept=name is not None)
        return None

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Keep a kernel that was compiled for a signature, if there is a place to write to."""
        name = self._file_name(signature, compiled.codegen)
        # Addresses in the machine code mean nothing to another process.
        if name is None or compiled.library.has_dynamic_globals:
            return
        reasons = []
        try:
            payload = dumps(self.reduce(compiled))
            for folder in cache_folders():
                try:
                    write_file(folder, name, hashlib.sha256(payload).digest() + payload)
                except OSError as error:
                    reasons.append(str(error))
                else:
                    return
        except Exception as error:
            # Whatever Numba and pickle raise, the kernel itself is compiled.
            reasons.append(str(error))
        _warn_once(
            "write",
            f"compiled kernels cannot be kept, so that every process compiles them anew ({'; '.join(reasons)}): "
            "set NUMBA_CACHE_DIR to a folder that can be written to",
        )

    def _load(self, path: Path, target_context: Any) -> Any:
        try:
            data = path.read_bytes()
            digest, payload = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
            if hashlib.sha256(payload).digest() != digest:
                raise ValueError("it is damaged")
            return self.rebuild(target_context, pickle.loads(payload))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Exception as error:
            # Numba, pickle and the modules of the types raise whatever they like; to compile mends all of it.
            _warn_once(
                "read",
                f"a kernel is compiled anew, since {path} cannot be used ({error}): "
                "if that comes again, delete its folder or set NUMBA_CACHE_DIR to another one",
            )
            return None

    def _announce(self, signature: Any, kept: bool) -> None:
        """Log that a kernel is compiled; the first one of a process is shown by default."""
        # Those that it calls are compiled within.
        if compile_time().depth > 1:
            return
        states = ", ".join(each.__name__ for each in state_classes(signature))
        first = "compiling" not in _told
        _told.add("compiling")
        LOGGER.log(
            logging.WARNING if first else logging.INFO,
            "moe_search compiles the kernel %s%s%s",
            self.function.__name__,
            f" for {states}" if states else "",
            f" and others: some seconds, {'once per installation' if kept else 'in every process'}; "
            "moe_search.warm_up() does it ahead"
            if first
            else "",
        )

    def _file_name(self, signature: Any, codegen: Any) -> str | None:
        """Return the name of the file for a signature, None if no other process could use it.

        Its last part is the hash of the sources, by which the files of older ones are told.
        """
        classes = state_classes(signature)
        for each in classes:
            if each.__module__ == "__main__" or "<locals>" in each.__qualname__:
                _warn_once(
                    each,
                    f"the kernels for {each.__qualname__} are compiled anew in every process, as it is a class of a "
                    "script, notebook or function; to have them kept, put it into a module that you import",
                )
                return None
        kernel = f"{self.function.__module__}.{self.function.__qualname__}"
        # Numba's names of types tell neither modules nor fields.
        types_of = [str(signature), *map(_described, classes)]
        parts = (
            re.sub(r"[^\w.]", "_", kernel),
            _hash(self.function.__code__.co_filename, *types_of, str(codegen.magic_tuple()), *_versions()),
            _hash(self.options, *sources(self.function, classes)),
        )
        return ".".join((*parts, "kernel"))


def cache_folders() -> list[Path]:
    """Return where compiled kernels are looked for; they are kept in the first of these that can be written to."""
    if numba.config.CACHE_DIR:
        return [Path(numba.config.CACHE_DIR) / "moe_search"]
    # Beside the package, so that what was compiled when a container was built serves every user of it.
    folders = [HERE / "__pycache__" / "kernels"]
    cached = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return [*folders, cached / "moe_search"] if cached.is_absolute() else folders


def folder_to_write() -> Path | None:
    """Return the folder in which kernels are kept, None if there is none that can be written to."""
    for folder in cache_folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    return None


def write_file(folder: Path, name: str, data: bytes) -> None:
    """Write a file at once, so that no other process reads half of it, and delete those that it makes stale."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{uuid.uuid4().hex}.part"
    try:
        part.write_bytes(data)
        part.replace(folder / name)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    for stale in set(folder.glob(name.rsplit(".", 2)[0] + ".*.kernel")) - {folder / name}:
        stale.unlink(missing_ok=True)


def state_classes(signature: Any) -> list[type]:
    """Return the NamedTuple classes among the types of a kernel's arguments and of their fields."""
    found: list[type] = []

    def walk(parts: Any) -> None:
        for each in parts:
            if isinstance(each, types.BaseNamedTuple) and each.instance_class not in found:
                found.append(each.instance_class)
            if isinstance(each, types.BaseTuple):
                walk(each)

    walk(getattr(signature, "args", signature))
    return found


def sources(function: Any, states: list[type]) -> Iterator[str]:
    """Yield all that a kernel is compiled from: its code, the values that it names, and the functions among these.

    Of the kernels registered for a generic function, those count which are registered for all states, for the states
    that the kernel is called with, and for NamedTuple classes that it names. Of a plain function, which compiled code
    may replace by a way that is not known here, and of classes such as enums, the whole file counts, too.
    """
    classes: list[type] = [object, *states]
    generics: list[Any] = []
    pending = [function]
    met: list[Any] = []
    while pending:
        each = pending.pop(0)
        if each in met:
            continue
        met.append(each)
        yield f"{each.__module__}.{each.__qualname__} {_code_text(each)}"
        for name, value in _values_named(each):
            yield f"{name} = {_described(value)}"
            if isinstance(value, Dispatcher):
                pending.append(value.py_func)
            elif isinstance(value, FunctionType) and hasattr(value, "registry"):
                generics.append(value)
            elif isinstance(value, FunctionType) and value in RESOLVERS:
                pending.append(RESOLVERS[value])
            elif isinstance(value, FunctionType):
                pending.append(value)
                if each not in RESOLVERS.values():
                    yield _text_of_file(value.__code__.co_filename)
            elif _is_named_tuple(value):
                classes.append(value)
        pending += [generic.registry[each] for generic in generics for each in classes if each in generic.registry]


def _values_named(function: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a function takes from its module, from modules that it names, and from the functions around it."""
    names = sorted({name for code in _codes(function.__code__) for name in code.co_names})
    outside = [(name, function.__globals__[name]) for name in names if name in function.__globals__]
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    outside += [(name, cell.cell_contents) for name, cell in cells]
    modules: list[ModuleType] = []
    for name, value in outside:
        if isinstance(value, ModuleType):
            # What a module holds may be a module.
            if value not in modules and not _is_versioned(value.__name__):
                modules.append(value)
                outside += [(f"{name}.{each}", getattr(value, each)) for each in names if hasattr(value, each)]
        elif isinstance(value, tuple):
            outside += [(f"{name}[{i}]", each) for i, each in enumerate(value)]
        if not (isinstance(value, (FunctionType, type)) and _is_versioned(value.__module__)):
            yield name, value


def _is_versioned(module: str) -> bool:
    """Return whether a module is one of those whose versions are part of the name of every file."""
    return module.partition(".")[0] in ("builtins", "math", "numba", "numpy", "llvmlite")


def _described(value: Any) -> str:
    """Return a text for a value that is the same in every process, and tells values apart that compile differently."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} {_hash(value.tobytes().hex())}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_described, value))})"
    if value is None or isinstance(value, (bool, int, float, complex, str, np.generic, np.dtype, types.Type)):
        return repr(value)
    if _is_named_tuple(value):
        return f"{value.__module__}.{value.__qualname__}{value._fields}"
    if isinstance(value, Dispatcher):
        return _options(value)
    kind = value if isinstance(value, (FunctionType, type)) else type(value)
    text = f"{type(value).__qualname__} {kind.__module__}.{kind.__qualname__} {getattr(value, '__name__', '')}"
    if isinstance(value, FunctionType) or _is_versioned(kind.__module__):
        return text
    # What an enum or an object of another kind compiles to, its file decides.
    return text + _text_of_file(getattr(sys.modules.get(kind.__module__), "__file__", None) or "")


def _options(dispatcher: Any) -> str:
    """Return what a kernel was declared with; a set has another order in every process."""
    options = dispatcher.targetoptions.items()
    return str(sorted((name, sorted(value) if isinstance(value, set) else value) for name, value in options))


def _is_named_tuple(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, tuple) and hasattr(value, "_fields")


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yield a code and those of the functions inside it."""
    yield code
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _codes(each)


def _code_text(function: FunctionType) -> str:
    """Return what a function does, without its comments, docstring and line numbers."""
    texts = [repr(function.__defaults__)]
    for code in _codes(function.__code__):
        consts = [each for each in code.co_consts if not isinstance(each, CodeType) and each != function.__doc__]
        texts.append(f"{code.co_code.hex()} {consts} {code.co_names} {code.co_varnames} {code.co_freevars}")
    return " ".join(texts)


@cache
def _text_of_file(path: str) -> str:
    """Return what a file holds; something that no other process has, if it may have changed since it was imported."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        return text if Path(path).stat().st_mtime < STARTED else uuid.uuid4().hex
    except (OSError, UnicodeDecodeError):
        return path


@cache
def _versions() -> tuple[str, ...]:
    """Return the versions of what compiles, and of how it is asked to."""
    text = _text_of_file(str(HERE / "kernels.py"))
    return platform.python_version(), np.__version__, numba.__version__, llvmlite.__version__, text


def _hash(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def _warn_once(key: Any, message: str) -> None:
    """Warn once in a process."""
    if key not in _told:
        _told.add(key)
        warnings.warn(message, RuntimeWarning, stacklevel=3)
