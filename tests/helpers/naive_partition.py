"""Divisions of neurons written out from their definition in plain Python; shares no code with the package."""

import itertools


def divisions(neurons, num_experts, shared=()):
    """Yield the expert of every neuron, -1 for shared ones, of all divisions; experts are told apart by first use."""
    size = (neurons - len(shared)) // num_experts
    for experts in itertools.product(range(num_experts), repeat=neurons - len(shared)):
        first = list(dict.fromkeys(experts))
        if first == sorted(first) and all(experts.count(e) == size for e in range(num_experts)):
            rest = iter(experts)
            yield [-1 if j in shared else next(rest) for j in range(neurons)]


def most_massive(mass, shared):
    """Return the neurons of the greatest mass."""
    total = [sum(row[j] for row in mass) for j in range(len(mass[0]))]
    return sorted(sorted(range(len(total)), key=lambda j: -total[j])[:shared])


def run_experts(row, experts, num_experts, active):
    """Return the experts that a row runs."""
    mass = [sum(m for m, e in zip(row, experts, strict=True) if e == expert) for expert in range(num_experts)]
    return sorted(range(num_experts), key=lambda e: -mass[e])[:active]


def lost_mass(mass, experts, num_experts, active):
    lost = 0.0
    for row in mass:
        run = run_experts(row, experts, num_experts, active)
        lost += sum(m for m, e in zip(row, experts, strict=True) if e >= 0 and e not in run)
    return lost / sum(map(sum, mass))


def squared_error(mass, activations, weights, experts, num_experts, active):
    lost = whole = 0.0
    for row, values in zip(mass, activations, strict=True):
        run = run_experts(row, experts, num_experts, active)
        for output in weights:
            parts = [w * a for w, a in zip(output, values, strict=True)]
            whole += sum(parts) ** 2
            lost += sum(part for part, e in zip(parts, experts, strict=True) if e >= 0 and e not in run) ** 2
    return lost / whole
