"""Runs at a time, each in a process that takes no other run with it when it dies."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from joblib import Parallel, cpu_count, delayed
from joblib.externals.loky import ProcessPoolExecutor
from joblib.parallel import ParallelBackendBase

# A process that has nothing to do for so long ends, also where the comparison was killed.
IDLE_SECONDS = 60.0


@dataclass(frozen=True)
class Died:
    """What came of a run whose process died.

    Attributes
    ----------
    reason : str
    """

    reason: str


Call = dict[str, Any]
Launch = Callable[[Callable[[Call], Any], Call], Any]


def completed(
    run: Callable[[Call], Any], calls: Iterable[Call], n_jobs: int, backend: str
) -> Iterator[tuple[Call, Any | Died]]:
    """Yield every call with what `run` returned for it, or `Died`, in the order of completion.

    Parameters
    ----------
    run : callable
        Of the top level of a module.
    calls : iterable of dict
        Its arguments; read as far as there are processes to take them.
    n_jobs : int
        Processes.
    backend : {"loky", "dask"}
        Processes of joblib, each a pool of its own, or workers of a local Dask cluster.
    """
    with _loky(n_jobs) if backend == "loky" else _dask(n_jobs) as launch:
        # The threads only wait.
        threads = Parallel(n_jobs, backend="threading", return_as="generator_unordered", batch_size=1)
        yield from threads(delayed(_with_call)(launch, run, call) for call in calls)


def _with_call(launch: Launch, run: Callable[[Call], Any], call: Call) -> tuple[Call, Any | Died]:
    return call, launch(run, call)


@contextmanager
def _loky(n_jobs: int) -> Iterator[Launch]:
    """Keep as many pools of one process each: loky ends all runs of a pool in which a process dies."""
    # As in the workers of joblib.
    threads = str(max(cpu_count() // n_jobs, 1))
    environment = {name: os.environ.get(name, threads) for name in ParallelBackendBase.MAX_NUM_THREADS_VARS}
    pools: list[ProcessPoolExecutor] = []
    idle: SimpleQueue[ProcessPoolExecutor] = SimpleQueue()

    def add() -> None:
        # Its process starts with the first run.
        pools.append(ProcessPoolExecutor(1, timeout=IDLE_SECONDS, env=environment))
        idle.put(pools[-1])

    def launch(run: Callable[[Call], Any], call: Call) -> Any | Died:
        pool = idle.get()
        try:
            outcome = pool.submit(run, call).result()
        except BrokenExecutor as error:
            pools.remove(pool)
            pool.shutdown()
            add()
            return Died(_reason(error))
        except BaseException:
            idle.put(pool)
            raise
        idle.put(pool)
        return outcome

    for _ in range(n_jobs):
        add()
    try:
        yield launch
    finally:
        for pool in pools:
            pool.shutdown(kill_workers=True)


@contextmanager
def _dask(n_jobs: int) -> Iterator[Launch]:
    import dask
    from distributed import Client
    from distributed.scheduler import KilledWorker

    # One run at a time in a worker, and none a second time after it killed one.
    one = {"run": 1}
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        Client(n_workers=n_jobs, threads_per_worker=1, resources=one) as client,  # type: ignore[no-untyped-call]
    ):

        def launch(run: Callable[[Call], Any], call: Call) -> Any | Died:
            try:
                return client.submit(run, call, pure=False, resources=one).result()
            except KilledWorker:
                return Died("its process died")

        yield launch


def _reason(error: BaseException) -> str:
    """Return what loky says of a process that died; with how it ended, such as ``SIGSEGV(-11)``, if it knows."""
    ending = re.search(r"\{(.+)\}", str(error))
    return f"its process died: {ending[1]}" if ending else f"its process died: {error}"
