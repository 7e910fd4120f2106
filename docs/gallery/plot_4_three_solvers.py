"""
Compare three solvers
=====================

The same problem, the same limit of time, five seeds: tabu search, iterated
local search, and scipy's FAQ from many starts. For more problems, peers and
statistical tests there is ``moe-search bench``.
"""

import matplotlib.pyplot as plt

import moe_search as ms

problem = ms.random_quadratic(50, seed=0)
solvers = {
    "tabu search": ms.TabuSearch(),
    "iterated local search": ms.IteratedLocalSearch(),
    "FAQ": ms.FrankWolfe(),
}
stop, seeds = ms.MaxRuntime(0.3), range(5)
results = {
    name: [ms.solve(problem, solver, stop, seed) for seed in seeds]
    for name, solver in solvers.items()
}
best = min(result.value for runs in results.values() for result in runs)
for name, runs in results.items():
    mean = sum(result.value for result in runs) / len(runs)
    print(f"{name}: {mean / best - 1:.2%} above the best met")

# %%
# One dot a seed.

figure, axis = plt.subplots(figsize=(7, 2.6), layout="constrained")
for row, runs in enumerate(results.values()):
    excess = [100 * (result.value / best - 1) for result in runs]
    axis.plot(excess, [row] * len(runs), "o", alpha=0.6)
axis.set_yticks(range(len(results)), results)
axis.set_ylim(len(results) - 0.5, -0.5)
axis.set_xlabel("% above the best value met")
axis.set_title("Random problem, n = 50, 0.3 seconds", loc="left")
axis.grid(axis="x", color="0.9")
