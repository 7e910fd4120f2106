"""What one search of a training run did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeAlias

from moe_search.training.saved_state import require_keys

Outcome: TypeAlias = Literal["committed", "enforced", "refused", "no improvement", "not finite", "failed"]


@dataclass(frozen=True, kw_only=True)
class SearchRecord:
    """One search: what was found, what a second batch said of it, and what became of it.

    Parameters
    ----------
    step : int
        The training step, counted from 1, after which the search ran.
    problem : str or None
        The class of the problem, ``"LinearAssignment"``, ``"PairwiseAssignment"`` or ``"MixtureAssignment"``; None if
        the loss was not finite.
    solver : str or None
        The solver's name; None if none ran.
    outcome : str
        ``"committed"``: the new map is in the gate. ``"enforced"``: it is, without a confirmed gain, since the old one
        broke the load limit on the searched samples. ``"refused"``: the second batch did not confirm the gain, the map
        stayed. ``"no improvement"``: the solver found nothing better. ``"not finite"``: a loss was NaN or infinite, the
        map stayed. ``"failed"``: the solver raised before the state was saved that this run was loaded from, the map
        stayed.
    value_before, value_found : float or None
        Mean loss on the searched samples under the old and the found map (a prediction if ``linearized``).
    bound : float or None
        A proven lower bound on that loss over all maps, if the solver gave one.
    gain : float or None
        ``value_before - value_found``: the predicted decrease of the mean loss.
    verified_gain, standard_error : float or None
        Mean decrease of the loss of a sample on the second batch, by true forwards, and its standard error; None if
        there was nothing to verify.
    seconds, seconds_solving : float
        Time that training waited for the search, and time of the solver, which is part of it unless it ran on a thread.
    linearized : bool
        Whether the head was not affine, so that its linearization was searched.
    num_samples : int
        Number of samples searched on.
    load_limit : float, tuple of float or None
        The limit on the load of all experts, or of each, that was searched under, in multiples of the mean: more than
        what was asked for where no map keeps that, None if there was none.
    """

    step: int
    problem: str | None = None
    solver: str | None = None
    outcome: Outcome
    value_before: float | None = None
    value_found: float | None = None
    bound: float | None = None
    gain: float | None = None
    verified_gain: float | None = None
    standard_error: float | None = None
    seconds: float = 0.0
    seconds_solving: float = 0.0
    linearized: bool = False
    num_samples: int
    load_limit: float | tuple[float, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the record as a plain dict of numbers and strings."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SearchRecord:
        """Return the record of ``to_dict``."""
        require_keys("a search record", values, [field.name for field in fields(cls)])
        limit = values["load_limit"]
        return cls(**{**values, "load_limit": tuple(limit) if isinstance(limit, list) else limit})
