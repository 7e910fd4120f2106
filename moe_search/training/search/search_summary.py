"""What came of all searches of a run, in plain words, and what to try where none pays."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from moe_search.training.search.candidate_map import (
    ROUNDING,
    Outcome,
    SearchRecord,
    enough_to_tell_the_dead,
    experts_without_a_sample,
)
from moe_search.training.search.load_limit import LoadLimit

FRUITLESS = 10
"""After so many searches refused in a row, or at first without a new map, the run is told why."""

SMALL = 0.02
"""Below this part of the loss, what a map changes is little."""

SURE = 3.0
"""A gain of more standard errors is hardly one by chance."""

COLUMN, WIDTH = 10, 88
"""Where the text of a row begins, and where its lines end."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a search was told, as far as advice depends on it."""

    step: int
    period: int
    until: int
    batches: int
    max_samples: int | None
    confidence: float
    load_limit: LoadLimit | None
    k: int | None


@dataclass(frozen=True, kw_only=True)
class SearchSummary:
    """What came of the searches of a run; `print` shows it in plain words.

    Parameters
    ----------
    steps, searches : int
        Training steps so far, and searches whose map is decided.
    outcomes : tuple of (str, int)
        How many searches had each outcome of `SearchRecord`, the most frequent first.
    found : int
        Searches that found a map with a lower loss on the samples searched.
    refused_worse, refused_unsure : int
        Of those that a second batch refused: how many did not lower its loss, and how many lowered it by no more than
        `confidence` standard errors.
    forecast, verified : float or None
        Mean gain that the solver promised and mean gain on the second batch, over the searches that were verified.
    dead_experts : tuple of int or None
        The experts without a sample in the last searches, under the map that they left. None if their samples are too
        few to tell, as in a `SearchRecord`. Of several layers, those of the layer that was searched last.
    max_load : float or None
        The largest load of an expert in the last search, in multiples of the mean. None if no sample was looked at.
    experts_per_sample : float or None
        How many experts a sample had weight on there, for each task; None if samples are sequences of tokens.
    k : int or None
        How many it should come down to, by the gate; None if it does not say, or samples are sequences of tokens.
    seconds, seconds_solving, compile_seconds : float
        Time that training waited for searches, and time of the solvers.
    advice : tuple of str
        What to try, a sentence or two each; empty where there is nothing to change.

    Examples
    --------
    >>> import torch
    >>> import moe_search as ms
    >>> _ = torch.manual_seed(0)
    >>> moe = ms.MixtureOfExperts(ms.StackedExperts(4, 8, 1), ms.TopK(in_features=8, num_experts=4, k=1))
    >>> search = ms.PermutationSearch(moe, moe, loss=torch.nn.functional.mse_loss)
    >>> _ = search.step(torch.randn(32, 8), torch.randn(32, 1))
    >>> summary = search.summary()
    >>> summary.steps, summary.searches
    (1, 0)
    """

    steps: int
    searches: int
    outcomes: tuple[tuple[str, int], ...]
    found: int
    refused_worse: int
    refused_unsure: int
    forecast: float | None
    verified: float | None
    dead_experts: tuple[int, ...] | None
    max_load: float | None
    experts_per_sample: float | None
    k: int | None
    seconds: float
    seconds_solving: float
    compile_seconds: float
    advice: tuple[str, ...]

    @classmethod
    def of(cls, history: Sequence[SearchRecord], seconds: float, settings: Settings) -> SearchSummary:
        """Return the summary of some searches."""
        outcomes = [record.outcome for record in history]
        counts = sorted(((name, outcomes.count(name)) for name in set(outcomes)), key=lambda pair: (-pair[1], pair[0]))
        worse, unsure = _refused(history)
        verified = [record for record in history if record.verified_gain is not None]
        last = next((record for record in reversed(history) if record.max_load is not None), None)
        return cls(
            steps=settings.step,
            searches=len(history),
            outcomes=tuple(counts),
            found=sum(_found(record) for record in history),
            refused_worse=len(worse),
            refused_unsure=len(unsure),
            forecast=_mean([record.gain for record in verified]),
            verified=_mean([record.verified_gain for record in verified]),
            dead_experts=experts_without_a_sample(enough_to_tell_the_dead(history)),
            max_load=None if last is None else last.max_load,
            experts_per_sample=None if last is None else last.experts_per_sample,
            k=None if last is not None and last.layer is not None else settings.k,
            seconds=seconds,
            seconds_solving=sum(record.seconds_solving for record in history),
            compile_seconds=sum(record.compile_seconds for record in history),
            advice=tuple(_advice(history, settings)),
        )

    def __str__(self) -> str:
        """Return a few lines of text."""
        outcomes = ", ".join(f"{count} {name}" for name, count in self.outcomes)
        rows = {"searches": f"{self.searches} in {self.steps} steps" + (f": {outcomes}" if outcomes else "")}
        rows["found"] = f"a better map, on its own samples, in {self.found} of {self.searches}"
        if self.refused_worse + self.refused_unsure:
            rows["refused"] = (
                f"{self.refused_worse} did not lower the loss of a second batch, "
                f"{self.refused_unsure} lowered it by too little to be sure"
            )
        if self.forecast is not None:
            rows["gain"] = f"{self.forecast:.4g} forecast, {self.verified:.4g} verified on a second batch, in the mean"
        if self.max_load is not None:
            known = self.dead_experts is not None
            dead = (", ".join(map(str, self.dead_experts or ())) or "none") if known else "too few samples to tell"
            of_k = "" if self.k is None else f" for k = {self.k}"
            rows["load"] = f"{self.max_load:.3g} times the mean at most; dead experts: {dead}"
            if self.experts_per_sample is not None:
                rows["load"] += f"; {self.experts_per_sample:.2f} experts a sample{of_k}"
        rows["time"] = (
            f"{self.seconds:.3g} s that training waited, {self.seconds_solving:.3g} s of the solver, "
            f"{self.compile_seconds:.3g} s of compilation"
        )
        lines = [_row(name, text) for name, text in rows.items()]
        return "\n".join(lines + [_row("" if i else "try", text) for i, text in enumerate(self.advice)])


