"""The demo from start to end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

from moe_search.bench.demo.devices import replay
from moe_search.bench.demo.neurons import split_networks
from moe_search.bench.demo.page import make_report, overview
from moe_search.bench.demo.scenarios import Scenario, count_ticks, exact_value
from moe_search.bench.demo.settings import DemoSettings
from moe_search.bench.demo.summary import DemoResult, headlines, summary_table
from moe_search.bench.experiments.training import compile_once, one_thread
from moe_search.plotting.report import write_report
from moe_search.problems import random_linear, random_mixture


def run_demo(
    settings: DemoSettings,
    device: torch.device,
    path: Path,
    command: str,
    console: Console,
    picture: Path | None = None,
) -> None:
    """Search slots, devices and neurons, print what came out and write the report to a path.

    The command line stands in the report. The charts on top of the page go to the picture, as an image in the format of
    its suffix.
    """
    start = time.perf_counter()
    columns = (
        SpinnerColumn(),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console) as progress:
        ticks = count_ticks(settings) + 1 + settings.seeds
        task = progress.add_task("compiling the kernels, the first time only", total=ticks)
        compile_kernels()

        def on_tick(what: str) -> None:
            progress.update(task, advance=1, description=what)

        with _beside_training() as executor:
            run = Scenario(settings, device, executor, on_tick)
            from_scratch = run.train_from_scratch()
            bad_initialization = run.train_from_bad_initialization()
            devices = replay(settings.windows)
            on_tick("traffic replayed")
            neurons = split_networks(settings.seeds, settings.dense_steps, lambda seed: on_tick(f"split, seed {seed}"))
        progress.update(task, description="done")
    seconds = time.perf_counter() - start
    result = DemoResult(settings, from_scratch, bad_initialization, devices, neurons, _name(device), seconds)
    for headline in headlines(result):
        console.print(headline, style="bold", highlight=False)
        console.print()
    console.print(summary_table(result).as_rich())
    write_report(make_report(result, command), path)
    console.print(f"Report: {path.resolve()}", soft_wrap=True, highlight=False)
    if picture is not None:
        overview(result).savefig(picture, dpi=150)


def compile_kernels() -> None:
    """Compile the kernels on tiny problems, so that no search is billed for it."""
    exact_value(random_linear(4, seed=0, integral=False))
    exact_value(random_mixture(4, num_samples=16, seed=0, num_outputs=4, loss="cross_entropy"))
    compile_once()


@contextmanager
def _beside_training() -> Iterator[Executor]:
    """Give a thread to the exact optima, whose kernels run without Python's lock, and one to everything else."""
    executor = ThreadPoolExecutor(max_workers=1)
    try:
        with one_thread():
            yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def _name(device: torch.device) -> str:
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type
