"""Which experts a layer keeps: the error of the layer without the others, its rows routed anew."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from moe_search.checks import require_choice, require_integer, store_plain
from moe_search.problems.arrays import read_only
from moe_search.problems.kernels import compiled
from moe_search.problems.problem import Problem

Share = Literal["chosen", "kept", "none"]
Subset = npt.NDArray[np.int64]


class SubsetArrays(NamedTuple):
    """What the kernels read of a problem.

    Parameters
    ----------
    order : ndarray of int32, shape (rows, experts)
        The experts of every row by falling score.
    scores, strengths, products, gram, energies : ndarray
        As in `ExpertSubset`.
    k, share, num_groups, open_groups, group_depth : int
        As in `ExpertSubset`; the share as its place among the words.
    """

    order: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    strengths: npt.NDArray[np.float32]
    products: npt.NDArray[np.float32]
    gram: npt.NDArray[np.float32]
    energies: npt.NDArray[np.float64]
    k: int
    share: int
    num_groups: int
    open_groups: int
    group_depth: int


@dataclass(frozen=True, eq=False, repr=False)
class ExpertSubset(Problem):
    """Keep some experts of a mixture layer so that, its rows routed among these, it computes nearly what it did.

    A solution is the kept experts S, and the value ``sum_t |sum_e w[t, e] f[t, e] - y[t]|^2`` over rows t: w are the
    weights that the router gives where it knows no experts but S, f the outputs of the experts, and y the output of
    the whole layer. Inner products of f and y are all that it takes.

    Parameters
    ----------
    scores : array_like, shape (rows, experts)
        A row goes to the k experts of S with the highest scores.
    strengths : array_like, shape (rows, experts)
        Weights of experts, not negative, before they are shared out.
    gram : array_like, shape (rows, experts, experts)
        Inner products of the outputs of the experts.
    products : array_like, shape (rows, experts)
        Inner products of the outputs of the experts with that of the layer.
    energies : array_like, shape (rows,)
        The squared norm of the output of the layer.
    keep : int
        How many experts stay, at least k.
    k : int
        How many experts a row takes.
    share : {"chosen", "kept", "none"}
        What a strength is divided by to be a weight: the sum over the k experts of the row, as in Mixtral, over all
        kept experts, as in OLMoE, whose softmax comes first, or nothing.
    num_groups : int, default 1
        The experts form groups of equal size, one after the other. Equally many of each stay.
    open_groups : int, optional
        A row takes experts of so many groups only, by default of all: those whose highest scores have the highest sum.
    group_depth : int, default 1
        How many highest scores of a group count for that.

    Examples
    --------
    >>> import moe_search as ms
    >>> outputs = [[1.0, 0.0, 0.9], [0.0, 1.0, 1.1]]  # of three experts, numbers, for two rows
    >>> layer = [1.0, 1.0]  # what the first and the second expert make of them
    >>> problem = ms.ExpertSubset(
    ...     scores=[[2.0, 0.0, 1.0], [0.0, 2.0, 1.0]],
    ...     strengths=[[4.0, 1.0, 2.0], [1.0, 4.0, 2.0]],
    ...     gram=[[[a * b for b in row] for a in row] for row in outputs],
    ...     products=[[y * f for f in row] for y, row in zip(layer, outputs)],
    ...     energies=[y * y for y in layer],
    ...     keep=2,
    ...     k=1,
    ... )
    >>> round(problem.value([0, 1]), 3), round(problem.value([1, 2]), 3)
    (0.0, 0.01)
    """

    scores: npt.NDArray[np.float32]
    strengths: npt.NDArray[np.float32]
    gram: npt.NDArray[np.float32]
    products: npt.NDArray[np.float32]
    energies: npt.NDArray[np.float64]
    keep: int
    k: int
    share: Share = "chosen"
    num_groups: int = 1
    open_groups: int | None = None
    group_depth: int = 1

    def __post_init__(self) -> None:
        arrays: dict[str, Any] = {
            name: np.ascontiguousarray(getattr(self, name), dtype=np.float32)
            for name in ("scores", "strengths", "gram", "products")
        }
        arrays["energies"] = np.ascontiguousarray(self.energies, dtype=np.float64)
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise ValueError(f"{name} must be finite, got {int((~np.isfinite(array)).sum())} numbers that are not")
            object.__setattr__(self, name, read_only(array.view()))
        store_plain(self)
        if self.scores.ndim != 2 or self.scores.size == 0:
            raise ValueError(f"scores must have shape (rows, experts), got shape {self.scores.shape}")
        rows, n = self.scores.shape
        shapes = {"strengths": (rows, n), "gram": (rows, n, n), "products": (rows, n), "energies": (rows,)}
        for name, shape in shapes.items():
            if arrays[name].shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {arrays[name].shape}")
        if self.strengths.min() < 0:
            raise ValueError(f"strengths must not be negative, got {self.strengths.min():g}")
        require_choice("share", self.share, get_args(Share))
        for name in ("keep", "k", "num_groups", "group_depth"):
            require_integer(name, getattr(self, name))
        if n % self.num_groups:
            raise ValueError(f"num_groups must divide the number of experts, {n}, got {self.num_groups}")
        if not self.k <= self.keep < n or self.keep % self.num_groups:
            of_groups = f" and a multiple of num_groups, {self.num_groups}" if self.num_groups > 1 else ""
            raise ValueError(f"keep must be in {self.k} .. {n - 1}{of_groups}, got {self.keep}")
        if self.open_groups is None:
            object.__setattr__(self, "open_groups", self.num_groups)
        if require_integer("open_groups", self.open_groups) * self.keep_of_group < self.k:
            raise ValueError(
                f"open_groups must have the {self.k} experts of a row among them, got {self.open_groups} groups of"
                f" {self.keep_of_group} kept experts"
            )
        if self.group_depth > self.keep_of_group:
            raise ValueError(
                f"group_depth must be at most {self.keep_of_group}, the experts that stay of a group,"
                f" got {self.group_depth}"
            )

    def __repr__(self) -> str:
        groups = f", num_groups={self.num_groups}" if self.num_groups > 1 else ""
        return f"{type(self).__name__}({self.keep} of {self.num_experts} experts, {len(self.scores)} rows{groups})"

    @property
    def integral(self) -> bool:
        """Values are floats."""
        return False

    @property
    def num_experts(self) -> int:
        """Number of experts before any is dropped."""
        return self.scores.shape[1]

    @property
    def keep_of_group(self) -> int:
        """How many experts of a group stay."""
        return self.keep // self.num_groups

    @property
    def num_subsets(self) -> int:
        """How many solutions there are."""
        return math.comb(self.num_experts // self.num_groups, self.keep_of_group) ** self.num_groups

    @property
    def evaluation_cost(self) -> int:
        """Operations, of about a nanosecond, that the value of a subset takes."""
        rows, n = self.scores.shape
        return rows * (n + self.k * (self.k + 9))

    @cached_property
    def order(self) -> npt.NDArray[np.int32]:
        """The experts of every row by falling score."""
        return read_only(np.argsort(-self.scores, axis=1, kind="stable").astype(np.int32))

    def weights(self, kept: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return the weight of every expert, shape (rows, experts), where rows are routed among some experts only."""
        groups = self.num_groups, self.open_groups, self.group_depth
        return routed_weights(kept, self.scores, self.strengths, self.k, self.share, *groups)

    def value(self, solution: npt.ArrayLike) -> float:
        """Return the squared error of the layer that keeps some experts only, summed over the rows."""
        weights = self.weights(self.check_solution(solution))
        squares = np.einsum("te,tef,tf->", weights, self.gram, weights, optimize=True)
        return float(squares - 2 * (weights * self.products).sum() + self.energies.sum())

    def check_solution(self, solution: npt.ArrayLike, name: str = "solution") -> Subset:
        """Return the kept experts in their order as a new array, or raise an error that says why they are none."""
        kept = np.asarray(solution)
        if kept.dtype.kind not in "iu":
            raise TypeError(f"{name} must hold integers, got dtype {kept.dtype}")
        if kept.shape != (self.keep,):
            raise ValueError(f"{name} must have shape ({self.keep},), got shape {kept.shape}")
        if kept.min() < 0 or kept.max() >= self.num_experts:
            raise ValueError(f"{name} must hold experts 0 .. {self.num_experts - 1}, got {kept.min()} .. {kept.max()}")
        if len(np.unique(kept)) < self.keep:
            raise ValueError(f"{name} must hold no expert twice, got {kept.tolist()}")
        of_groups = np.bincount(kept * self.num_groups // self.num_experts, minlength=self.num_groups)
        if of_groups.min() < of_groups.max():
            raise ValueError(f"{name} must hold equally many experts of every group, got {of_groups.tolist()}")
        return np.sort(kept).astype(np.int64)

    def random_solution(self, rng: np.random.Generator) -> Subset:
        """Return uniformly random experts, equally many of every group."""
        return self.best_by(rng.random(self.num_experts))

    def best_by(self, merits: npt.ArrayLike) -> Subset:
        """Return the experts of the highest merits, one number an expert, equally many of every group."""
        return best_of_groups(merits, self.num_groups, self.keep)

    def ordinary_value(self) -> float:
        """Return the value of a layer that answers with zeros."""
        return float(self.energies.sum())

    def arrays(self) -> SubsetArrays:
        """Return what the kernels read."""
        return SubsetArrays(
            self.order,
            self.scores,
            self.strengths,
            self.products,
            self.gram,
            self.energies,
            self.k,
            get_args(Share).index(self.share),
            self.num_groups,
            self.open_groups or self.num_groups,
            self.group_depth,
        )


def routed_weights(
    kept: npt.ArrayLike,
    scores: npt.NDArray[np.float32],
    strengths: npt.NDArray[np.float32],
    k: int,
    share: Share,
    num_groups: int = 1,
    open_groups: int | None = None,
    group_depth: int = 1,
) -> npt.NDArray[np.float64]:
    """Return the weight of every expert, shape (rows, experts), where rows are routed among some experts only.

    The arguments are those of `ExpertSubset`.
    """
    mask = np.zeros(scores.shape[1], dtype=np.bool_)
    mask[np.asarray(kept)] = True
    among = np.where(mask, scores, -np.inf)
    if open_groups is not None and open_groups < num_groups:
        grouped = among.reshape(len(among), num_groups, -1)
        sums = np.sort(grouped, axis=2)[:, :, -group_depth:].sum(axis=2, dtype=np.float32)
        closed = np.argsort(-sums, axis=1, kind="stable")[:, open_groups:]
        np.put_along_axis(grouped, closed[:, :, None], -np.inf, axis=1)
    chosen = np.argsort(-among, axis=1, kind="stable")[:, :k]
    taken = np.take_along_axis(strengths, chosen, axis=1).astype(np.float64)
    if share != "none":
        shared = taken if share == "chosen" else np.where(mask, strengths, 0.0)
        total = shared.sum(axis=1, keepdims=True, dtype=np.float64)
        # Strengths that underflowed to 0 share nothing out.
        taken /= np.where(total == 0.0, 1.0, total)
    weights = np.zeros(scores.shape)
    np.put_along_axis(weights, chosen, taken, axis=1)
    return weights


@compiled
def subset_error(kept: Any, a: SubsetArrays, taken: Any, is_open: Any) -> float:
    """Return the value of the kept experts; `taken` and `is_open` are room for k experts and for the groups."""
    n = a.order.shape[1]
    size = n // a.num_groups
    limited = a.open_groups < a.num_groups
    total = 0.0
    for t in range(a.order.shape[0]):
        order, strengths, gram = a.order[t], a.strengths[t], a.gram[t]
        if limited:
            open_best_groups(kept, order, a.scores[t], a, is_open)
        count = 0
        for i in range(n):
            e = order[i]
            if kept[e] and (not limited or is_open[e // size]):
                taken[count] = e
                count += 1
                if count == a.k:
                    break
        shared = 1.0
        if a.share == 0:
            shared = 0.0
            for i in range(count):
                shared += strengths[taken[i]]
        elif a.share == 1:
            shared = 0.0
            for e in range(n):
                if kept[e]:
                    shared += strengths[e]
        if shared == 0.0:
            shared = 1.0
        square, product = 0.0, 0.0
        for i in range(count):
            e = taken[i]
            w = strengths[e] / shared
            product += w * a.products[t, e]
            square += w * w * gram[e, e]
            for j in range(i):
                square += 2.0 * w * (strengths[taken[j]] / shared) * gram[e, taken[j]]
        total += square - 2.0 * product + a.energies[t]
    return total


@compiled
def open_best_groups(kept: Any, order: Any, scores: Any, a: SubsetArrays, is_open: Any) -> None:
    """Say which groups a row may take experts of: those with the highest sums of their highest scores."""
    size = order.shape[0] // a.num_groups
    for g in range(a.num_groups):
        is_open[g] = False
    for _ in range(a.open_groups):
        best, most = -1, np.float32(-np.inf)
        for g in range(a.num_groups):
            if is_open[g]:
                continue
            total, found = np.float32(0.0), 0
            for i in range(order.shape[0]):
                e = order[i]
                if kept[e] and e // size == g:
                    total += scores[e]
                    found += 1
                    if found == a.group_depth:
                        break
            if best < 0 or total > most:
                best, most = g, total
        is_open[best] = True


def best_of_groups(merits: npt.ArrayLike, num_groups: int, keep: int) -> Subset:
    """Return the `keep` experts of the highest merits, one number an expert, equally many of every group."""
    grouped = np.asarray(merits, dtype=np.float64).reshape(num_groups, -1)
    best = np.argsort(-grouped, axis=1, kind="stable")[:, : keep // num_groups]
    return np.sort((best + np.arange(num_groups)[:, None] * grouped.shape[1]).ravel())
