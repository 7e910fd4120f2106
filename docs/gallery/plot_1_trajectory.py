"""
Solve a quadratic problem
=========================

A random quadratic assignment problem with 30 facilities. `solve` picks tabu
search for it, and adds a lower bound: the optimum lies between the two lines.
"""

import matplotlib.pyplot as plt

import moe_search as ms

problem = ms.random_quadratic(30, seed=0)
result = ms.solve(problem, stop=ms.MaxRuntime(1.0), seed=0)
print(result.outcome())
print("by", result.solver.split("(")[0])
last = result.trajectory[-1].seconds
print(f"last improvement after {last:.3f} of {result.runtime:.3f} seconds")

# %%
# The history of a result holds every improvement of the incumbent. Most of it
# happens in the first milliseconds, hence the logarithmic time.

figure, axis = plt.subplots(figsize=(7, 3.5), layout="constrained")
result.plot(axis)
axis.set_xscale("log")
axis.set_title("A random problem, n = 30", loc="left")
