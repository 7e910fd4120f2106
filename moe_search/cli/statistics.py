"""The command ``moe-search statistics``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moe_search.checks import require_integer
from moe_search.cli.arguments import check_output_file, one_line_errors
from moe_search.cli.checkpoints import (
    Checkpoint,
    Device,
    Sequences,
    Text,
    Tokens,
    check_checkpoint,
    check_tokens,
    load_model,
    load_tokenizer,
    read_sequences,
)

if TYPE_CHECKING:
    from moe_search.plotting import Table
    from moe_search.training.routing_statistics import RoutingStatistics


def statistics(
    checkpoint: Checkpoint,
    text: Text,
    sequences: Sequences = 256,
    tokens: Tokens = 256,
    batch: Annotated[int, typer.Option(help="Sequences of a batch.")] = 8,
    window: Annotated[
        int | None, typer.Option(help="Batches that make a window of the loads written. [default: all]")
    ] = None,
    device: Device = "auto",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where the loads go, as .npz that moe-search place reads.", metavar="PATH"),
    ] = None,
) -> None:
    """Count which experts the tokens of a text go to.

    Every mixture layer of the model is a row: how evenly experts are used, and how many lie idle.
    """
    with one_line_errors():
        check_checkpoint(checkpoint)
        text.open("rb").close()
        if output is not None:
            if output.suffix != ".npz":
                raise ValueError(f"--output must end in .npz, got {output}")
            check_output_file(output, "--output")
        from moe_search.training.routing_statistics import RoutingStatistics

        routing = RoutingStatistics(window)
        require_integer("--batch", batch)
        found = read_sequences(text, load_tokenizer(checkpoint), sequences, tokens)
        model = load_model(checkpoint, device)

        import torch
        from rich.console import Console
        from rich.progress import track

        from moe_search.huggingface.selection import require_layers

        require_layers(model)
        check_tokens(found, model)
        with routing.watch(model), torch.inference_mode():
            for ids in track(torch.split(found, batch), "Reading", console=Console(stderr=True)):
                model(input_ids=ids.to(model.device), use_cache=False)
        if output is not None:
            routing.save_loads(output)
    Console().print(_table(routing).as_rich())
    if output is not None:
        typer.echo(f"loads written to {output}")


def _table(routing: RoutingStatistics) -> Table:
    from moe_search.plotting import Table

    summaries = routing.summaries()
    rows = []
    for name, summary in summaries.items():
        load, importance = summary.load.double(), summary.importance
        rows.append(
            (
                name,
                f"{len(load)}",
                f"{summary.mean_experts:.2f}",
                f"{load.max() / load.mean():.2f}",
                f"{importance.max() / importance.mean():.2f}",
                f"{len(summary.dead_experts)}",
                f"{summary.sample_entropy:.2f}",
                f"{summary.mean_entropy:.2f}",
            )
        )
    columns = ("layer", "experts", "of a token", "highest load", "highest weight", "idle", "entropy", "of the mean")
    num_tokens = next(iter(summaries.values())).num_samples
    note = f"{num_tokens:,} tokens. Highest load and weight in multiples of the mean; entropies in nats."
    return Table("Routing", columns, tuple(rows), note=note)
