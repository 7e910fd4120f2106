"""The command line of the library; `moe_search.bench.commands` adds the commands of the laboratory."""

from typing import Annotated

import typer

from moe_search.cli.place import place as place_command
from moe_search.cli.prune import prune as prune_command
from moe_search.cli.simulate import simulate as simulate_command
from moe_search.cli.solve import solve as solve_command
from moe_search.cli.split import split as split_command
from moe_search.cli.statistics import statistics as statistics_command
from moe_search.cli.warm_up import warm_up as warm_up_command

app = typer.Typer(
    help="The discrete half of sparse mixture-of-experts models, solved as a combinatorial search problem.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # As markup, rich swallows what stands in brackets, such as defaults.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("solve")(solve_command)
app.command("place")(place_command)
app.command("simulate")(simulate_command)
app.command("statistics")(statistics_command)
app.command("prune")(prune_command)
app.command("split")(split_command)
app.command("warm-up")(warm_up_command)


def _print_version(asked: bool) -> None:
    if asked:
        from moe_search import __version__

        typer.echo(f"moe-search {__version__}")
        raise typer.Exit


@app.callback()
def commands(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Take the options that stand before the name of a command."""
