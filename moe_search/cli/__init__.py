"""The command line of the library; `moe_search.bench.commands` adds the commands of the laboratory."""

import typer

from moe_search.cli.solve import solve as solve_command
from moe_search.cli.warm_up import warm_up as warm_up_command

app = typer.Typer(
    help="The discrete half of sparse mixture-of-experts models, solved as a combinatorial search problem.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("solve")(solve_command)
app.command("warm-up")(warm_up_command)


@app.callback()
def commands() -> None:
    """Let typer ask for the name of a command, also where there is only one."""
