"""Domains of canvases that can be seen: eight styles, quarter turns of black on white and of white on black."""

from __future__ import annotations

import torch
from torch import Tensor

QUARTER_TURNS = 4
NUM_DOMAINS = 2 * QUARTER_TURNS


def draw_domains(count: int, generator: torch.Generator) -> Tensor:
    """Return the domain of every sample by chance, integers of shape [count], all equally often, give or take one."""
    return torch.randperm(count, generator=generator) % NUM_DOMAINS


def in_style(inputs: Tensor, domains: Tensor, canvas: int) -> Tensor:
    """Return canvases in the style of their domains.

    Domain d is turned counterclockwise by d modulo 4 quarters; from 4 on, its ink is inverted as well.

    Parameters
    ----------
    inputs : Tensor
        Flat canvases, shape [N, canvas * canvas], pixels in [0, 1].
    domains : Tensor
        Integers in 0 .. 7, shape [N].
    canvas : int
        Width and height in pixels.

    Returns
    -------
    Tensor
        Of the shape of the inputs.
    """
    images = inputs.view(-1, canvas, canvas)
    styled = torch.empty_like(images)
    for domain in range(NUM_DOMAINS):
        turned = torch.rot90(images[domains == domain], domain % QUARTER_TURNS, (1, 2))
        styled[domains == domain] = 1.0 - turned if domain >= QUARTER_TURNS else turned
    return styled.flatten(1)
