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
        Shape [B, T, m]: what the gate computes at every slot, affine in the inputs, before any slot is left out and
        without noise. Finite for finite inputs. None for a gate that computes nothing at its slots.
    probabilities : Tensor or None
        p[b, t, s], shape [B, T, m], of gates that have a distribution over slots in every selector (the paths of a
        tree, the codes of a row of bits), summing to 1 over s; to less in `DSelectK`, where codes stand for no slot.
        Their entropy is what such a gate penalizes.
    noisy_logits, noise_scale : Tensor or None
        Shape [B, T, m], of a gate that added noise: the logits it chose slots by, and the standard deviation of the
        noise in each, greater than 0. The probability that a slot would be chosen again under fresh noise, which load
        penalties are made of, follows from these and `logits`.
    """

    weights: Tensor
    logits: Tensor | None
    probabilities: Tensor | None = None
    noisy_logits: Tensor | None = None
    noise_scale: Tensor | None = None
