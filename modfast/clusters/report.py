"""Is a network more modular than chance?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from modfast import checks, plots
from modfast.clusters.alternation import alternated, balanced_of
from modfast.clusters.finding import RESTARTS, require_units
from modfast.clusters.graph import Graph, one_thread, require_analysis, spectral_labels, strengths
from modfast.clusters.labels import Clusters
from modfast.clusters.shuffles import NULLS, shuffled
from modfast.clusters.wiring import Array, Weights, Wiring, read_wiring
from modfast.progress import bar
from modfast.results import Result

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True, eq=False, repr=False)
class ModularityReport(Result):
    """How modular a network is, beside the same of networks with shuffled weights.

    n shuffles, l layers. z is the distance from the mean of the shuffles in their standard
    deviations; p is (1 + how many shuffles are as modular or more) / (1 + n), which on a network
    like its shuffles is at most x with probability x, and is never below 1 / (1 + n).
    """

    layers: tuple[str, ...]
    n_cut: float
    """Normalized cut of the whole network's graph: the lower, the more modular."""
    null_n_cut: Tensor
    """float64 `[n]`."""
    q: float
    """Newman's Q of the same graph and clusters: the higher, the more modular."""
    null_q: Tensor
    """float64 `[n]`."""
    layer_q: Tensor
    """The same of each layer by itself (Barber's), float64 `[l]`."""
    null_layer_q: Tensor
    """float64 `[n, l]`."""
    clusterability: Tensor
    """Of each layer, float64 `[l]`: the higher, the more modular."""
    null_clusterability: Tensor
    """float64 `[n, l]`."""
    rows: Mapping[str, Tensor]
    """By layer the cluster of each row in the clusters of `n_cut` and `q`."""
    cols: Mapping[str, Tensor]
    k: int
    null: str
    """How weights were shuffled."""

    @property
    def clusters(self) -> dict[str, Clusters]:
        """By layer, the clusters of `n_cut` and `q`."""
        return {name: Clusters(self.rows[name], self.cols[name], self.k) for name in self.layers}

    @property
    def z(self) -> float:
        """Of the n-cut; below 0 where the network is more modular than its shuffles."""
        return float(_z(_double(self.n_cut), self.null_n_cut))

    @property
    def p(self) -> float:
        """Of the n-cut."""
        return float(_p(-_double(self.n_cut), -self.null_n_cut))

    @property
    def q_z(self) -> float:
        """Of Newman's Q; above 0 where the network is more modular."""
        return float(_z(_double(self.q), self.null_q))

    @property
    def q_p(self) -> float:
        """Of Newman's Q."""
        return float(_p(_double(self.q), self.null_q))

    @property
    def layer_q_z(self) -> Tensor:
        """Of each layer's Q, float64 `[l]`."""
        return _z(self.layer_q, self.null_layer_q)

    @property
    def clusterability_z(self) -> Tensor:
        """Of each layer's clusterability, float64 `[l]`; above 0 where it is more modular."""
        return _z(self.clusterability, self.null_clusterability)

    @property
    def clusterability_p(self) -> Tensor:
        """Of each layer's clusterability, float64 `[l]`."""
        return _p(self.clusterability, self.null_clusterability)

    def plot(self) -> Figure:
        """The n-cut in the histogram of the shuffles', and z by layer."""
        return plots.modularity_report(
            self.n_cut,
            self.null_n_cut,
            self.layers,
            {"clusterability": self.clusterability_z, "Q": self.layer_q_z},
            f"n-cut of {self.k} clusters, z = {self.z:.1f}, p = {self.p:.3g}",
        )


