"""Balanced clusters of the largest clusterability."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from modfast.clusters.graph import Graph, spectral_labels
from modfast.clusters.transport import balanced_labels
from modfast.clusters.wiring import Array

_RANDOM_STARTS = 3
_KICKED = 0.1
"""Which part of the units gets random labels in a kick."""


def balanced_of(
    graph: Graph, k: int, points: Sequence[Array], labels: Sequence[Array]
) -> list[Array]:
    """Balanced labels of each side, nearest to the centers of what k-means found."""
    degree = np.concatenate(graph.degrees)
    every, flat = np.concatenate(points), np.concatenate(labels)
    centers = np.zeros((k, every.shape[1]))
    for c in range(k):
        if (weight := degree[flat == c]).sum():
            centers[c] = np.average(every[flat == c], axis=0, weights=weight)
    distances = [((x[:, None] - centers) ** 2).sum(2) for x in points]
    return [_assigned(graph, side, distance) for side, distance in enumerate(distances)]


def maximized(
    graph: Graph, k: int, restarts: int, kicks: int, random: np.random.Generator
) -> list[Array]:
    """Balanced labels of each side that put the most strength within clusters.

    With the other sides fixed, a side's best labels are a transport problem; sides take turns until
    nothing rises. It begins with spectral clusters and with random ones, keeps the best, and goes
    on from it with a tenth of the labels random, again and again.
    """
    points = graph.embedding(k)
    found = spectral_labels(graph, k, restarts, int(random.integers(2**32)), points)
    best, most = alternated(graph, k, balanced_of(graph, k, points, found))
    for _ in range(_RANDOM_STARTS):
        start = [
            _assigned(graph, side, random.random((n, k))) for side, n in enumerate(graph.sizes)
        ]
        best, most = _better(graph, k, start, best, most)
    for _ in range(kicks):
        start = [each.copy() for each in best]
        for each in start:
            kicked = (random.random(len(each)) < _KICKED) & (each >= 0)
            each[kicked] = random.integers(k, size=int(kicked.sum()))
        best, most = _better(graph, k, start, best, most)
    return best


def alternated(graph: Graph, k: int, labels: Sequence[Array]) -> tuple[list[Array], float]:
    """Labels after each side's best balanced ones, in turn until nothing rises; what is within."""
    labels, most, still = list(labels), -np.inf, 0
    while True:
        for side, before in enumerate(labels):
            labels[side] = _assigned(graph, side, -graph.links(side, labels, k))
            # How many sides in a row have the best labels for what the others have.
            still = still + 1 if np.array_equal(labels[side], before) else 1
            if still >= len(labels):
                break
        value = float(graph.within(labels, k)[0].sum())
        if value <= most * (1 + 1e-12) or value <= 0 or still >= len(labels):
            return labels, max(value, most)
        most = value


def _better(
    graph: Graph, k: int, start: Sequence[Array], best: list[Array], most: float
) -> tuple[list[Array], float]:
    labels, value = alternated(graph, k, start)
    return (labels, value) if value > most else (best, most)


def _assigned(graph: Graph, side: int, cost: Array) -> Array:
    """Balanced labels of a side's units, -1 for those that nothing is joined to."""
    alive = graph.alive[side]
    labels = np.full(len(alive), -1)
    labels[alive] = balanced_labels(cost[alive])
    return labels
