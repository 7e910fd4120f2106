"""
Rebalancing experts as traffic drifts
=====================================

Eight devices serve four layers of 64 experts, and the traffic drifts. After
every window each policy places the experts anew, and is judged on the window
after, which it has not seen. EPLB forgets what was before; a tolerance moves
only what is needed to stay so near the bound.
"""

import matplotlib.pyplot as plt
import numpy as np

import moe_search as ms

rng = np.random.default_rng(0)
start = rng.normal(scale=0.8, size=(4, 64))
drift = rng.normal(scale=0.1, size=(20, 4, 64)).cumsum(axis=0)
share = np.exp(start + drift)
share /= share.sum(axis=2, keepdims=True)
trace = rng.poisson(8 * 4096 * share)

Policy = ms.serving.Policy
policies = [Policy("static"), Policy("eplb"), Policy("search")]
policies += [Policy(tolerance=each) for each in (0.005, 0.01, 0.02, 0.05, 0.1)]
policies += [Policy(budget=each) for each in (0.005, 0.01, 0.02, 0.05)]
played = ms.serving.simulate(trace, ms.Cluster(8, 9), policies)
for line in played.advice():
    print(line)

# %%
# Up and to the left is better: balance is the mean load of a device over the
# largest, and a migration sends the weights of an expert.

figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
played.plot(axis)
axis.set_title("Balance against migrations", loc="left")

# %%
# Window by window, what is kept decays, and few migrations do nearly what many
# do. The dotted lines are the balance that was planned: it flatters.

figure, axis = plt.subplots(figsize=(7, 3.5), layout="constrained")
for outcome, colour in zip(played.outcomes, ("0.6", "#E69F00"), strict=False):
    axis.plot(outcome.balance, color=colour, label=str(outcome.policy))
    axis.plot(outcome.planned, ":", color=colour)
advised = played.advised
axis.plot(advised.balance, color="#0072B2", label=str(advised.policy))
axis.plot(advised.planned, ":", color="#0072B2")
axis.xaxis.get_major_locator().set_params(integer=True)
axis.set_xlabel("rebalance")
axis.set_ylabel("balance on the next window")
axis.set_title("Balance after every rebalance", loc="left")
axis.legend(frameon=False)
