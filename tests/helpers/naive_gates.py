"""Gates, maps and mixtures written out from their formulas: plain Python numbers, one sample and one node at a time."""

import math


def dot(weight, bias, x):
    return sum(w * v for w, v in zip(weight, x, strict=True)) + bias


def smooth_step(t, gamma):
    if t <= -gamma / 2:
        return 0.0
    if t >= gamma / 2:
        return 1.0
    return -2 * t**3 / gamma**3 + 3 * t / (2 * gamma) + 0.5


def tree(splits, gamma):
    """Probability of the leaves of one tree in heap order, by descending from the root."""
    num_splits = len(splits)
    leaves = [None] * (num_splits + 1)

    def descend(node, probability):
        if node >= num_splits:
            leaves[node - num_splits] = probability
        else:
            left = smooth_step(splits[node], gamma)
            descend(2 * node + 1, probability * left)
            descend(2 * node + 2, probability * (1 - left))

    descend(0, 1.0)
    return leaves


def comet(x, node_weights, node_biases, num_trees, gamma):
    """(g, p), each [T][m], of one sample; nodes of tree after tree, the splits of a tree before its leaves."""
    num_nodes = len(node_weights) // num_trees
    num_splits = (num_nodes - 1) // 2
    values = [dot(w, b, x) for w, b in zip(node_weights, node_biases, strict=True)]
    trees = [values[t * num_nodes : (t + 1) * num_nodes] for t in range(num_trees)]
    p = [tree(nodes[:num_splits], gamma) for nodes in trees]
    a = [nodes[num_splits:] for nodes in trees]
    top = max(max(row) for row in a)
    # softmax of a + log p = p exp(a), normalized; p = 0 needs no care in this form.
    parts = [[q * math.exp(v - top) for q, v in zip(ps, vs, strict=True)] for ps, vs in zip(p, a, strict=True)]
    total = sum(map(sum, parts))
    return [[part / total for part in row] for row in parts], p


def entropy(probabilities):
    """Of distributions [B][T][m]: the mean over samples of the sum of -p log p."""
    total = 0.0
    for sample in probabilities:
        for row in sample:
            total -= sum(p * math.log(p) for p in row if p > 0)
    return total / len(probabilities)


def softmax(logits):
    top = max(logits)
    parts = [math.exp(v - top) for v in logits]
    return [part / sum(parts) for part in parts]


def top_k(logits, k):
    """Of one sample without ties."""
    kept = sorted(range(len(logits)), key=lambda s: -logits[s])[:k]
    weights = [0.0] * len(logits)
    for s, w in zip(kept, softmax([logits[s] for s in kept]), strict=True):
        weights[s] = w
    return weights


def expert_weights(slot_weights, experts, num_experts):
    """[n] of one sample, from its slot weights [T][m] and the map [T][m] or, shared, [1][m]."""
    weights = [0.0] * num_experts
    for t, row in enumerate(slot_weights):
        for s, weight in enumerate(row):
            weights[experts[t % len(experts)][s]] += weight
    return weights


def mixture(inputs, weights, experts):
    """Dense: every expert (a callable on a batch of one) on every sample, weights [B][n]; a list of outputs."""
    mixed = []
    for b in range(len(inputs)):
        total = 0.0
        for e, expert in enumerate(experts):
            total = total + weights[b][e] * expert(inputs[b : b + 1])[0]
        mixed.append(total)
    return mixed
