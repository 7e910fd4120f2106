"""Values and moves written out from their definitions in plain Python; shares no code with the package."""

import itertools
import math


def linear_value(cost, p):
    capacity = len(cost) // len(cost[0])
    return sum(cost[s][p[s] // capacity] for s in range(len(p)))


def quadratic_value(flow, distance, linear, p):
    n = len(p)
    value = sum(flow[i][j] * distance[p[i]][p[j]] for i in range(n) for j in range(n))
    return value if linear is None else value + sum(linear[i][p[i]] for i in range(n))


def expert(seat, num_experts, block_size):
    return (seat % block_size) // (block_size // num_experts)


def pairwise_value(cost, block_size, p):
    n, m = len(cost[0][0]), len(p)
    e = [expert(p[s], n, block_size) for s in range(m)]
    return sum(cost[s][t][e[s]][e[t]] for s in range(m) for t in range(m))


def sample_loss(loss, z, y):
    if loss == "squared":
        return sum((a - b) ** 2 for a, b in zip(z, y, strict=True))
    if loss == "bce":
        total = 0.0
        for a, b in zip(z, y, strict=True):
            q = 1.0 / (1.0 + math.exp(-a))
            total -= b * math.log(q) + (1 - b) * math.log(1 - q)
        return total
    labels = [y] if not hasattr(y, "__len__") else list(y)
    classes = len(z) // len(labels)
    total = 0.0
    for g, label in enumerate(labels):
        part = z[g * classes : (g + 1) * classes]
        total -= math.log(math.exp(part[label]) / sum(math.exp(a) for a in part))
    return total


def mixture_value(weights, outputs, targets, loss, sample_weights, p):
    num_samples, num_selectors, m = len(weights), len(weights[0]), len(weights[0][0])
    n, width = len(outputs[0]), len(outputs[0][0])
    value = 0.0
    for b in range(num_samples):
        z = [0.0] * width
        for t in range(num_selectors):
            for s in range(m):
                e = expert(p[t * m + s] - t * m, n, m)
                for d in range(width):
                    z[d] += weights[b][t][s] * outputs[b][e][d]
        w = 1.0 / num_samples if sample_weights is None else sample_weights[b]
        value += w * sample_loss(loss, z, targets[b])
    return value


def loads_of_experts(slot_loads, num_experts, block_size, p):
    loads = [0] * num_experts
    for s in range(len(p)):
        loads[expert(p[s], num_experts, block_size)] += slot_loads[s]
    return loads


def excess_load(slot_loads, limits, block_size, p):
    loads = loads_of_experts(slot_loads, len(limits), block_size, p)
    return sum(max(0, load - limit) for load, limit in zip(loads, limits, strict=True))


def swapped(p, a, b):
    q = list(p)
    q[a], q[b] = q[b], q[a]
    return q


def inserted(p, origin, destination):
    order = sorted(range(len(p)), key=lambda s: p[s])
    slot = order.pop(origin)
    order.insert(destination, slot)
    q = [0] * len(p)
    for seat, s in enumerate(order):
        q[s] = seat
    return q


def permutations(size, block_size):
    blocks = [
        [[start + x for x in q] for q in itertools.permutations(range(block_size))]
        for start in range(0, size, block_size)
    ]
    return [list(itertools.chain(*parts)) for parts in itertools.product(*blocks)]
