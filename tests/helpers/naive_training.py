"""What lowering computes, from the definition: one sample, one slot, one expert at a time."""

import itertools
import math

import numpy as np


def linear_cost(slots, num_slots, experts, head, loss, inputs, targets, weights=None):
    """cost[s, e]: the loss of the samples of slot s if expert e answers, over the number of all samples.

    An answer is multiplied by the weight of its sample, 1 by default.
    """
    cost = np.zeros((num_slots, len(experts)))
    for b in range(len(inputs)):
        for s in range(num_slots):
            for e in range(len(experts)):
                if slots[b] == s:
                    answer = head((1.0 if weights is None else weights[b]) * experts[e](inputs[b : b + 1]))
                    cost[s, e] += float(loss(answer, targets[b : b + 1])) / len(inputs)
    return cost


def pairwise_cost(weights, experts, head, loss, inputs, targets):
    """cost[s, t, e, f], s <= t: the loss of the samples of slots s and t if e and f answer, over the number of all."""
    m, n = weights.shape[1], len(experts)
    cost = np.zeros((m, m, n, n))
    for b in range(len(inputs)):
        slots = [s for s in range(m) if weights[b, s] > 0]
        s, t = slots[0], slots[-1]
        for e in range(n):
            for f in range(n):
                mixture = weights[b, s] * experts[e](inputs[b : b + 1])
                if s != t:
                    mixture = mixture + weights[b, t] * experts[f](inputs[b : b + 1])
                elif e != f:
                    continue
                cost[s, t, e, f] += float(loss(head(mixture), targets[b : b + 1])) / len(inputs)
    return cost


def mixture_loss(weights, expert_of_slot, experts, head, loss, inputs, targets):
    """Mean loss of the mixture: weights [B, T, m], expert_of_slot [T][m]."""
    total = 0.0
    for b in range(len(inputs)):
        mixture = 0.0
        for t in range(weights.shape[1]):
            for s in range(weights.shape[2]):
                if weights[b, t, s] > 0:
                    mixture = mixture + weights[b, t, s] * experts[expert_of_slot[t][s]](inputs[b : b + 1])
        total += float(loss(head(mixture), targets[b : b + 1]))
    return total / len(inputs)


def folded_output(head, mixture, expert_output, step=1e-4):
    """o(z0) + J (f - z0) for one sample, the directional derivative by central differences."""
    direction = expert_output - mixture
    slope = (head(mixture + step * direction) - head(mixture - step * direction)) / (2 * step)
    return head(mixture) + slope


def sinkhorn(scores, iterations):
    """Entries exp(scores) of one matrix, columns and then rows divided by their sums, so many times."""
    p = [[math.exp(score) for score in row] for row in scores]
    m = len(p)
    for _ in range(iterations):
        sums = [sum(p[s][j] for s in range(m)) for j in range(m)]
        p = [[p[s][j] / sums[j] for j in range(m)] for s in range(m)]
        p = [[entry / sum(row) for entry in row] for row in p]
    return p


def permuted(slot_weights, matrices):
    """[T][m] of one sample: weights of seats from weights of slots; one matrix for each selector, or one for all."""
    m = len(slot_weights[0])
    return [
        [sum(row[s] * matrices[t % len(matrices)][s][j] for s in range(m)) for j in range(m)]
        for t, row in enumerate(slot_weights)
    ]


def best_permutation(matrix):
    """The permutation under which the chosen entries have the largest sum."""
    m = len(matrix)
    return list(max(itertools.permutations(range(m)), key=lambda p: sum(matrix[s][p[s]] for s in range(m))))
