from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from modfast import kmeans_mutual_information, mutual_information
from modfast.information import kmeans
from modfast.information.kmeans import first_centers, lloyd, quantized
from modfast.information.partition import standardized


def plain_lloyd(x: Tensor, centers: Tensor, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    """In float64, one step after the other; no cluster may run empty."""
    points, found = x.double().numpy(), centers.double().numpy()
    for _ in range(iterations):
        codes = ((points[:, None] - found) ** 2).sum(2).argmin(1)
        found = np.stack([points[codes == code].mean(0) for code in range(len(found))])
    return ((points[:, None] - found) ** 2).sum(2).argmin(1), found


def samples(n: int, d: int, dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(n + d)
    return torch.randn(n, d, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "d", "k"), [(300, 5, 7), (2000, 1, 4), (1111, 33, 10)])
def test_lloyd_equals_plain_steps(n: int, d: int, k: int, dtype: torch.dtype) -> None:
    x = samples(n, d, dtype)
    first = first_centers(x, k, seed=3)
    for iterations in (1, 2, 6):
        codes, centers = lloyd(x, first, iterations, still=0)
        expected, means = plain_lloyd(x, first, iterations)
        assert (codes.numpy() != expected).mean() < 0.002  # float32 centers are rounded
        np.testing.assert_allclose(centers, means, atol=2e-2 if n == 300 else 5e-3)
    if dtype == torch.float64:
        assert np.array_equal(codes.numpy(), expected)
        np.testing.assert_allclose(centers, means, rtol=0, atol=1e-12)


def test_lloyd_ends_where_scikit_learn_does() -> None:
    clusters = pytest.importorskip("sklearn.cluster")
    x = samples(3000, 4, torch.float64)
    first = first_centers(x, 6, seed=0)
    codes, centers = lloyd(x, first, 300, still=0)
    fitted = clusters.KMeans(6, init=first.numpy(), n_init=1, max_iter=300, tol=0).fit(x.numpy())
    assert np.array_equal(codes.numpy(), fitted.labels_)
    np.testing.assert_allclose(centers, fitted.cluster_centers_, atol=1e-10)


@pytest.mark.parametrize("precision", ["highest", "medium"])
@pytest.mark.parametrize("lattice", [False, True])
@pytest.mark.parametrize(("n", "d", "k"), [(1, 1, 2), (700, 3, 9), (333, 1024, 32), (50, 784, 10)])
def test_nearest_centers_are_exact(
    n: int, d: int, k: int, lattice: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where samples lie just between centers, of which the first counts."""
    x, centers = samples(n, d), samples(k, d)
    if lattice:
        x, centers = x.round(), centers.round()
    expected = (x[:, None].double() - centers.double()).square().sum(2).argmin(1)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        for cells in (2**20, 100):
            monkeypatch.setattr(kmeans, "_CELLS", cells)
            assert torch.equal(kmeans._nearest(x, x.square().sum(1), centers), expected)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(("n", "d"), [(5001, 64), (333, 784), (40_000, 2)])
@pytest.mark.slow
def test_any_number_of_threads(n: int, d: int) -> None:
    x, before, found = samples(n, d), torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(quantized(standardized(x).float(), 20, 15, seed=0))
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert len(found[0].unique()) == 20


def test_empty_clusters_move_to_the_farthest_samples() -> None:
    x = torch.tensor([[0.0], [1.0], [2.0], [50.0], [101.0], [100.0]])
    far = torch.tensor([[1.0], [1000.0], [2000.0]])
    codes, centers = lloyd(x, far, 1, still=0)
    assert centers[:, 0].tolist() == [pytest.approx(254 / 6), 101.0, 100.0]
    assert codes.tolist() == [0, 0, 0, 0, 1, 2]
    codes, centers = lloyd(x, far, 10, still=0)
    assert centers[:, 0].tolist() == [13.25, 101.0, 100.0]
    # No sample is far from its center: the others stay without any.
    codes, _ = lloyd(torch.zeros(4, 1), torch.tensor([[0.0], [1.0], [2.0]]), 5)
    assert codes.tolist() == [0, 0, 0, 0]


def test_first_centers_are_drawn_by_squared_distance() -> None:
    x = torch.tensor([[0.0], [1.0], [3.0]])
    counts = torch.zeros(3, 3)
    for seed in range(2000):
        first, second = first_centers(x, 2, seed)[:, 0].tolist()
        counts["013".index(f"{first:.0f}"), "013".index(f"{second:.0f}")] += 1
    assert (counts.sum(1) / 2000 - 1 / 3).abs().max() < 0.04
    shares = counts / counts.sum(1, keepdim=True)
    expected = torch.tensor([[0, 0.1, 0.9], [0.2, 0, 0.8], [9 / 13, 4 / 13, 0]])
    assert (shares - expected).abs().max() < 0.06
    assert counts.diagonal().sum() == 0
    assert first_centers(torch.tensor([[1.0], [2.0], [1.0], [2.0]]), 4, 0).sort(
        0
    ).values.tolist() == [
        [1.0],
        [2.0],
    ]


def test_planted_clusters() -> None:
    torch.manual_seed(0)
    labels = torch.randint(0, 5, (2000,))
    x = 100 * torch.randn(5, 8)[labels] + torch.randn(2000, 8)
    y = 100 * torch.randn(5, 3)[labels // 2] + torch.randn(2000, 3)
    exact = mutual_information(labels, labels // 2, bins=5)
    found = [float(kmeans_mutual_information(x, y, k=5, seed=seed)) for seed in range(5)]
    assert max(found) == pytest.approx(float(exact), abs=0.15)
    assert kmeans_mutual_information(x, y, k=5, seed=1) == found[1]
    whole = kmeans_mutual_information(torch.cat([x, y], dim=1), [range(8), range(8, 11)], k=5)
    assert whole[0, 1] == found[0]
    codes = quantized(standardized(x).float(), 5, 100, seed=0)
    assert whole[0, 0] == mutual_information(codes, codes, bins=5)


def test_constant_units_tell_nothing() -> None:
    x, y = samples(500, 3), samples(500, 2)
    y[:, 0] += 3 * x[:, 0]
    plain = kmeans_mutual_information(x, y)
    padded = torch.cat([torch.full((500, 1), 0.1), x, torch.zeros(500, 1)], dim=1)
    assert kmeans_mutual_information(padded, y) == plain
    assert kmeans_mutual_information(padded[:, :1], y) == 0
    two = (x[:, 0] > 0).float()
    entropy = mutual_information(two.int(), two.int(), bins=2)
    torch.testing.assert_close(kmeans_mutual_information(two, two), entropy)


def test_the_notebooks_sorted_codes_share_the_logarithm_of_n() -> None:
    """The notebook printed MI = 7.6008 of 2,000 samples: ln 2000, whatever the groups are.

    Its k-means gave k = bins ** n_parts codes, but it took argsort of them, so that each sample had
    a code of its own.
    """
    torch.manual_seed(0)
    n, bins, n_parts = 2000, 4, 2
    x, y = torch.randn(n, 3), torch.randn(n, 3)
    x_codes, y_codes = (
        quantized(standardized(each).float(), bins**n_parts, 100, seed=0).argsort()
        for each in (x, y)
    )
    notebook = float(mutual_information(x_codes, y_codes, bins=n))
    assert notebook == pytest.approx(math.log(n), abs=1e-12)
    assert notebook == pytest.approx(7.6008, abs=2e-4)
    # Independent groups share nothing but the bias of 16 x 16 counts.
    right = float(kmeans_mutual_information(x, y, k=bins**n_parts))
    assert right == pytest.approx((bins**n_parts - 1) ** 2 / (2 * n), abs=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 1}, "k must be from 2 to 19 for 20 samples, got 1"),
        ({"k": 20}, "k must be from 2 to 19 for 20 samples, got 20"),
        ({"k": 2.5}, "k must be an integer"),
        ({"max_iterations": 0}, "max_iterations must be at least 1"),
        ({"seed": "a"}, "seed must be an integer, got 'a'"),
        ({"seed": 2**64}, "seed must be from -2\\^63 to 2\\^64 - 1, got 18446744073709551616"),
    ],
)
def test_bad_input(arguments: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        kmeans_mutual_information(torch.randn(20), torch.randn(20), **arguments)
