"""What commands do with their arguments: they end in one line where these are wrong, before any work is done."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

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