def modularity_report(
    model: Weights,
    k: int = 12,
    *,
    clusters: Clusters | Mapping[str, Clusters] | None = None,
    null: str = "layer",
    n_shuffles: int = 20,
    layers: str | Sequence[str] | None = None,
    drop_isolated: bool = True,
    seed: int | None = None,
    progress: bool = True,
) -> ModularityReport:
    """Normalized cut, Q and clusterability of a network, each beside those of shuffled weights.

    The network is a graph: units are vertices, |w| joins them, a convolution's channels are joined
    by the L1 norm of their kernel; units share what `find_clusters` says. Its k clusters are those
    of `find_clusters(model, k, "graph")`. The n-cut sums over clusters the part of their volume
    that leaves them. Clusterability is that of each layer's own balanced clusters, as those of the
    method "clusterability" from its spectral start. In every shuffle clusters are found anew in
    the same way: clusters that are found are better than 1/k by chance.

    What differs from a null need not be modular: "layer" and "nonzero" and their distributions
    take from rows and columns their different sizes too, and a random network whose rows differ in
    scale is called modular by them (at p <= .05 every second time). "row" keeps each row's entries,
    and so forgives differences between outputs, and "col" those between inputs.

    Restarts of k-means leave in the n-cut a noise of a few tenths of the shuffles' standard
    deviation; z of 20 shuffles moves by 1 to 2 with them.

    Args:
        model: a network, of which all layers are taken, of a transformer its blocks' MLPs; or
            weights, as in `find_clusters`.
        k: number of clusters.
        clusters: given ones, by layer (or alone, of one layer), to be measured in the network and
            all its shuffles instead of found ones. They must not have been found in, or trained
            into, these very weights: their shuffles then are no null.
        null: "layer", "nonzero", "nonzero-distribution", "all-distribution", "row" or "col": which
            entries change places (`modfast.clusters.shuffles`).
        n_shuffles: how many shuffled networks, at least 2.
        layers: names or patterns, of a model.
        drop_isolated: take units away that nothing but 0 is joined to before weights are shuffled,
            as the field does; else shuffles use them, which makes z of pruned networks larger.
        seed: of shuffles and k-means; the same gives the same report for any number of threads.
        progress: show a progress bar, where standard error is a terminal and tqdm is installed.

    Shuffles run on torch's number of threads, each of which works alone.

    Raises:
        ImportError: scipy or scikit-learn is missing.
        TypeError: arguments of a wrong type.
        ValueError: an unknown null, k above the units, clusters of other layers or sizes; what
            `find_clusters` refuses of weights.

    Source: Filan et al., "Clusterability in neural networks" (2021); Newman (2006); Barber (2007).

    Example:
        >>> import torch, modfast
        >>> _ = torch.manual_seed(0)
        >>> report = modularity_report(modfast.models.MLP([8, 6, 6, 4]), 2, seed=0, progress=False)
        >>> report.null_n_cut.shape, report.null_clusterability.shape
        (torch.Size([20]), torch.Size([20, 3]))
        >>> report.p >= 1 / 21
        True
    """
    checks.choice("null", null, NULLS)
    checks.flag("drop_isolated", drop_isolated)
    checks.flag("progress", progress)
    k, n = checks.count("k", k), checks.count("n_shuffles", n_shuffles)
    if n < 2:
        raise ValueError(f"n_shuffles must be at least 2, got {n}")
    seed = None if seed is None else checks.seed("seed", seed)
    wiring = read_wiring(model, layers)
    names = tuple(layer.name for layer in wiring.layers)
    given: list[Array] | None = None
    if clusters is not None:
        if isinstance(clusters, Clusters) and len(names) == 1:
            clusters = {names[0]: clusters}
        if not isinstance(clusters, Mapping):
            raise TypeError(
                f"clusters must be a mapping from layers to Clusters, got {type(clusters).__name__}"
            )
        given = wiring.labels(clusters)
        k = max(each.n_clusters for each in clusters.values())
    require_analysis("modularity_report")
    graph = Graph.of(wiring)
    if given is None or not graph.n_alive:
        require_units(graph, k)
    kept = graph.alive if drop_isolated else [np.full(len(x), True) for x in graph.alive]
    small = _part(wiring, kept)
    labels = None if given is None else [x[keep] for x, keep in zip(given, kept, strict=True)]
    entropy = None if seed is None else seed % 2**64
    seeds = np.random.SeedSequence(entropy).spawn(n + 1)
    measure = partial(_measured, small, k, labels)
    with _threads(n) as over:
        own = measure(None, seeds[0])
        found = list(bar(over(partial(measure, null), seeds[1:]), "shuffles", progress))
    whole = []
    for each, keep in zip(own.labels, kept, strict=True):
        whole.append(np.full(len(keep), -1))
        whole[-1][keep] = each
    by_layer = wiring.clusters(whole if given is None else given, k)
    return ModularityReport(
        names,
        own.n_cut,
        _each(found, "n_cut"),
        own.q,
        _each(found, "q"),
        torch.from_numpy(own.layer_q),
        _each(found, "layer_q"),
        torch.from_numpy(own.clusterability),
        _each(found, "clusterability"),
        {name: each.rows for name, each in by_layer.items()},
        {name: each.cols for name, each in by_layer.items()},
        k,
        null,
    )


