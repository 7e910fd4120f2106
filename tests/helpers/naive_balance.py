"""Statistics and penalties of routing, from their formulas: plain Python numbers, one sample and expert at a time."""

import math


def importance(expert_weights):
    return [sum(sample[e] for sample in expert_weights) for e in range(len(expert_weights[0]))]


def load(expert_weights):
    return [sum(sample[e] > 0 for sample in expert_weights) for e in range(len(expert_weights[0]))]


def squared_variation(amounts):
    mean = sum(amounts) / len(amounts)
    return sum((amount - mean) ** 2 for amount in amounts) / len(amounts) / mean**2


def entropy(distribution):
    return -sum(p * math.log(p) for p in distribution if p > 0)


def chosen_again(logits, noisy, scale, k):
    """Of one selector: for every slot, the probability of a place among the k with its own noise drawn again."""
    probabilities = []
    for s in range(len(logits)):
        others = sorted((noisy[j] for j in range(len(logits)) if j != s), reverse=True)
        z = (logits[s] - others[k - 1]) / scale[s]
        probabilities.append(0.5 * (1 + math.erf(z / math.sqrt(2))))
    return probabilities


def co_activation(expert_weights):
    n = len(expert_weights[0])
    return [[sum(sample[e] > 0 and sample[f] > 0 for sample in expert_weights) for f in range(n)] for e in range(n)]


def lowered_biases(weight, biases, experts, inputs, k, n, past_loads, rate, memory, expert_limit, slot_limit):
    """Biases of the slots of a Top-k gate after a batch, and the running averages of their loads."""
    m = len(biases)
    counts = [0] * m
    for x in inputs:
        logits = [biases[s] + sum(w * a for w, a in zip(weight[s], x, strict=True)) for s in range(m)]
        for s in sorted(range(m), key=lambda s: -logits[s])[:k]:
            counts[s] += 1
    loads = [count / (sum(counts) / n) for count in counts]
    if past_loads is not None:
        loads = [memory * past + (1 - memory) * now for past, now in zip(past_loads, loads, strict=True)]
    lowered = []
    for s in range(m):
        own = sum(loads[t] for t in range(m) if experts[t] == experts[s])
        times = (own > expert_limit) + (slot_limit is not None and loads[s] > slot_limit)
        lowered.append(biases[s] - times * rate)
    return lowered, loads