def _row(name: str, text: str) -> str:
    """Return the name and, in a column beside it, the text."""
    begin, indent = f"{name:<{COLUMN}}", " " * COLUMN
    return textwrap.fill(
        text, WIDTH, initial_indent=begin, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def fruitless_for_the_first_time(history: Sequence[SearchRecord]) -> bool:
    """Return whether the last search is the tenth in a row that was refused, or of all that changed no map, first."""
    changed, refused, told = False, 0, []
    for number, record in enumerate(history, 1):
        changed = changed or record.new_map
        refused = refused + 1 if record.outcome == "refused" else 0
        if refused == FRUITLESS or (number == FRUITLESS and not changed):
            told.append(number)
    return told == [len(history)]


def _advice(history: Sequence[SearchRecord], settings: Settings) -> Iterator[str]:
    if not history:
        yield f"No search has run yet: the first is due at step {settings.period}, and this is step {settings.step}."
        return
    yield from _of_errors(history)
    if 2 * sum(record.new_map for record in history) < len(history):
        yield from _of_fruitless(history, settings)
    yield from _of_loads(history, settings)
    if history[-1].outcome == "committed" and settings.step + settings.period > settings.until:
        yield f"The last search still found a gain and no other is due: let them go on beyond until={settings.until}."


def _of_errors(history: Sequence[SearchRecord]) -> Iterator[str]:
    outcomes = [record.outcome for record in history]
    if count := outcomes.count("not finite"):
        yield (
            f"The loss was NaN or infinite in {_searches(count)}: look at the learning rate, the loss scaling and the "
            "data."
        )
    errors: tuple[tuple[Outcome, str], ...] = (
        ("skipped", "No search could use the batch"),
        ("failed", "The solver raised"),
    )
    for outcome, what in errors:
        if count := outcomes.count(outcome):
            reason = next(record.reason for record in reversed(history) if record.outcome == outcome)
            yield f"{what} in {_searches(count)}, the last for this: {reason}."


def _of_fruitless(history: Sequence[SearchRecord], settings: Settings) -> Iterator[str]:
    solved = [record for record in history if record.value_before is not None]
    if not solved:
        return
    change = statistics.median(_relative(record, record.value_shifted) for record in solved)
    if max(change, *(_relative(record, record.value_found) for record in solved)) < SMALL:
        yield (
            f"Experts are alike: giving every slot the next expert changes the loss by {change:.1%}, and a permutation "
            "of equal experts does nothing. Search once they differ (start later, or from pre-trained experts), or "
            "give the gate more slots than experts (num_slots), which makes grouping them a choice."
        )
        return
    changed = _last([record.new_map for record in history])
    since = [record for record in history[changed:] if record.value_before is not None]
    nothing = [record for record in since if record.outcome == "no improvement"]
    proved = sum(_proved(record) for record in nothing)
    searches = _searches(proved or len(nothing))
    best = f"the best, proved in {searches}" if proved else f"as good as any found in {searches}"
    fruitless = bool(since) and 2 * len(nothing) >= len(since)
    if not fruitless:
        # Among many refused maps, one that was taken may have been so by chance.
        changed = _last([record.new_map and _sure(record) for record in history])
    if changed and since:
        step = history[changed - 1].step
        yield (
            f"The map was mended at step {step}, and since then "
            f"{f'it is {best}' if fruitless else 'hardly another one held on a second batch'}: searches may end there, "
            f"until={max(step, settings.period)}, or come less often, period={4 * settings.period}."
        )
    elif fruitless:
        yield (
            f"The map is {best}, while giving every slot the next expert {_changes(change)}: nothing is wrong, gate "
            "and experts were trained under it. A search pays where experts come from elsewhere, or grouping slots is "
            f"a choice, by more slots than experts (num_slots); here a longer period={4 * settings.period} costs less."
        )
    if fruitless and not proved:
        yield "Whether a longer search finds more, stop=MaxRuntime(1.0) tells."
    worse, unsure = _refused(history[changed:])
    if len(worse) > len(unsure):
        limited = " and a larger max_samples" if settings.max_samples else ""
        yield (
            f"Gains on the {worse[-1].num_samples} samples searched did not come back on the second batch: the maps "
            f"fit the noise of few samples. Search on more, batches={4 * settings.batches}{limited}, or on a whole "
            "data set by search_batches; if that is refused too, there is nothing to gain."
        )
    elif unsure:
        gain = _mean([record.verified_gain for record in unsure]) or 0.0
        error = _mean([record.standard_error for record in unsure]) or 0.0
        times = max((settings.confidence * error / gain) ** 2, 1.0)
        yield (
            f"Gains on the second batch were there but within {settings.confidence:g} standard error: "
            f"{times:.1f} times its samples would tell. Verify on more by search_batches(..., verify=...), "
            "or lower confidence."
        )
    linearized = [record for record in (*worse, *unsure) if record.linearized]
    # Of tokens, no problem is exact.
    if linearized and 2 * len(linearized) >= len(worse) + len(unsure) and history[-1].layer is None:
        yield (
            "The head behind the layer is not affine, and its linearization forecast these gains. "
            'problem="pairwise" or "linear" is exact, where a sample has at most two slots, or one.'
        )


def _of_loads(history: Sequence[SearchRecord], settings: Settings) -> Iterator[str]:
    for layer in dict.fromkeys(record.layer for record in history if record.loads):
        enough = enough_to_tell_the_dead([record for record in history if record.layer == layer])
        dead = experts_without_a_sample(enough)
        if not dead:
            continue
        searches = "search" if len(enough) == 1 else f"{len(enough)} searches"
        of_layer = "" if layer is None else f" of layer {layer}"
        yield (
            f"Expert{'' if len(dead) == 1 else 's'} {', '.join(map(str, dead))}{of_layer} got none of the "
            f"{sum(record.num_samples for record in enough)} samples of the last {searches}, and a map only changes "
            "which experts these are, where every expert has one slot: balance the gate, by load_balancing_loss or "
            "LossFreeBalancing."
        )
    if settings.load_limit is not None:
        asked = np.asarray(settings.load_limit)
        raised = [record for record in history if _exceeds(record.load_limit, asked)]
        if raised:
            limit = raised[-1].load_limit
            reached = (
                f"{limit:.3g}" if isinstance(limit, float) else f"{np.max(np.asarray(limit) / asked):.3g} times it"
            )
            yield (
                f"No map was found within load_limit in {_searches(len(raised))}, it was raised to {reached} in the "
                "last: more slots than experts (num_slots) let a map spread the load."
            )


def _exceeds(limit: float | tuple[float, ...] | None, asked: np.ndarray) -> bool:
    return limit is not None and bool(np.any(np.asarray(limit) > asked * (1 + ROUNDING)))


def _refused(history: Sequence[SearchRecord]) -> tuple[list[SearchRecord], list[SearchRecord]]:
    """Return the searches whose map lowered the loss of the second batch not at all, and those by too little."""
    refused = [record for record in history if record.outcome == "refused" and record.verified_gain is not None]
    worse = [record for record in refused if record.verified_gain <= 0]  # type: ignore[operator]
    return worse, [record for record in refused if record.verified_gain > 0]  # type: ignore[operator]


def _sure(record: SearchRecord) -> bool:
    gain, error = record.verified_gain, record.standard_error
    return gain is not None and error is not None and gain > SURE * error


def _last(holds: Sequence[bool]) -> int:
    """Return the number, counted from 1, of the last search of which something holds; 0 if there is none."""
    return max((number for number, one in enumerate(holds, 1) if one), default=0)


def _found(record: SearchRecord) -> bool:
    return record.gain is not None and record.gain > ROUNDING * abs(record.value_before or 0.0)


def _proved(record: SearchRecord) -> bool:
    return record.bound is not None and _relative(record, record.bound) <= ROUNDING


def _relative(record: SearchRecord, value: float | None) -> float:
    assert record.value_before is not None
    if value is None or value == record.value_before:
        return 0.0
    return abs(value - record.value_before) / abs(record.value_before) if record.value_before else math.inf


def _changes(change: float) -> str:
    if change <= 1:
        return f"changes the loss by {change:.0%}"
    return f"changes the loss by a factor of {'more than 100' if change > 100 else round(1 + change)}"


def _mean(values: Sequence[float | None]) -> float | None:
    given = [value for value in values if value is not None]
    return statistics.fmean(given) if given else None


def _searches(count: int) -> str:
    return "1 search" if count == 1 else f"{count} searches"
