"""The command ``moe-search split``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_search.cli.arguments import check_output_folder, one_line_errors
from moe_search.cli.checkpoints import Checkpoint, check_checkpoint, load_dense, load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 16
"""Texts that the model is given at a time."""

MOST_HELD_OUT = 128
"""Texts that the split model is compared on."""


def split(
    checkpoint: Checkpoint,
    text: Annotated[Path, typer.Option(help="Calibration data: a text in UTF-8, one a line.", metavar="FILE")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the split checkpoint, new or empty.", metavar="PATH")
    ],
    experts: Annotated[int, typer.Option(help="Experts of every layer.")] = 16,
    active: Annotated[int, typer.Option(help="Experts that run on a token.")] = 4,
    shared: Annotated[int, typer.Option(help="Neurons that all experts have in common.")] = 0,
    layer: Annotated[
        list[int] | None, typer.Option(help="Layer, from 0; repeatable. [default: all]", metavar="NUMBER")
    ] = None,
    router: Annotated[str, typer.Option(help="ridge, or train: better by a little, some seconds a layer.")] = "ridge",
    rows: Annotated[int, typer.Option(help="Tokens that are looked at.")] = 3000,
    tokens: Annotated[int, typer.Option(help="Tokens of a line at most.")] = 64,
    seed: Annotated[int, typer.Option(help="Source of all randomness.")] = 0,
) -> None:
    """Split layers of a dense model into mixtures of experts.

    How far the outputs then are from the dense ones is measured on lines that were not looked at, every tenth.
    """
    with one_line_errors():
        from moe_search.checks import require_choice, require_integer

        require_choice("--router", router, ("ridge", "train"))
        for name, number in (("--rows", rows), ("--tokens", tokens)):
            require_integer(name, number)
        check_checkpoint(checkpoint)
        check_output_folder(output, "--output")
        lines = [line for line in text.read_text(encoding="utf-8").splitlines() if line.strip()]
        held_out, seen = lines[::10][:MOST_HELD_OUT], [line for n, line in enumerate(lines) if n % 10]
        if not seen:
            raise ValueError(f"{text} must hold at least 2 lines that are not empty, got {len(lines)}")
        model, tokenizer = load_dense(checkpoint), load_tokenizer(checkpoint)
        if tokenizer is None:
            raise FileNotFoundError(f"CHECKPOINT must hold a tokenizer to read a text by, got {checkpoint} without")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token

        from moe_search.training.to_mixture import feed_forwards, to_mixture

        numbers = layer or list(range(len(feed_forwards(model))))
        dense = _outputs(model, _batches(tokenizer, held_out, tokens))
        mixtures = to_mixture(
            model,
            numbers,
            _batches(tokenizer, seen, tokens),
            experts,
            active,
            shared,
            router=router,
            rows=rows,
            seed=seed,
            display=True,
        )
        error = float((_outputs(model, _batches(tokenizer, held_out, tokens)) - dense).square().sum())
        model.save_pretrained(output)
        tokenizer.save_pretrained(output)
    part = 100 * (error / float((dense - dense.mean(0)).square().sum())) ** 0.5
    typer.echo(f"{len(mixtures)} layers of {experts} experts, {active} of which run on a token")
    typer.echo(f"error of the outputs on {len(held_out)} other lines: {part:.1f} % of their standard deviation")
    typer.echo(f"checkpoint written to {output}; read it with from_pretrained and moe_search.load_mixtures")


def _batches(tokenizer: Any, lines: list[str], tokens: int) -> Iterator[dict[str, Tensor]]:
    """Yield lines as the model takes them."""
    for begin in range(0, len(lines), BATCH):
        part = lines[begin : begin + BATCH]
        found = tokenizer(part, padding=True, truncation=True, max_length=tokens, return_tensors="pt")
        yield {name: found[name] for name in ("input_ids", "attention_mask")}


def _outputs(model: Any, batches: Iterator[dict[str, Tensor]]) -> Tensor:
    """Return the first outputs of a model, states or logits, of all real tokens."""
    import torch

    with torch.no_grad():
        return torch.cat([model(**batch)[0][batch["attention_mask"].bool()].float() for batch in batches])
