"""Graphs of weights, and what is found in them, in plain float64 numpy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment


def adjacency(weights: Sequence[Any], sides: Sequence[tuple[int, int]]) -> np.ndarray:
    """Of |w|; `sides` are those of each weight's rows and columns."""
    sizes: dict[int, int] = {}
    for w, (a, b) in zip(weights, sides, strict=True):
        sizes |= {a: w.shape[0], b: w.shape[1]}
    ends = np.cumsum([0, *(sizes[i] for i in range(len(sizes)))])
    whole = np.zeros((ends[-1], ends[-1]))
    for w, (a, b) in zip(weights, sides, strict=True):
        rows, cols = slice(ends[a], ends[a + 1]), slice(ends[b], ends[b + 1])
        whole[rows, cols] += np.abs(np.asarray(w, dtype=np.float64))
    return whole + whole.T


def chain(weights: Sequence[Any]) -> np.ndarray:
    """Of weights `[out, in]` that follow one another; the first one's inputs come first."""
    return adjacency([w.T for w in weights], list(pairwise(range(len(weights) + 1))))


def n_cut(graph: np.ndarray, labels: np.ndarray) -> float:
    return sum(
        graph[labels == c][:, labels != c].sum() / graph[labels == c].sum()
        for c in np.unique(labels[labels >= 0])
    )


def newman(graph: np.ndarray, labels: np.ndarray) -> float:
    degree, total = graph.sum(1), graph.sum()
    same = (labels[:, None] == labels) & (labels >= 0)[:, None]
    return float(((graph - np.outer(degree, degree) / total) * same).sum() / total)


def embedding(graph: np.ndarray, k: int) -> np.ndarray:
    """Orthonormal top eigenvectors of the normalized adjacency."""
    degree = graph.sum(1)
    scale = np.where(degree > 0, 1 / np.sqrt(np.where(degree > 0, degree, 1)), 0)
    _, vectors = np.linalg.eigh(scale[:, None] * graph * scale)
    return vectors[:, -k:]


def accuracy(found: Any, true: Any) -> float:
    """The part of units with the right label, labels renamed as is best."""
    found, true = np.asarray(found), np.asarray(true)
    n = max(found.max(), true.max()) + 1
    shared = np.zeros((n, n))
    np.add.at(shared, (found[found >= 0], true[found >= 0]), 1)
    rows, cols = linear_sum_assignment(-shared)
    return float(shared[rows, cols].sum() / len(true))


def planted(
    n: int, m: int, k: int, gain: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A random weight whose entries are (1 + gain) times as large within shuffled blocks."""
    random = np.random.default_rng(seed)
    rows, cols = (random.permutation(np.arange(size) * k // size) for size in (n, m))
    weight = random.normal(size=(n, m)) * (1 + gain * (rows[:, None] == cols))
    return weight, rows, cols
