"""Which units belong together?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

import numpy as np
from torch import Tensor, nn

from modfast import checks
from modfast.clusters.alternation import alternated, balanced_of, maximized
from modfast.clusters.graph import Graph, k_means, one_thread, require_analysis, spectral_labels
from modfast.clusters.labels import Clusters
from modfast.clusters.observed import METHODS as OBSERVED
from modfast.clusters.observed import observed
from modfast.clusters.wiring import Array, Wiring, read_wiring
from modfast.network.logits import Output, check_output

RESTARTS = 10
"""Of k-means."""
KICKS = 30
METHODS = ("spectral", "graph", "clusterability", *OBSERVED)


@overload
def find_clusters(
    weight: Tensor,
    k: int,
    method: str = ...,
    *,
    balanced: bool = ...,
    refine: bool = ...,
    joint: bool = ...,
    layers: None = ...,
    inputs: None = ...,
    output: None = ...,
    seed: int | None = ...,
) -> Clusters: ...
@overload
def find_clusters(
    weight: Mapping[str, Tensor] | nn.Module,
    k: int,
    method: str = ...,
    *,
    balanced: bool = ...,
    refine: bool = ...,
    joint: bool = ...,
    layers: str | Sequence[str] | None = ...,
    inputs: Any = ...,
    output: Output = ...,
    seed: int | None = ...,
) -> dict[str, Clusters]: ...
def find_clusters(
    weight: Tensor | Mapping[str, Tensor] | nn.Module,
    k: int,
    method: str = "spectral",
    *,
    balanced: bool = False,
    refine: bool = False,
    joint: bool = True,
    layers: str | Sequence[str] | None = None,
    inputs: Any = None,
    output: Output = None,
    seed: int | None = None,
) -> Clusters | dict[str, Clusters]:
    """Clusters of the units that weights join, found in the weights or in what a network does.

    Units that share a layer share a label: the outputs of one layer are the inputs of the next
    (through a flattening too, where all positions of a channel are one unit), and the blocks of a
    transformer or a ResNet read and write one residual stream. Units that no entry other than 0
    joins to anything are in no cluster (-1).

    The methods are:

    - "spectral": bipartite spectral co-clustering of all rows and columns together: k-means,
      weighted by degree, on the k top eigenvectors of the normalized adjacency of W², each weight's
      divided by its sum (the squares are what `clusterability` counts, and tell planted blocks
      better than |W| does).
    - "graph": the same of |W| as it is, a convolution's kernel counted by its L1 norm: the
      normalized-cut clustering of the whole network that `modularity_report` judges.
    - "clusterability": the balanced clusters with the largest `clusterability`. With all other
      units fixed a side's best labels are a transport problem, which is solved exactly; sides take
      turns until nothing rises, from spectral and random starts.
    - "coactivation", "gradient", "information": as "spectral", of the squared correlation of each
      output with each input, of the squared gradient of the loss (cross-entropy, or squared error
      of real targets) summed over batches, or of the mutual information (10 bins a unit).

    Found clusters are no sign of modularity: a random weight has them too. `modularity_report`
    compares them with what is found in shuffled weights.

    Args:
        weight: `[n_out, n_in, ...]`; several by name, each of which reads what the one before it
            gives, where sizes say so; or a model.
        k: number of clusters.
        method: which way.
        balanced: each side in clusters whose sizes differ by at most one, the nearest to the
            centers that were found, by exact transport. "clusterability" always is.
        refine: go on from there: by single moves as long as they lower the normalized cut (minutes
            for ten thousand units); where balanced, by the turns of "clusterability", which itself
            tries 30 times more with a tenth of the labels random.
        joint: False clusters the two sides of each weight apart, the rows of one by the columns of
            the next, as the source notebook's authors do, and matches their labels.
        layers: of a model: names or patterns; by default all layers, of a transformer its blocks'
            MLPs.
        inputs: what the model is run on, for the last three methods; "gradient" needs targets.
        output: picks the logits from what the model returns, for "gradient".
        seed: of k-means, random starts and kicks; the same gives the same clusters.

    Returns:
        Clusters of a tensor's dimensions 0 and 1; by name of several, and of a model's layers,
        whose rows are outputs. They train at once (`Modularity(..., clusters=...)`).

    Raises:
        ImportError: scipy or scikit-learn is missing.
        TypeError: arguments of a wrong type.
        ValueError: an unknown method, options that do not go together, unknown layers (the nearest
            are listed), weights that are not finite, more clusters than units that are joined.

    Source: Dhillon (2001); Shi and Malik (2000); Filan et al., "Clusterability in neural networks"
        (2021); Golechha et al., "Training neural networks for modularity" (2024).

    Example:
        >>> import torch
        >>> blocks = torch.block_diag(torch.ones(2, 3), torch.ones(2, 2))
        >>> clusters = find_clusters(blocks, k=2, seed=0)
        >>> bool(torch.equal(clusters.mask(), blocks.bool()))
        True
    """
    checks.choice("method", method, METHODS)
    checks.flag("balanced", balanced)
    checks.flag("refine", refine)
    checks.flag("joint", joint)
    check_output(output)
    k = checks.count("k", k)
    seed = None if seed is None else checks.seed("seed", seed)
    if not joint and method in ("graph", "clusterability"):
        raise ValueError(f"joint must be True with method={method!r}, got False")
    if not joint and refine:
        raise ValueError("refine must be False with joint=False, got True")
    if (inputs is not None) != (method in OBSERVED):
        wanted = "given" if method in OBSERVED else "None"
        raise ValueError(
            f"inputs must be {wanted} with method={method!r}, got {type(inputs).__name__}"
        )
    if inputs is not None and not isinstance(weight, nn.Module):
        raise TypeError(
            f"weight must be a model with method={method!r}, got {type(weight).__name__}"
        )
    wiring = read_wiring(weight, layers)
    require_analysis("find_clusters")
    if inputs is not None:
        assert isinstance(weight, nn.Module)
        wiring = observed(method, weight, wiring, inputs, output)
    random = np.random.default_rng(None if seed is None else seed % 2**64)
    graph = Graph.of(wiring, power=1 if method == "graph" else 2)
    require_units(graph, k)
    with one_thread():
        if method == "clusterability":
            labels = maximized(graph, k, RESTARTS, KICKS if refine else 0, random)
        elif joint:
            labels = _joint(graph, k, balanced, refine, int(random.integers(2**32)))
        else:
            labels = _apart(wiring, k, balanced, int(random.integers(2**32)))
    found = wiring.clusters(labels, k)
    return found["weight"] if isinstance(weight, Tensor) else found


def require_units(graph: Graph, k: int) -> None:
    """Refuses more clusters than there are units with something to join them.

    Raises:
        ValueError: there are.
    """
    if k > graph.n_alive:
        raise ValueError(
            f"k must be at most {graph.n_alive}, the units that weights other than 0 join, got {k}"
        )


def _joint(graph: Graph, k: int, balanced: bool, refine: bool, seed: int) -> list[Array]:
    points = graph.embedding(k)
    labels = spectral_labels(graph, k, RESTARTS, seed, points)
    if balanced:
        labels = balanced_of(graph, k, points, labels)
        return alternated(graph, k, labels)[0] if refine else labels
    return graph.refined(labels, k) if refine else labels


def _apart(wiring: Wiring, k: int, balanced: bool, seed: int) -> list[Array]:
    """Labels of sides that are clustered one by one, matched along each weight."""
    labels: dict[int, Array] = {}
    for layer in wiring.layers:
        sides = layer.rows, layer.cols
        sizes = tuple(wiring.sizes[side] for side in sides)
        graph = Graph.of(Wiring((replace(layer, rows=0, cols=1),), sizes), power=2)
        points = graph.embedding(k)
        own = []
        for side, place in zip(sides, (0, 1), strict=True):
            if side in labels:
                own.append(labels[side])
                continue
            one = Graph(sizes[place : place + 1], {})
            one.degrees, one.alive = (
                graph.degrees[place : place + 1],
                graph.alive[place : place + 1],
            )
            found = k_means(one, k, RESTARTS, seed, points[place : place + 1])
            if balanced:
                found = balanced_of(one, k, points[place : place + 1], found)
            own.append(found[0])
        new = [place for place, side in enumerate(sides) if side not in labels]
        if new:
            own[new[0]] = _matched(graph, own, new[0], k)
        labels |= dict(zip(sides, own, strict=True))
    return [labels[side] for side in range(len(wiring.sizes))]


def _matched(graph: Graph, labels: list[Array], side: int, k: int) -> Array:
    """One side's labels, renamed so that the most strength lies within clusters."""
    from scipy.optimize import linear_sum_assignment

    links, own = graph.links(side, labels, k), labels[side]
    shared = np.zeros((k, k))
    np.add.at(shared, own[own >= 0], links[own >= 0])
    _, names = linear_sum_assignment(-shared)
    return np.where(own >= 0, names[own], -1)
