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
policies += [Policy(tolerance=each) for each in (0.005, 0.02, 0.05, 0.1)]
policies += [Policy(budget=each) for each in (0.004, 0.012, 0.03)]
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
# do. What was planned flatters: it is the balance of the windows seen.

followed = {str(each.policy): each.balance for each in played.outcomes[:3]}
followed[str(played.advised.policy)] = played.advised.balance
followed["the same, as planned"] = played.advised.planned
plt.figure(ms.plotting.over_rebalances("balance", **followed))
