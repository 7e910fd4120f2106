"""Placements written out from their definition in plain Python; shares no code with the package."""

import itertools


def placements(num_experts, slots, groups=None, first_copy_only=False):
    """Yield all placements as one set of experts for each device; `groups` are the number of groups and of nodes."""
    fits = at_home if first_copy_only else grouped
    for held in itertools.product(*(itertools.combinations(range(num_experts), count) for count in slots)):
        if set().union(*held) == set(range(num_experts)) and (groups is None or fits(held, num_experts, *groups)):
            yield held


def grouped(held, num_experts, num_groups, num_nodes):
    """Return whether every group is on one node, and every node has as many groups."""
    size, near = num_experts // num_groups, len(held) // num_nodes
    nodes = [{e // size for each in held[n * near : (n + 1) * near] for e in each} for n in range(num_nodes)]
    return all(len(node) == num_groups // num_nodes for node in nodes)


def at_home(held, num_experts, num_groups, num_nodes):
    """Return whether nodes can be the homes of equally many groups, of all whose experts they have a copy."""
    size, near = num_experts // num_groups, len(held) // num_nodes
    nodes = [{e for each in held[n * near : (n + 1) * near] for e in each} for n in range(num_nodes)]
    return any(
        all(set(range(g * size, (g + 1) * size)) <= nodes[k * num_nodes // num_groups] for k, g in enumerate(order))
        for order in itertools.permutations(range(num_groups))
    )


def largest_load(held, load):
    copies = [sum(e in each for each in held) for e in range(len(load))]
    return max(sum(load[e] / copies[e] for e in each) for each in held)


def migrations(held, before):
    return sum(len(set(now) - set(old)) for now, old in zip(held, before, strict=True))


def devices_of(row, slots):
    """Return the experts of every device, given those of all slots."""
    row = iter(row)
    return [[next(row) for _ in range(count)] for count in slots]


def few_units(held, sets, load, limit, near):
    """Return the mean number of units of `near` devices that sets (set, weight) of experts are on, overload added."""
    nodes = [set().union(*held[i : i + near]) for i in range(0, len(held), near)]
    units = sum(weight * sum(bool(node & each) for node in nodes) for each, weight in sets)
    over = sum(max(0.0, sum(load[e] for e in each) / limit - 1) for each in held)
    return units / sum(weight for _, weight in sets) + len(nodes) * 1000 * over
