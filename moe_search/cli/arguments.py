"""What commands do with their arguments: they end in one line where these are wrong, before any work is done."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moe_search.checks import require_integer

if TYPE_CHECKING:
    from moe_search.problems.placement import Cluster

Devices = Annotated[int, typer.Option(help="Devices that share the experts of a layer.")]
Slots = Annotated[int, typer.Option(help="Slots of all devices, replicas counted.")]
Nodes = Annotated[int, typer.Option(help="Nodes that the devices stand in.")]
Groups = Annotated[int, typer.Option(help="Groups of experts that stay on nodes; 0 is none.")]
Seed = Annotated[int, typer.Option(help="Source of all randomness.")]

INTERRUPTED = 130
"""The exit code of what Ctrl-C has ended, by the custom of shells: 128 and the number of the signal."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print an error of the arguments in one line, without traceback, and exit with status 2."""
    try:
        yield
    except (ImportError, OSError, TypeError, ValueError) as error:
        text = str(error)
        if isinstance(error, OSError) and error.filename is not None:
            text = f"cannot use {error.filename}: {error.strerror}"
        typer.echo(f"error: {' '.join(text.split())}", err=True)
        raise typer.Exit(2) from error


def check_output_folder(path: Path, name: str) -> None:
    """Raise an error unless a folder is new or empty."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{name} must be a new or empty folder, got {path}")


def check_output_file(path: str | os.PathLike[str], name: str = "path") -> Path:
    """Return `path` as a Path, or raise an error if no file can be written there.

    An existing file keeps its content, and a missing one is not left behind.

    The message of the error, an OSError, calls the argument `name`.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"{name} must be a file, got the folder {target}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{name} must lie in a folder that exists, got {target}")
    is_new = not target.exists()
    try:
        with target.open("a"):
            pass
    except OSError as error:
        raise type(error)(f"{name} must be a writable file, got {target} ({error.strerror})") from error
    if is_new:
        target.unlink()
    return target


def check_picture_file(path: str | os.PathLike[str], name: str = "path") -> Path:
    """Return `path` as a Path, or raise an error if matplotlib can write no picture there."""
    # Imported here: a check of any other file needs no matplotlib.
    from matplotlib.backend_bases import FigureCanvasBase

    formats = sorted(FigureCanvasBase.get_supported_filetypes())
    if Path(path).suffix[1:].lower() not in formats:
        raise ValueError(f"{name} must end in one of .{', .'.join(formats)}, got {Path(path)}")
    return check_output_file(path, name)


def part_of(name: str, text: str, others: str = "") -> float:
    """Return the part that a percentage such as 2% is, or a number below 1; the error names `others` too."""
    is_percentage = text.endswith("%")
    try:
        part = float(text.removesuffix("%")) / (100 if is_percentage else 1)
    except ValueError:
        part = math.nan
    if not 0 <= part < (math.inf if is_percentage else 1):
        raise ValueError(f"{name} must be {others}a percentage such as 2%, or a part such as 0.02, got {text!r}")
    return part


def cluster_of_arguments(devices: int, slots: int, nodes: int) -> Cluster:
    """Return the cluster of --devices, --slots and --nodes."""
    from moe_search.problems.placement import Cluster

    for name, number in (("--devices", devices), ("--slots", slots), ("--nodes", nodes)):
        require_integer(name, number)
    if slots % devices:
        raise ValueError(f"--slots must be a multiple of --devices, {devices}, got {slots}")
    if devices % nodes:
        raise ValueError(f"--devices must be a multiple of --nodes, {nodes}, got {devices}")
    return Cluster(devices, slots // devices, nodes)


def command_line() -> str:
    """Return the command as it was typed, for a report that tells how to repeat it."""
    return shlex.join(["moe-search", *sys.argv[1:]])
