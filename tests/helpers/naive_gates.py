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


def router(logits, k, scores, renormalize, scale, choice_bias):
    """[m] of one sample without ties, from the formulas of the papers: scores, choice, sum."""
    s = softmax(logits) if scores == "softmax" else [1 / (1 + math.exp(-a)) for a in logits]
    kept = sorted(range(len(s)), key=lambda i: -(s[i] + choice_bias[i]))[:k]
    total = sum(s[i] for i in kept) if renormalize else 1.0
    return [scale * s[i] / total if i in kept else 0.0 for i in range(len(s))]


def published_comet(x, nodes, paths, num_trees, gamma, convention):
    """[n] of one sample: the weights of experts in a published COMET, from the path to each of them.

    nodes[i][t] is (weight, bias) of tree t at node i; paths[e] is (leaf of expert e, [(split node, goes left), ...]).
    """
    least, offset = {"torch": (1e-5, 1e-6), "tensorflow": (0.0, 1e-8)}[convention]
    parts = [0.0] * len(paths)
    for e, (leaf, path) in enumerate(paths):
        for t in range(num_trees):
            p = 1.0
            for node, left in path:
                step = smooth_step(dot(*nodes[node][t], x), gamma)
                p *= step if left else 1 - step
            if p > 0 and p >= least:
                parts[e] += math.exp(dot(*nodes[leaf][t], x)) * (p + offset)
    return [part / sum(parts) for part in parts]


def published_comet_penalty(probabilities, convention):
    """Of path probabilities [B][T][m]: what the published versions penalize, their factor left out."""
    total = 0.0
    for sample in probabilities:
        for p in (p for row in sample for p in row):
            if convention == "torch":
                q = max(p, 1e-6) + 1e-6
                total -= q * math.log(q)
            else:
                total -= p * math.log(p + 1e-6)
    return total / len(probabilities)


def dselect_k(bits, selectors, num_slots, gamma):
    """(g, p), each [T][m], of one sample, before anything makes up for codes of no slot; bits [T][bits]."""
    p = []
    for values in bits:
        row = []
        for s in range(num_slots):
            code = f"{s:b}".zfill(len(values)) if values else ""
            probability = 1.0
            for digit, value in zip(code, values, strict=True):
                probability *= smooth_step(value, gamma) if digit == "1" else 1 - smooth_step(value, gamma)
            row.append(probability)
        p.append(row)
    return [[w * q for q in row] for w, row in zip(softmax(selectors), p, strict=True)], p


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
