"""The command ``moe-search prune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moe_search.checks import require_integer
from moe_search.cli.arguments import check_output_folder, one_line_errors
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


def prune(
    checkpoint: Checkpoint,
    text: Text,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the pruned checkpoint, new or empty.", metavar="PATH")
    ],
    keep: Annotated[str, typer.Option(help="How many experts of a layer stay, or the part of them.")] = "0.5",
    criterion: Annotated[
        list[str] | None,
        typer.Option(
            help="error, frequency, gate sum, EAN, REAP or REAP sum; repeatable. [default: all, the best is taken]",
            metavar="NAME",
        ),
    ] = None,
    sequences: Sequences = 256,
    tokens: Tokens = 256,
    batch: Annotated[int, typer.Option(help="Sequences of a batch; every third batch is held out.")] = 8,
    rows: Annotated[int, typer.Option(help="Tokens that experts are judged by.")] = 2048,
    seed: Annotated[int, typer.Option(help="Draws these tokens.")] = 0,
    device: Device = "auto",
) -> None:
    """Drop experts of a model, and print what that costs.

    The loss is forecast, and measured on texts that the choice of experts has not seen.
    """
    with one_line_errors():
        check_checkpoint(checkpoint)
        text.open("rb").close()
        check_output_folder(output, "--output")
        part = _keep(keep)
        tokenizer = load_tokenizer(checkpoint)
        require_integer("--batch", batch)
        found = read_sequences(text, tokenizer, sequences, tokens)
        if len(found) < 2:
            raise ValueError(f"--text must hold two sequences at least, got {len(found)}")
        # Each batch is of all parts of the text, those that are held out too.
        count = max(-(-len(found) // batch), 2)
        batches = [found[number::count] for number in range(count)]
        from moe_search.huggingface.pruning import checked_criteria, prune_experts

        criteria = checked_criteria(criterion or "auto")
        model = load_model(checkpoint, device)
        check_tokens(found, model)
        plan = prune_experts(model, batches, part, criteria=criteria, rows=rows, seed=seed, display=True)
        plan.apply(model).save_pretrained(output)
        if tokenizer is not None:
            tokenizer.save_pretrained(output)
    from rich.console import Console

    Console().print(plan.table())
    typer.echo(f"checkpoint written to {output}")


def _keep(text: str) -> float:
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        raise ValueError(f"--keep must be a number of experts, or a part such as 0.5, got {text!r}") from None
