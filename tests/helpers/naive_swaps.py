"""All swaps of a block with a seat for each slot, as tabu searches look at them, in plain Python."""


def first_until(p):
    """Until when each slot is kept from each seat: over before the search begins, in order."""
    n = len(p)
    return [[-1 - i * n - seat for seat in range(n)] for i in range(n)]


def all_swaps(problem, p, value, until):
    """Return (delta, i, j, stamp) of every swap of a permutation of that value."""
    swaps = []
    for i in range(len(p)):
        for j in range(i + 1, len(p)):
            q = list(p)
            q[i], q[j] = q[j], q[i]
            swaps.append((problem.value(q) - value, i, j, min(until[i][p[j]], until[j][p[i]])))
    return swaps
