"""Colours that stay apart in print and for colour-blind readers (Okabe and Ito 2008, one grey added)."""

from itertools import cycle, islice

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#8A8A8A")
INK = "#1f2933"
MUTED = "#7b8794"
RULE = "#d9dee4"


def expert_colours(num_experts: int) -> list[str]:
    """Return one colour for each expert; from the ninth on they repeat."""
    return list(islice(cycle(OKABE_ITO), num_experts))
