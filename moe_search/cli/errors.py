"""How a command ends whose arguments are wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer


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
