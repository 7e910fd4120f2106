"""
What the landscape is like
==========================

Why one heuristic suits a problem and another does not: statistics of the
landscape of swaps, of two problems of 20 facilities. The distances of one are
those on a grid, the other is uniformly random.
"""

import matplotlib.pyplot as plt
import numpy as np

import moe_search as ms

rng = np.random.default_rng(0)
uniform = ms.random_quadratic(20, seed=0)
rows, columns = np.divmod(np.arange(20), 5)
grid = abs(rows[:, None] - rows) + abs(columns[:, None] - columns)
flow = np.triu(rng.integers(1, 10, (20, 20)) * (rng.random((20, 20)) < 0.3), 1)
problems = {
    "uniform": uniform,
    "grid": ms.QuadraticAssignment(flow + flow.T, grid),
}

# %%
# How rugged it is: values along a walk of random swaps, and how soon they have
# forgotten where they were.

walks = {
    name: ms.analysis.random_walk(problem, 5000, seed=1)
    for name, problem in problems.items()
}
for name, walk in walks.items():
    length = ms.analysis.correlation_length(walk)
    print(f"{name}: correlation length {length:.1f} swaps")
forgotten = {
    name: ms.analysis.autocorrelation(walk, lags=30)
    for name, walk in walks.items()
}
plt.figure(ms.plotting.walk_autocorrelations(forgotten))

# %%
# Its local optima: where 1,000 descents end, and how many of these are
# different. If all are, there are far more. Then whether better ones are nearer
# to the best; a grid has symmetries: the best has several images, and the
# nearest counts.

fitness = {}
for name, problem in problems.items():
    optima = ms.analysis.sample_local_optima(problem, descents=1000)
    best = ms.solve(problem, ms.TabuSearch(), ms.MaxIterations(20_000))
    images = [best.permutation]
    if name == "grid":
        seats = np.arange(20).reshape(4, 5)
        turned = [seats[::-1], seats[:, ::-1], seats[::-1, ::-1]]
        images += [each.ravel()[best.permutation] for each in turned]
    fitness[name] = ms.analysis.fitness_distance(
        problem, optima.permutations, images
    )
    print(
        f"{name}: {len(optima)} local optima in 1,000 descents, "
        f"fitness-distance correlation {fitness[name].correlation:.2f}"
    )
plt.figure(
    ms.plotting.fitness_distances(
        fitness["grid"].values, fitness["grid"].distances
    )
)

# %%
# What that means for a search: the solution quality of descents from random
# starts, and of iterated local search, which stays where it is good, after as
# many swaps evaluated.

stop = ms.MaxIterations(20_000)
solvers = {"restarts": ms.LocalSearch(), "iterated": ms.IteratedLocalSearch()}
for name, problem in problems.items():
    runs = {
        label: [solver.solve(problem, stop, seed) for seed in range(50)]
        for label, solver in solvers.items()
    }
    met = [run.value for each in runs.values() for run in each]
    reference = min(*met, *fitness[name].values)
    quality = {
        label: ms.analysis.solution_quality_distribution(
            each, 20_000, reference, unit="iterations"
        )
        for label, each in runs.items()
    }
    means = {
        label: np.dot(each.quantiles, np.diff(each.probabilities, prepend=0))
        for label, each in quality.items()
    }
    print(name, {label: f"{mean:.2%}" for label, mean in means.items()})
plt.figure(
    ms.plotting.distribution_curves(
        quality, "grid: (value - best) / best", logarithmic=False
    )
)
