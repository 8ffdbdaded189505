"""Graphs of units joined by weights: eigenvectors, cuts, and clusters that cut little.

No adjacency matrix is built: sides are joined by blocks. Where no cycle of sides is odd (chains of
layers, a residual stream and the blocks' neurons), the graph is bipartite, and the eigenvectors of
its normalized adjacency are the singular vectors of one matrix, whose Gram matrix is small.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np

from modfast.clusters.wiring import Array, Wiring

_MOST_GRAM = 1024
"""Up to so many units on the smaller side, all its eigenvectors are found directly."""
_MANY = 2**20
"""From so many entries on, products of float32 weights are taken in float32."""
_TOLERANCE = 1e-5
"""Of iterated eigenvectors. From 1e-2 on, cuts of shuffled weights, whose gaps are small, rise."""


class Graph:
    """Units joined by strengths of at least 0.

    Args:
        sizes: number of units of each side.
        blocks: strengths `[a, b]` between two sides; each pair of sides at most once.
    """

    def __init__(self, sizes: Sequence[int], blocks: Mapping[tuple[int, int], Array]) -> None:
        self.sizes, self.blocks = tuple(sizes), dict(blocks)
        self.degrees = [np.zeros(n) for n in self.sizes]
        for (a, b), block in self.blocks.items():
            # Large ones as they are: pairwise sums lose nothing that clusters could tell.
            exact = block if block.size > _MANY else block.astype(np.float64, copy=False)
            self.degrees[a] += exact.sum(1)
            self.degrees[b] += exact.sum(0)
        self.alive = [degree > 0 for degree in self.degrees]
        self.n_alive = sum(int(each.sum()) for each in self.alive)

    @classmethod
    def of(cls, wiring: Wiring, values: Sequence[Array] | None = None, power: int = 1) -> Graph:
        """Of weights: the sum of |w|^power over the entries between two units.

        Squares are divided by each weight's sum, as in the mean of clusterabilities.
        """
        blocks: dict[tuple[int, int], Array] = {}
        for i, layer in enumerate(wiring.layers):
            each = layer.values if values is None else values[i]
            strength = strengths(each, power)
            if power == 2:
                total = float(strength.sum())
                strength *= 1 / total if total > 0 else 0.0
            a, b = layer.rows, layer.cols
            if (b, a) in blocks:
                a, b, strength = b, a, strength.T
            blocks[a, b] = blocks[a, b] + strength if (a, b) in blocks else strength
        return cls(wiring.sizes, blocks)

    @cached_property
    def volume(self) -> float:
        """The sum of all degrees."""
        return float(sum(degree.sum() for degree in self.degrees))

    def embedding(self, k: int) -> list[Array]:
        """Coordinates `[n, k]` of each side's units; fewer of smaller graphs.

        D^-1/2 times the k top eigenvectors of D^-1/2 A D^-1/2; 0 for units that nothing is joined
        to.
        """
        scale = [
            np.divide(1.0, np.sqrt(d), where=d > 0, out=np.zeros_like(d)) for d in self.degrees
        ]
        many = sum(block.size for block in self.blocks.values()) > _MANY
        dtype = np.float32 if many else np.float64
        normal = {
            (a, b): block * scale[a].astype(dtype)[:, None] for (a, b), block in self.blocks.items()
        }
        for (_, b), block in normal.items():
            block *= scale[b].astype(dtype)
        colors = self._colors()
        if colors is None:
            vectors = self._iterated(normal, k)
        else:
            of = [[i for i, c in enumerate(colors) if c == color] for color in (0, 1)]
            of.sort(key=lambda sides: sum(self.sizes[i] for i in sides))
            vectors = self._singular(normal, of[0], of[1], k)
        return [s[:, None] * v for s, v in zip(scale, vectors, strict=True)]

    def _colors(self) -> list[int] | None:
        """0 or 1 of each side so that no block joins equal ones; None where there are none."""
        colors: dict[int, int] = {}
        for start in range(len(self.sizes)):
            colors.setdefault(start, 0) if start not in colors else None
            ahead = [start]
            while ahead:
                side = ahead.pop()
                for other in self._joined(side):
                    if other not in colors:
                        colors[other] = 1 - colors[side]
                        ahead.append(other)
                    elif colors[other] == colors[side]:
                        return None
        return [colors[side] for side in range(len(self.sizes))]

    def _joined(self, side: int) -> Iterator[int]:
        for a, b in self.blocks:
            if side in (a, b):
                yield b if side == a else a

    def _singular(
        self, normal: Mapping[tuple[int, int], Array], small: list[int], large: list[int], k: int
    ) -> list[Array]:
        """Eigenvectors of a bipartite graph."""
        from scipy.linalg import eigh
        from scipy.sparse.linalg import LinearOperator, eigsh

        oriented = {(a, b): block for (a, b), block in normal.items() if a in small} | {
            (b, a): block.T for (a, b), block in normal.items() if b in small
        }
        place, n = self._places(small)
        k = min(k, n)

        def there(x: Array) -> dict[int, Array]:
            """From the smaller side to the larger."""
            found = {side: np.zeros((self.sizes[side], x.shape[1]), x.dtype) for side in large}
            for (a, b), block in oriented.items():
                found[b] += block.T @ x[place[a]]
            return found

        def back(x: Mapping[int, Array]) -> Array:
            found = np.zeros((n, next(iter(x.values())).shape[1]), next(iter(x.values())).dtype)
            for (a, b), block in oriented.items():
                found[place[a]] += block @ x[b]
            return found

        if n <= _MOST_GRAM or k >= n - 1:
            gram = np.zeros((n, n), next(iter(oriented.values())).dtype)
            for (a, b), first in oriented.items():
                for (c, d), second in oriented.items():
                    if b == d and a <= c:
                        product = first @ second.T
                        gram[place[a], place[c]] += product
                        if a != c:
                            gram[place[c], place[a]] += product.T
            _, u = eigh(gram, subset_by_index=[n - k, n - 1], check_finite=False)
        else:
            start = np.concatenate([np.sqrt(self.degrees[side]) for side in small])

            def twice(x: Array) -> Array:
                column = x.reshape(-1, 1).astype(next(iter(oriented.values())).dtype, copy=False)
                return back(there(column))[:, 0]

            operator = LinearOperator((n, n), matvec=twice, dtype=np.float64)
            _, u = eigsh(operator, k, which="LA", v0=start, tol=_TOLERANCE)
        u = u[:, ::-1]
        other = there(u)
        # A singular vector has length 1; of a singular value of 0 there is none on the other side.
        sigma = np.sqrt(sum((v**2).sum(0) for v in other.values()))
        sigma = np.where(sigma > 1e-7, sigma, np.inf)
        vectors: dict[int, Array] = {side: u[place[side]] for side in small}
        vectors |= {side: v / sigma for side, v in other.items()}
        return [vectors[side] for side in range(len(self.sizes))]

    def _iterated(self, normal: Mapping[tuple[int, int], Array], k: int) -> list[Array]:
        """Eigenvectors of any graph."""
        from scipy.linalg import eigh
        from scipy.sparse.linalg import LinearOperator, eigsh

        place, n = self._places(range(len(self.sizes)))
        if n <= max(_MOST_GRAM // 2, k + 1):
            dense = np.zeros((n, n))
            for (a, b), block in normal.items():
                dense[place[a], place[b]] += block
                dense[place[b], place[a]] += block.T
            k = min(k, n)
            _, u = eigh(dense, subset_by_index=[n - k, n - 1], check_finite=False)
        else:

            def matvec(x: Array) -> Array:
                found = np.zeros(n)
                x = x.ravel()
                for (a, b), block in normal.items():
                    found[place[a]] += block @ x[place[b]].astype(block.dtype, copy=False)
                    found[place[b]] += block.T @ x[place[a]].astype(block.dtype, copy=False)
                return found

            operator = LinearOperator((n, n), matvec=matvec, dtype=np.float64)
            start = np.sqrt(np.concatenate(self.degrees))
            _, u = eigsh(operator, k, which="LA", v0=start, tol=_TOLERANCE)
        u = u[:, ::-1]
        return [u[place[side]] for side in range(len(self.sizes))]

    def _places(self, sides: Sequence[int]) -> tuple[dict[int, slice], int]:
        """Where each side's units lie in one vector, and its length."""
        ends = np.cumsum([0, *(self.sizes[side] for side in sides)])
        slices = {side: slice(ends[i], ends[i + 1]) for i, side in enumerate(sides)}
        return slices, int(ends[-1])

    def links(self, side: int, labels: Sequence[Array], k: int) -> Array:
        """`[n, k]`: how strongly each of a side's units is joined to each cluster."""
        found = np.zeros((self.sizes[side], k))
        for (a, b), block in self.blocks.items():
            if a == side:
                found += block @ _onehot(labels[b], k, block.dtype)
            if b == side:
                found += block.T @ _onehot(labels[a], k, block.dtype)
        return found

    def within(self, labels: Sequence[Array], k: int) -> tuple[Array, Array]:
        """Of each cluster the strength within it, both ways, and its volume; both `[k]`."""
        inner, volume = np.zeros(k), np.zeros(k)
        for (a, b), block in self.blocks.items():
            towards = block @ _onehot(labels[b], k, block.dtype)
            for c in range(k):
                inner[c] += 2 * towards[labels[a] == c, c].sum(dtype=np.float64)
        for degree, each in zip(self.degrees, labels, strict=True):
            volume += np.bincount(each[each >= 0], degree[each >= 0], minlength=k)
        return inner, volume

    def n_cut(self, labels: Sequence[Array], k: int) -> float:
        """The sum over clusters of what is cut off by its volume; empty ones count 0."""
        return _n_cut(*self.within(labels, k))

    def newman(self, labels: Sequence[Array], k: int) -> float:
        """Newman's Q."""
        inner, volume = self.within(labels, k)
        return float((inner / self.volume - (volume / self.volume) ** 2).sum())

    def refined(self, labels: Sequence[Array], k: int) -> list[Array]:
        """Labels after single moves that lower the n-cut, until none does."""
        labels = [each.copy() for each in labels]
        inner, volume = self.within(labels, k)
        moved = True
        while moved:
            moved = False
            for side in range(len(self.sizes)):
                links, own = self.links(side, labels, k), labels[side]
                for i in np.flatnonzero(self.alive[side] & (own >= 0)):
                    a, degree, link = own[i], self.degrees[side][i], 2 * links[i]
                    left = inner[a] - link[a], volume[a] - degree
                    # What all clusters have but the two, so that a move's gain is two terms'.
                    share = _shares(inner, volume)
                    gain = _shares(inner + link, volume + degree) - share
                    gain += _shares(np.array([left[0]]), np.array([left[1]]))[0] - share[a]
                    # A cluster that becomes empty counts nothing, where it may count 1 at most.
                    gain[a] = 0.0
                    b = int(gain.argmax())
                    if gain[b] > 1e-12 and left[1] > 1e-12 * self.volume:
                        inner[a], volume[a] = left
                        inner[b] += link[b]
                        volume[b] += degree
                        own[i], moved = b, True
        return labels


