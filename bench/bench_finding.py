"""Finding clusters, and judging them by shuffled weights, beside plain scikit-learn scripts.

One thread on all sides, as the processes of a study have: `--threads=1`.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.cluster import KMeans, SpectralClustering, SpectralCoclustering
from threadpoolctl import threadpool_limits
from timing import Compare

import modfast
from modfast.models import MLP

SIZES, K = (784, 256, 256, 256, 256, 10), 12
PLAIN = "scikit-learn, whole graph"


@pytest.fixture(autouse=True)
def one_thread() -> object:
    with threadpool_limits(1) as limits:
        yield limits


@pytest.fixture
def model() -> MLP:
    torch.manual_seed(0)
    return MLP(SIZES)


def weights_of(model: MLP) -> list[np.ndarray]:
    return [model.get_submodule(f"fc{i}").weight.detach().double().numpy() for i in range(1, 6)]


def graph(weights: list[np.ndarray]) -> sparse.csr_matrix:
    blocks: list[list[object]] = [[None] * len(SIZES) for _ in SIZES]
    for i, w in enumerate(weights):
        blocks[i][i + 1] = sparse.coo_matrix(np.abs(w.T))
        blocks[i + 1][i] = sparse.coo_matrix(np.abs(w))
    return sparse.bmat(blocks, "csr")


def plain_n_cut(weights: list[np.ndarray], restarts: int = 25) -> float:
    whole = graph(weights)
    labels = SpectralClustering(
        K, affinity="precomputed", eigen_solver="arpack", n_init=restarts, random_state=0
    ).fit_predict(whole)
    return n_cut(whole, labels)


def n_cut(whole: sparse.csr_matrix, labels: np.ndarray) -> float:
    return float(
        sum(
            whole[labels == c][:, labels != c].sum() / whole[labels == c].sum()
            for c in np.unique(labels)
        )
    )


def flat(clusters: dict[str, modfast.Clusters]) -> np.ndarray:
    first = clusters["fc1"].cols
    return torch.cat([first, *(each.rows for each in clusters.values())]).numpy()


@pytest.mark.short
def test_one_network(compare: Compare, model: MLP) -> None:
    weights = weights_of(model)
    found = n_cut(graph(weights), flat(modfast.find_clusters(model, K, "graph", seed=0)))
    assert found == pytest.approx(plain_n_cut(weights), rel=0.02)
    compare(
        "clusters of a network 784-256-256-256-256-10, k = 12",
        {
            "modfast": lambda: modfast.find_clusters(model, K, "graph", seed=0),
            PLAIN: lambda: plain_n_cut(weights),
        },
        {PLAIN: 4.0},
        rounds=7,
    )


def test_report(compare: Compare, model: MLP) -> None:
    """modfast's has the clusterability of each layer too, with clusters found anew."""
    weights, random = weights_of(model), np.random.default_rng(0)

    def shuffle() -> float:
        return plain_n_cut([random.permutation(w.ravel()).reshape(w.shape) for w in weights])

    def ours() -> modfast.ModularityReport:
        return modfast.modularity_report(model, K, seed=0, progress=False)

    null = ours().null_n_cut
    assert shuffle() == pytest.approx(float(null.mean()), rel=0.02)
    compare(
        "modularity report of the same, 20 shuffles",
        {"modfast": ours, f"{PLAIN}, n-cut alone": shuffle},
        rounds=3,
        parts={f"{PLAIN}, n-cut alone": 1 / 21},
    )


@pytest.mark.short
def test_one_weight(compare: Compare) -> None:
    torch.manual_seed(0)
    rows, cols = torch.arange(768) % 4, torch.arange(3072) % 4
    weight = torch.randn(768, 3072) * (1 + 0.5 * (rows[:, None] == cols))
    strength = weight.abs().double().numpy()
    found = modfast.find_clusters(weight, 4, seed=0)
    assert len({*zip(found.rows.tolist(), rows.tolist(), strict=True)}) == 4
    assert len({*zip(found.cols.tolist(), cols.tolist(), strict=True)}) == 4

    def apart() -> None:
        scaled = strength / np.sqrt(np.outer(strength.sum(1), strength.sum(0)))
        u, _, v = np.linalg.svd(scaled, full_matrices=False)
        for side in (u, v.T):
            KMeans(4, n_init=10, random_state=0).fit(side[:, 1:4])

    apart_name = "dense SVD, sides apart"
    compare(
        "clusters of a 768 x 3072 weight, k = 4",
        {
            "modfast": lambda: modfast.find_clusters(weight, 4, seed=0),
            apart_name: apart,
            "scikit-learn, co-clustering": lambda: SpectralCoclustering(
                4, n_init=10, random_state=0
            ).fit(strength),
        },
        {apart_name: 10.0},
        rounds=5,
    )
