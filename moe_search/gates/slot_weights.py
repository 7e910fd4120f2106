"""What a gate returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class SlotWeights:
    """The weights a gate gives to its slots, sample by sample.

    Parameters
    ----------
    weights : Tensor
        g[b, t, s], shape [B, T, m]: of slot s of selector t, not negative, summing to 1 over t and s for every sample.
        A slot left out has weight exactly 0.
    logits : Tensor or None
        Shape [B, T, m]: what the gate computes at every slot, affine in the inputs, before any slot is left out. Finite
        for finite inputs. None for a gate with nothing to learn, and where only the slots that a sample reaches have
        been computed (COMET at inference).
    probabilities : Tensor or None
        p[b, t, s], shape [B, T, m], of gates that have a distribution over slots in every selector (the paths of a
        tree), summing to 1 over s. Their entropy is what such a gate penalizes.
    """

    weights: Tensor
    logits: Tensor | None
    probabilities: Tensor | None = None
