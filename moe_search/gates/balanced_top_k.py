"""The gate that gives every slot equally many rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from moe_search.checks import require_choice, require_number
from moe_search.gates.batch_checks import weight_dtype
from moe_search.gates.gate import Gate, SlotWeights, require_k
from moe_search.gates.top_k import SCORES, scored_weights


class BalancedTopK(Gate):
    """Weights k slots of every row, so chosen that no slot has more rows than its capacity and no row is dropped.

    Of all such choices it is the one with the largest sum of logits over the batch, solved to optimality as a
    `BalancedRouting`. With k = 1 it is the assignment of BASE layers. The weights of the slots chosen are those of
    `TopK`. In training mode, the choice of a row depends on the other rows of the batch; in eval mode each row has its
    k largest logits, unless `greedy_eval` is False. So it has in searches, which look at the model in eval mode.

    Parameters
    ----------
    in_features, num_experts, num_slots : int
        Features of a sample, experts n and slots m; see `Gate`. With m > n, two of the k slots may be of one expert.
    k : int
        Number of slots of a row, all different, at most m.
    capacity_factor : float
        How many rows a slot takes at most, as a multiple of its equal share, rows k / m, rounded up; 1 at least. A
        large one leaves every row its k largest logits.
    scores : {"softmax", "sigmoid"}
        What makes scores of logits; see `TopK`.
    renormalize : bool, optional
        Whether the weights of a row sum to 1. By default they do for k > 1, and do not for k = 1; see `TopK`.
    greedy_eval : bool
        Whether rows take their k largest logits in eval mode, whatever the load.

    Notes
    -----
    Rows of padding take no capacity. The choice has no gradient, the weights have. It is made on the processor, from
    logits in float64, and the same logits give the same choice. In a process group, every rank balances its own rows,
    which balances them all. `torch.compile` and `torch.export` take it as one operator that they do not look into.
    `warm_up` of a `BalancedRouting` compiles its kernels, which otherwise the first step does, in some seconds.

    Lewis et al. (2021), BASE layers: simplifying training of large, sparse models. There, sigmoid of the logit is the
    weight: ``scores="sigmoid"``.

    Examples
    --------
    >>> import torch
    >>> import moe_search as ms
    >>> gate = ms.BalancedTopK(in_features=8, num_experts=4, k=2)
    >>> (gate(torch.randn(10, 8)).weights > 0).sum(0).flatten().tolist()
    [5, 5, 5, 5]
    """

    def __init__(
        self,
        in_features: int,
        num_experts: int,
        k: int,
        num_slots: int | None = None,
        capacity_factor: float = 1.0,
        scores: str = "softmax",
        renormalize: bool | None = None,
        greedy_eval: bool = True,
    ) -> None:
        super().__init__(num_experts, num_slots, in_features=in_features)
        self.k = require_k(k, self.num_slots)
        self.capacity_factor = require_number("capacity_factor", capacity_factor, 1.0)
        require_choice("scores", scores, SCORES)
        self.scores = scores
        self.renormalize = self.k > 1 if renormalize is None else bool(renormalize)
        self.greedy_eval = bool(greedy_eval)
        self.linear = nn.Linear(in_features, self.num_slots)

    @property
    def most_slots(self) -> int:
        """The k that are chosen."""
        return self.k

    def forward(self, inputs: Tensor, ids: Tensor | None = None, mask: Tensor | None = None) -> SlotWeights:
        """Return the weights of the slots; see `Gate.forward`."""
        logits = self.linear(self.features(inputs, weight_dtype(self.linear), mask)).unsqueeze(1)
        if self.training or not self.greedy_eval:
            slots = balanced_slots(logits.detach().squeeze(1), mask, self.k, self.capacity_factor).unsqueeze(1)
        else:
            slots = logits.topk(self.k, dim=2, sorted=False).indices
        return SlotWeights(scored_weights(logits, slots, self.scores, self.renormalize), logits).masked(mask)

    def extra_repr(self) -> str:
        """Return the sizes and the choice, for `repr`."""
        return (
            f"{super().extra_repr()}, k={self.k}, capacity_factor={self.capacity_factor:g}, scores={self.scores}, "
            f"renormalize={self.renormalize}, greedy_eval={self.greedy_eval}"
        )


# An operator, so that torch.compile and torch.export need not trace a solver.
@torch.library.custom_op(
    "moe_search::balanced_slots",
    mutates_args=(),
    schema="(Tensor logits, Tensor? mask, int k, float capacity_factor) -> Tensor",
)
def balanced_slots(logits: Tensor, mask: Tensor | None, k: int, capacity_factor: float) -> Tensor:
    """Return the slots of every row, shape [B, k], from logits of shape [B, m]; the first ones in rows of padding."""
    # Imported here: a gate that is only evaluated needs no solver.
    from moe_search.problems.balanced_routing import BalancedRouting
    from moe_search.solvers.engine.stop import MaxRuntime
    from moe_search.solvers.exact.transport import Transport

    slots = torch.arange(k, device=logits.device).expand(len(logits), k).contiguous()
    counted = None if mask is None else mask.reshape(-1).bool()
    rows = logits if counted is None else logits[counted]
    if len(rows) == 0:
        return slots
    capacity = math.ceil(min(capacity_factor * len(rows) * k / logits.shape[1], len(rows)))
    scores = rows.to(device="cpu", dtype=torch.float64)
    # As in `torch.topk`, a NaN counts as the largest: it shows in the weights, for whoever skips such a step.
    most = float(scores.masked_fill(~scores.isfinite(), 0.0).abs().max())
    problem = BalancedRouting(-scores.nan_to_num(nan=most, posinf=most, neginf=-most).numpy(), k, capacity)
    result = Transport().solve(problem, MaxRuntime(math.inf))
    if result.status == "interrupted":
        raise KeyboardInterrupt
    chosen = torch.tensor(result.solution, device=logits.device)
    return chosen if counted is None else slots.index_put((counted,), chosen)


@balanced_slots.register_fake
def _(logits: Tensor, mask: Tensor | None, k: int, capacity_factor: float) -> Tensor:
    return logits.new_empty((logits.shape[0], k), dtype=torch.int64)