def _each(found: Sequence[_Measured], name: str) -> Tensor:
    return torch.from_numpy(np.array([getattr(each, name) for each in found]))


@dataclass(frozen=True)
class _Measured:
    labels: list[Array]
    n_cut: float
    q: float
    layer_q: Array
    clusterability: Array


def _measured(
    wiring: Wiring,
    k: int,
    labels: list[Array] | None,
    null: str | None,
    seed: np.random.SeedSequence,
) -> _Measured:
    """What a network has, or one of its shuffles."""
    random = np.random.default_rng(seed)
    values = [each.values for each in wiring.layers]
    if null is not None:
        values = [shuffled(each, null, random) for each in values]
    graph = Graph.of(wiring, values)
    start = int(random.integers(2**32))
    # Few enough units may be joined in a shuffle that there are less than clusters.
    found = spectral_labels(graph, k, RESTARTS, start) if labels is None else labels
    layer_q, shares = [], []
    for i, layer in enumerate(wiring.layers):
        sides = Wiring(
            (replace(layer, rows=0, cols=1),), (wiring.sizes[layer.rows], wiring.sizes[layer.cols])
        )
        both = [found[layer.rows], found[layer.cols]]
        layer_q.append(_barber(strengths(values[i], 1), both[0], both[1], k))
        squares = Graph.of(sides, values[i : i + 1], power=2)
        if labels is None and squares.n_alive:
            points = squares.embedding(k)
            own = spectral_labels(squares, k, 3, start, points)
            both, _ = alternated(squares, k, balanced_of(squares, k, points, own))
        shares.append(float(squares.within(both, k)[0].sum()) / 2)
    return _Measured(
        found, graph.n_cut(found, k), graph.newman(found, k), np.array(layer_q), np.array(shares)
    )


def _barber(strength: Array, rows: Array, cols: Array, k: int) -> float:
    """Q of a bipartite graph: what lies within clusters, above what row and column sums explain."""
    row_sums, col_sums = strength.sum(1, dtype=np.float64), strength.sum(0, dtype=np.float64)
    total = row_sums.sum()
    if not total:
        return 0.0
    within = strength[(rows[:, None] == cols) & (rows >= 0)[:, None]].sum(dtype=np.float64)
    of_rows = np.bincount(rows[rows >= 0], row_sums[rows >= 0], minlength=k)
    of_cols = np.bincount(cols[cols >= 0], col_sums[cols >= 0], minlength=k)
    return float(within / total - (of_rows * of_cols).sum() / total**2)


def _part(wiring: Wiring, kept: Sequence[Array]) -> Wiring:
    """The wiring without some units."""
    layers = [
        replace(each, values=each.values[kept[each.rows]][:, kept[each.cols]])
        for each in wiring.layers
    ]
    return Wiring(tuple(layers), tuple(int(each.sum()) for each in kept))


@contextmanager
def _threads(most: int) -> Iterator[Callable[..., Iterator[_Measured]]]:
    """A `map` over torch's number of threads, each of which works alone."""
    from threadpoolctl import threadpool_limits

    n = min(torch.get_num_threads(), most)
    with one_thread():
        if n == 1:
            yield map
            return
        # OpenMP's limit is each thread's own.
        pool = ThreadPoolExecutor(n, initializer=threadpool_limits, initargs=(1,))
        try:
            yield pool.map
        finally:
            pool.shutdown(cancel_futures=True)


def _double(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _z(value: Tensor, null: Tensor) -> Tensor:
    """Infinite where the shuffles do not differ and the value does; 0 where it does not either."""
    distance, spread = value - null.mean(0), null.std(0)
    still = spread <= 1e-12 * null.mean(0).abs()
    same = distance.abs() <= 1e-9 * null.mean(0).abs()
    far = torch.where(same, 0.0, distance.sign() * torch.inf)
    return torch.where(still, far, distance / torch.where(still, 1.0, spread))


def _p(value: Tensor, null: Tensor) -> Tensor:
    """Large values being modular ones; equal to rounding counts as equal."""
    return (1 + (null >= value - 1e-12).sum(0).double()) / (1 + len(null))
