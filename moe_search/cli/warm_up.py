"""The command ``moe-search warm-up``."""

from __future__ import annotations

from typing import Annotated

import typer

from moe_search.cli.arguments import INTERRUPTED, one_line_errors
from moe_search.cli.solve import solver_kinds, solver_named


def warm_up(
    solver: Annotated[
        list[str] | None,
        typer.Option(
            help="Solver by name, as in --solver tabu-search, for all problems that it takes; repeatable.",
            metavar="NAME",
        ),
    ] = None,
    all_solvers: Annotated[bool, typer.Option("--all", help="All solvers, which takes some minutes.")] = False,
) -> None:
    """Compile kernels ahead, once for all processes.

    By default those that solve and training take by themselves.
    """
    from moe_search.problems.kernel_cache import compile_time, folder_to_write

    with one_line_errors():
        folder = folder_to_write()
        if folder is None:
            raise ValueError("no folder to keep compiled kernels can be written to: set NUMBA_CACHE_DIR to one")
        names = [*solver_kinds()] if all_solvers else solver or []
        chosen = [named for named in map(solver_named, names) if named is not None]
    from rich.console import Console
    from rich.progress import track

    from moe_search.compilation import cases

    console = Console()
    todo = cases(*chosen)
    try:
        for case in track(todo, "Compiling", console=console):
            case.compile()
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    seconds = compile_time().seconds
    console.print(f"{len(todo)} pairs of solver and problem in {seconds:.1f} s; kept in {folder}")
