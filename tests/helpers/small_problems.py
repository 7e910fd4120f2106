"""Random small problems of every class with all their solutions, as the naive twins value them."""

import itertools

import numpy as np
from instances import naive_value
from naive import excess_load, permutations
from naive_partition import divisions, lost_mass, squared_error
from naive_placement import devices_of, few_units, largest_load, migrations, placements
from naive_subset import Instance

import moe_search as ms


def numbers(rng, shape):
    """Integers or floats: of one sign or of both, mostly zeros, of a wide range, or all nearly equal."""
    kind = rng.integers(7)
    if kind < 3:
        return (rng.integers(0, 100, shape), rng.integers(-50, 50, shape), -rng.integers(0, 9, shape))[kind]
    if kind == 3:
        return rng.integers(1, 100, shape) * (rng.random(shape) < 0.3)
    if kind == 4:
        return rng.standard_normal(shape)
    if kind == 5:
        return rng.choice([-1.0, 1.0], shape) * 10.0 ** rng.uniform(-9, 9, shape)
    return 1000 + rng.random(shape) * 10.0 ** -rng.integers(0, 9)


def matrix(rng, size):
    square = numbers(rng, (size, size))
    if rng.random() < 0.5:
        square = square + square.T
    if rng.random() < 0.5:
        np.fill_diagonal(square, 0)
    return square


def linear(rng):
    experts, capacity = [(1, 3), (2, 1), (2, 3), (3, 2), (4, 1), (5, 1), (6, 1), (2, 2)][rng.integers(8)]
    return ms.LinearAssignment(numbers(rng, (experts * capacity, experts)))


def quadratic(rng):
    size = int(rng.integers(2, 7))
    term = numbers(rng, (size, size)) if rng.random() < 0.3 else None
    return ms.QuadraticAssignment(matrix(rng, size), matrix(rng, size), term)


def pairwise(rng):
    experts, capacity, blocks = [(2, 1, 1), (3, 1, 1), (4, 1, 1), (2, 2, 1), (3, 2, 1), (2, 1, 2), (3, 1, 2)][
        rng.integers(7)
    ]
    slots = experts * capacity * blocks
    cost = numbers(rng, (slots, slots, experts, experts))
    return ms.PairwiseAssignment(cost * (rng.random((slots, slots, 1, 1)) < rng.choice([0.2, 1.0])), experts * capacity)


def mixture(rng):
    slots, experts, blocks = [(3, 3, 1), (4, 4, 1), (4, 2, 1), (3, 3, 2), (5, 5, 1)][rng.integers(5)]
    loss = ("squared", "squared", "bce", "cross_entropy")[rng.integers(4)]
    k = int(rng.integers(1, slots + 1))
    return ms.random_mixture(slots, experts, num_samples=5, seed=rng, k=k, num_selectors=blocks, loss=loss)


def load_limited(rng):
    """A problem with limits, or None if the loads fit nowhere, which is held against all permutations."""
    inner = (linear, quadratic, pairwise, mixture)[rng.integers(4)](rng)
    loads = rng.integers(0, 9, inner.size) if rng.random() < 0.7 else rng.random(inner.size)
    mean = loads.sum() / inner.num_experts
    limits = mean * (1 + rng.random(inner.num_experts)) + (loads.max() if rng.random() < 0.5 else 0)
    limits = np.ceil(limits) if loads.dtype.kind == "i" else limits
    limits = limits.astype(loads.dtype)
    every = permutations(inner.size, inner.block_size)
    fits = [p for p in every if excess_load(loads.tolist(), limits.tolist(), inner.block_size, p) == 0]
    try:
        return ms.LoadLimited(inner, loads, limits), fits
    except ms.InfeasibleLimitsError:
        assert not fits, (loads, limits)
        return None


def placement(rng):
    shapes = [((2, 2), 3, None), ((2, 2, 2), 4, None), ((3, 1, 2), 4, None), ((1, 2, 2), 3, None), ((3, 2), 4, None)]
    slots, experts, groups = [*shapes, ((2, 1, 2, 1), 4, (2, 2)), ((2, 2, 2, 2), 4, (2, 2))][rng.integers(7)]
    load = [rng.integers(1, 60, experts), rng.lognormal(sigma=2.0, size=experts), rng.integers(0, 5, experts)][
        rng.integers(3)
    ]
    load[0] += load.sum() == 0
    problem = ms.ExpertPlacement(load, ms.Cluster(len(slots), slots, groups[1] if groups else 1), groups and groups[0])
    return problem, slots, list(placements(experts, slots, groups))


def placed(slots, naive):
    """Return a value of a `Placement` from one of sets of experts, one a device."""
    return lambda solution: naive([set(x) for x in devices_of(solution.physical_to_logical[0].tolist(), slots)])


