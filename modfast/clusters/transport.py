"""Labels of least cost among those that give every cluster as many units."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from modfast.clusters.wiring import Array


def balanced_labels(cost: Array) -> Array:
    """Labels `[n]` of the least total cost, cluster sizes differing by at most one.

    Everyone begins in the cheapest cluster. Then what is too much in some moves, unit by unit,
    along the cheapest path of clusters (each hands one unit on) to where there is room, and what is
    missing is fetched in the same way. Each step is a shortest augmenting path of a minimum-cost
    flow, so the result is exact.

    Args:
        cost: `[n, k]`, of each unit in each cluster.

    Example:
        >>> balanced_labels(np.array([[0.0, 5.0], [0.0, 1.0], [0.0, 3.0], [0.0, 2.0]])).tolist()
        [0, 1, 0, 1]
    """
    n, k = cost.shape
    least, most = n // k, -(-n // k)
    labels: Array = cost.argmin(1)
    sizes = np.bincount(labels, minlength=k)
    step = np.full((k, k), np.inf)  # the least that a unit of one cluster costs more in another
    unit = np.full((k, k), -1)  # and which unit that is
    every = np.arange(k)

    def look(cluster: int, others: Array) -> None:
        """Finds anew which of a cluster's units go to others most cheaply."""
        members = np.flatnonzero(labels == cluster)
        if len(members):
            more = cost[np.ix_(members, others)] - cost[members, cluster][:, None]
            place = more.argmin(0)
            step[cluster, others] = more[place, np.arange(len(others))]
            unit[cluster, others] = members[place]
        else:
            step[cluster, others], unit[cluster, others] = np.inf, -1
        step[cluster, cluster] = np.inf

    def move(i: int, a: int, b: int) -> None:
        labels[i] = b
        look(a, np.flatnonzero(unit[a] == i))
        more = cost[i] - cost[i, b]
        nearer = more < step[b]
        nearer[b] = False
        step[b, nearer], unit[b, nearer] = more[nearer], i

    if sizes.max() > most or sizes.min() < least:
        for cluster in range(k):
            look(cluster, every)
    while True:
        if sizes.max() > most:
            sources, targets = sizes > most, sizes < most
        elif sizes.min() < least:
            sources, targets = sizes > least, sizes < least
        else:
            return labels
        path = _cheapest(step, sources, targets)
        for i, a, b in [(int(unit[a, b]), a, b) for a, b in pairwise(path)]:
            move(i, a, b)
        sizes[path[0]] -= 1
        sizes[path[-1]] += 1


def _cheapest(step: Array, sources: Array, targets: Array) -> list[int]:
    """The clusters of the cheapest path, by Bellman and Ford: steps may cost less than nothing."""
    distance = np.where(sources, 0.0, np.inf)
    before = np.full(len(step), -1)
    every = np.arange(len(step))
    # Rounding must not make a path come back to where it has been.
    rounding = 1e-12 * np.abs(step[np.isfinite(step)]).max(initial=0.0)
    for _ in every:
        through = distance[:, None] + step
        best = through.argmin(0)
        nearer = through[best, every]
        better = nearer < distance - rounding
        if not better.any():
            break
        distance[better], before[better] = nearer[better], best[better]
    path = [int(np.where(targets, distance, np.inf).argmin())]
    while before[path[-1]] >= 0 and len(path) <= len(step):
        path.append(int(before[path[-1]]))
    return path[::-1]