def strengths(values: Array, power: int) -> Array:
    """`[rows, cols]`: the sum of |w|^power over the m entries between two units."""
    each = np.abs(values) if power == 1 else np.square(values)
    return each[..., 0] if values.shape[-1] == 1 else each.sum(-1)


def spectral_labels(
    graph: Graph, k: int, restarts: int, seed: int, points: Sequence[Array] | None = None
) -> list[Array]:
    """Labels of each side's units by k-means on the `embedding`, each weighted by its degree.

    Weights make it the relaxation of the normalized cut (Dhillon, Guan and Kulis 2004); results
    scatter less between restarts than without.
    """
    return k_means(graph, k, restarts, seed, graph.embedding(k) if points is None else points)


def k_means(graph: Graph, k: int, restarts: int, seed: int, points: Sequence[Array]) -> list[Array]:
    """Labels by k-means on given points of all sides' units, weighted by degree; fewer of few."""
    from sklearn.cluster import KMeans

    alive = np.concatenate(graph.alive)
    degree = np.concatenate(graph.degrees)[alive]
    labels: Array = np.full(len(alive), -1)
    means = KMeans(min(k, int(alive.sum())), n_init=restarts, random_state=seed % 2**32)
    labels[alive] = means.fit_predict(np.concatenate(points)[alive], sample_weight=degree)
    found: list[Array] = np.split(labels, np.cumsum(graph.sizes)[:-1])
    return found


@contextmanager
def one_thread() -> Iterator[None]:
    """Eigenvectors and k-means on one thread, without warnings where fewer than k points differ.

    More threads, on a busy machine, can take 100 times as long.
    """
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def require_analysis(what: str) -> None:
    """Raises ImportError, naming the extra to install, where scipy or scikit-learn is missing."""
    try:
        import scipy.linalg  # noqa: F401
        import sklearn.cluster  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{what} needs scipy and scikit-learn ({error}); "
            'install them with: pip install "modfast[analysis]"'
        ) from error


def _onehot(labels: Array, k: int, dtype: Any) -> Array:
    found: Array = (labels[:, None] == np.arange(k)).astype(dtype)
    return found


def _shares(inner: Array, volume: Array) -> Array:
    """Of each cluster the part of its volume that lies within; 1 where it is empty."""
    share: Array = np.divide(inner, volume, where=volume > 0, out=np.ones_like(volume))
    return share


def _n_cut(inner: Array, volume: Array) -> float:
    return float((1 - _shares(inner, volume)).sum())
