"""The search of layers whose rows are tokens: maps proposed for each, the best by true forwards committed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import NormalDist

from torch import nn

from moe_search.solvers.engine.solver import Solver
from moe_search.solvers.engine.stop import StoppingCriterion
from moe_search.training.lowering.batch import Batch
from moe_search.training.lowering.frozen import frozen
from moe_search.training.lowering.losses import Loss
from moe_search.training.lowering.lowering import ProblemKind
from moe_search.training.lowering.process_group import Ranks
from moe_search.training.lowering.token_layers import TokenLayer
from moe_search.training.lowering.token_lowering import (
    CURVATURES,
    OpenedTokens,
    TokenLowering,
    lower_rows,
    open_tokens,
)
from moe_search.training.search.candidate_map import CandidateMap, SearchRecord, find_candidate, shifted_map
from moe_search.training.search.load_limit import LoadLimit
from moe_search.training.search.verification import verify_tokens


@dataclass(frozen=True, eq=False)
class TokenSearch:
    """What a search of layers whose rows are tokens goes by.

    Parameters
    ----------
    model, loss
        As in `lower_tokens`.
    layers : sequence of TokenLayer
        They are searched in this order.
    problem, solver, load_limit, confidence
        As in `PermutationSearch`.
    max_rows, chunk_size : int
        As in `lower_tokens`.
    ranks : Ranks
        All of them search together, each with batches of its own.
    """

    model: nn.Module
    layers: Sequence[TokenLayer]
    loss: Loss
    problem: ProblemKind
    solver: Solver | None
    load_limit: LoadLimit | None
    confidence: float
    max_rows: int
    chunk_size: int
    ranks: Ranks

    def search(
        self,
        searched: Sequence[Batch],
        verified: Sequence[Batch],
        stop: Callable[[float], StoppingCriterion],
        seed: int,
        step: int,
    ) -> Iterator[tuple[SearchRecord, CandidateMap | None]]:
        """Search one layer after another; yield a record of each once its map is decided, and what it came from.

        The quadratic problems, which take several times as long, are made where the map of the linear one is refused.
        The gradients of a layer are those under the maps that all others have by then: after a commit they are taken
        anew.

        Parameters
        ----------
        stop : callable
            Returns when a solver stops, given the time at which the search of its layer began.
        """
        opened: OpenedTokens | None = None
        for index in range(len(self.layers)):
            start = time.perf_counter()
            with frozen(self.model):
                if opened is None:
                    # Those behind are opened too, in case that the map of this one stays.
                    opened = self.ranks.agree(partial(self.open, searched, index))
                lowering = lower_rows(self.layers[index], opened, index, self.max_rows, self.chunk_size, self.ranks)
            best: tuple[SearchRecord, CandidateMap | None] | None = None
            for kind in kinds_of(self.problem, self.layers[index]):
                whole: list[CandidateMap] = []
                found = self.ranks.from_first(
                    partial(self._propose, lowering, kind, index, partial(stop, start), seed, step, whole)
                )
                record, chosen = self._decide(index, found, verified)
                if best is None or _gain(record) >= _gain(best[0]):
                    best = record, whole[chosen] if whole else None
                if record.new_map:
                    opened = None
                    break
            assert best is not None
            yield replace(best[0], seconds=time.perf_counter() - start), best[1]

    def open(self, batches: Sequence[Batch], first: int = 0) -> OpenedTokens:
        """Return the rows of the layers from the `first` on, by a forward and a backward that leave no trace."""
        with frozen(self.model):
            return open_tokens(self.model, self.layers, self.loss, batches, self.chunk_size, first)

    def _propose(
        self,
        lowering: TokenLowering | None,
        kind: ProblemKind,
        index: int,
        stop: Callable[[], StoppingCriterion],
        seed: int,
        step: int,
        whole: list[CandidateMap],
    ) -> list[CandidateMap]:
        """Return the candidates as they are sent to other ranks; `whole` gets them with where they came from."""
        assert lowering is not None
        for problem in lowering.lowerings(kind):
            candidate = find_candidate(problem, self.solver, stop(), seed, step, self.load_limit)
            gain = 0.0 if candidate.permutation is None else -lowering.forecast(candidate.permutation)
            record = replace(
                candidate.record,
                layer=index,
                value_before=lowering.loss,
                value_found=lowering.loss - gain,
                value_shifted=lowering.loss + lowering.forecast(shifted_map(problem)),
                bound=None,
                gain=gain,
            )
            whole.append(replace(candidate, record=record))
        return [candidate.bare() for candidate in whole]

    def _decide(self, index: int, found: Sequence[CandidateMap], batches: Sequence[Batch]) -> tuple[SearchRecord, int]:
        """Return the record and the number of the best candidate by true forwards, which the layer gets if better."""
        proposed = {each.permutation.tobytes(): i for i, each in enumerate(found) if each.permutation is not None}
        if not proposed:
            return found[-1].record, len(found) - 1
        expert_map = self.layers[index].expert_map
        numbers = list(proposed.values())
        candidates = [found[number] for number in numbers]
        verifications = verify_tokens(
            self.model,
            expert_map,
            self.loss,
            [candidate.permutation for candidate in candidates if candidate.permutation is not None],
            batches,
            self.chunk_size,
            self.ranks,
        )
        best = max(range(len(candidates)), key=lambda i: verifications[i].gain)
        candidate, verification = candidates[best], verifications[best]
        record = replace(candidate.record, verified_gain=verification.gain, standard_error=verification.standard_error)
        tried = sum(1 if kind == "linear" else len(CURVATURES) for kind in kinds_of(self.problem, self.layers[index]))
        if verification.confirmed(confidence_of_best(self.confidence, tried)):
            record = replace(record, outcome="committed")
        elif record.outcome != "enforced":
            return replace(record, outcome="refused"), numbers[best]
        assert candidate.permutation is not None
        expert_map.assign_permutation(candidate.permutation)
        return replace(record, loads=candidate.loads), numbers[best]


def kinds_of(problem: ProblemKind, layer: TokenLayer) -> list[ProblemKind]:
    """Return the kinds of problems of a layer in the order in which they are tried, of all or the one asked for."""
    kinds: list[ProblemKind] = ["linear", "mixture"] if len(layer.expert_map.experts) == 1 else ["mixture"]
    asked: list[ProblemKind] = kinds if problem == "auto" else [kind for kind in kinds if kind == problem]
    if not asked:
        raise ValueError(f"problem must be auto or {' or '.join(kinds)} for a layer of tokens, got {problem!r}")
    return asked


def confidence_of_best(confidence: float, tried: int) -> float:
    """Return how many standard errors the best of so many candidates must exceed, that chance does as rarely as one.

    References
    ----------
    Z. Sidak, "Rectangular confidence regions for the means of multivariate normal distributions", Journal of the
    American Statistical Association 62 (1967), 626-633.
    """
    normal = NormalDist()
    # From here on a double has no room for the difference.
    return confidence if confidence > 6 else normal.inv_cdf(normal.cdf(confidence) ** (1 / tried))


def _gain(record: SearchRecord) -> float:
    return float("-inf") if record.verified_gain is None else record.verified_gain