def rebalancing(rng):
    problem, slots, every = placement(rng)
    before = every[rng.integers(len(every))]
    row = problem.load[0].tolist()
    option = ("budget", "tolerance", "transfer_cost")[rng.integers(3)]
    given = {"budget": int(rng.integers(1, 5)), "tolerance": 0.05, "transfer_cost": 0.05 * sum(row)}[option]
    limit = problem.load_bounds[0] * (1.05 + 2e-9)
    allowed = [x for x in every if option != "budget" or migrations(x, before) <= given]

    def naive(held):
        moved, largest = migrations(held, before), largest_load(held, row)
        if option == "tolerance":
            return moved + sum(slots) * 1000 * max(0.0, largest / limit - 1)
        return largest + (given * moved if option == "transfer_cost" else 0.0)

    return ms.Rebalancing(problem, [e for each in before for e in each], **{option: given}), slots, allowed, naive


def co_activation(rng):
    slots = [(2, 2), (3, 3), (2, 2, 2), (1, 2, 3)][rng.integers(4)]
    experts = sum(slots)
    chosen = int(rng.integers(2, min(4, experts) + 1))
    tokens = np.array([rng.choice(experts, chosen, replace=False) for _ in range(rng.integers(3, 12))])
    tolerance = float(rng.choice([0.05, 0.3]))
    problem = ms.CoActivation(ms.Cluster(len(slots), slots), tokens, tolerance=tolerance)
    sets, load = [(set(token), 1) for token in tokens.tolist()], problem.load[0].tolist()
    limit = (1 + tolerance + 2e-9) * problem.placement.load_bounds[0]
    naive = placed(slots, lambda held: few_units(held, sets, load, limit, 1))
    return problem, naive, [few_units(held, sets, load, limit, 1) for held in placements(experts, slots)]


def expert_subset(rng):
    share = ("chosen", "kept", "none")[rng.integers(3)]
    instance = Instance(rng.integers(10**6), rows=6, n=5, keep=int(rng.integers(2, 5)), k=2, share=share, width=2)
    every = itertools.combinations(range(5), instance.problem.keep)
    return instance.problem, lambda kept: instance.error(kept.tolist()), [instance.error(kept) for kept in every]


def neuron_partition(rng):
    shared, experts, active = [(0, 2, 1), (0, 3, 1), (0, 3, 2), (2, 2, 1)][rng.integers(4)]
    activations, weights = rng.standard_normal((4, 6)), rng.standard_normal((2, 6))
    # Some rows use few neurons, which a division may keep all of.
    activations *= rng.random(activations.shape) < rng.choice([0.4, 1.0])
    activations[0, 0] += 1.0
    mass = (activations * np.linalg.norm(weights, axis=0)) ** 2
    error = rng.random() < 0.5
    given = (activations, weights) if error else ()
    problem = ms.NeuronPartition(mass, experts, active, shared, *given)

    def naive(labels):
        labels = [int(e) for e in labels]
        if error:
            return squared_error(mass.tolist(), activations.tolist(), weights.tolist(), labels, experts, active)
        return lost_mass(mass.tolist(), labels, experts, active)

    return problem, naive, [naive(each) for each in divisions(6, experts, problem.shared_neurons.tolist())]


def of_permutations(problem, every=None):
    every = permutations(problem.size, problem.block_size) if every is None else every
    return problem, lambda p: naive_value(problem, p), [naive_value(problem, p) for p in every]


def _limited(rng):
    while (made := load_limited(rng)) is None:
        pass
    problem, fits = made
    inner = problem.problem
    values = [naive_value(inner, p) for p in fits]
    return problem, lambda p: naive_value(problem, p), values


def _placement(rng):
    problem, slots, every = placement(rng)
    row = problem.load[0].tolist()
    return problem, placed(slots, lambda held: largest_load(held, row)), [largest_load(held, row) for held in every]


def _rebalancing(rng):
    problem, slots, every, naive = rebalancing(rng)
    return problem, placed(slots, naive), [naive(held) for held in every]


# Name -> function of a Generator: a problem, its naive value of a solution, and the values of all solutions.
SMALL_PROBLEMS = {
    "linear": lambda rng: of_permutations(linear(rng)),
    "quadratic": lambda rng: of_permutations(quadratic(rng)),
    "pairwise": lambda rng: of_permutations(pairwise(rng)),
    "mixture": lambda rng: of_permutations(mixture(rng)),
    "load-limited": _limited,
    "placement": _placement,
    "rebalancing": _rebalancing,
    "co-activation": co_activation,
    "expert subset": expert_subset,
    "neuron partition": neuron_partition,
}
