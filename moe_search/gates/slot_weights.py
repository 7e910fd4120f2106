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
        without noise. They are finite for finite inputs, and None for a gate that computes nothing at its slots.
    probabilities : Tensor or None
        p[b, t, s], shape [B, T, m]: the distribution over slots that some gates have in every selector (the paths of a
        tree, the codes of a row of bits), whose entropy they penalize. It sums to 1 over s, or to less in `DSelectK`,
        where codes may stand for no slot.
    noisy_logits, noise_scale : Tensor or None
        Shape [B, T, m]: the logits that a gate with noise chose slots by, and the standard deviation of the noise in
        each, greater than 0. The probability that a slot would be chosen again under fresh noise, which load penalties
        are made of, follows from these and `logits`.
    """

    weights: Tensor
    logits: Tensor | None
    probabilities: Tensor | None = None
    noisy_logits: Tensor | None = None
    noise_scale: Tensor | None = None

    def require_probabilities(self, gate: str) -> Tensor:
        """Return the probabilities, which those of a ``gate`` have, or raise ValueError if there are none."""
        if self.probabilities is None:
            raise ValueError(f"slot_weights must have probabilities, as those of {gate} do, got None")
        return self.probabilities
