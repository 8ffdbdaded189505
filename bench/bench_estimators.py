"""Information between groups, against the libraries and loops that one would use instead."""

from __future__ import annotations

import warnings
from itertools import combinations

import numpy as np
import pytest
import torch
from timing import Compare
from torch import Tensor

import modfast
from modfast.information.calibration import known_groups
from modfast.information.kmeans import first_centers, lloyd

sklearn = pytest.importorskip("sklearn")  # and with it scipy
from scipy.special import ndtri  # noqa: E402
from scipy.stats import rankdata  # noqa: E402
from sklearn.cluster import KMeans  # noqa: E402
from sklearn.exceptions import ConvergenceWarning  # noqa: E402
from sklearn.feature_selection import mutual_info_regression  # noqa: E402

PLAIN, SKLEARN = "plain Lloyd, all differences", "scikit-learn"
ITERATIONS = 20


def plain_lloyd(x: Tensor, centers: Tensor) -> Tensor:
    """A notebook's: every difference of sample and center in memory, a mean for each center."""
    for _ in range(ITERATIONS):
        codes = ((x[:, None] - centers) ** 2).sum(2).argmin(1)
        centers = torch.stack([x[codes == code].mean(0) for code in range(len(centers))])
    return ((x[:, None] - centers) ** 2).sum(2).argmin(1)


def fitted(x: Tensor, k: int, init: np.ndarray | str) -> KMeans:
    model = KMeans(k, init=init, n_init=1, max_iter=ITERATIONS, tol=0, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x.numpy())


def test_kmeans(compare: Compare) -> None:
    torch.manual_seed(0)
    x, k = torch.randn(10_000, 64), 32
    first = first_centers(x, k, seed=0)
    peers = {
        "modfast": lambda: lloyd(x, first, ITERATIONS, still=0)[0],
        PLAIN: lambda: plain_lloyd(x, first),
        SKLEARN: lambda: torch.from_numpy(fitted(x, k, first.numpy()).labels_),
    }
    codes = peers["modfast"]()
    for call in peers.values():
        # Centers in float32 are rounded, which may settle a sample between two of them otherwise.
        assert (call() != codes).double().mean() < 1e-3
    name = f"k-means, 10,000 x 64, 32 codes, {ITERATIONS} steps from given centers"
    compare(name, peers, {PLAIN: 10}, rounds=5)


def test_kmeans_from_nothing(compare: Compare) -> None:
    torch.manual_seed(0)
    x, k = torch.randn(10_000, 64), 32

    def ours() -> Tensor:
        codes, centers = lloyd(x, first_centers(x, k, seed=0), ITERATIONS, still=0)
        return (x - centers[codes]).square().sum()

    peers = {"modfast": ours, SKLEARN: lambda: torch.tensor(fitted(x, k, "k-means++").inertia_)}
    found, theirs = (float(call()) for call in peers.values())
    assert abs(found / theirs - 1) < 0.01
    name = f"k-means++ and {ITERATIONS} steps, 10,000 x 64, 32 codes"
    compare(name, peers, {}, rounds=5)


def test_neighbors(compare: Compare) -> None:
    x, y = known_groups(1, 10_000, 0, 0.5)
    peers = {
        "modfast": lambda: float(modfast.ksg_mutual_information(x, y)),
        SKLEARN: lambda: float(
            mutual_info_regression(x.numpy(), y[:, 0].numpy(), random_state=0)[0]
        ),
    }
    found, theirs = (call() for call in peers.values())
    assert abs(found - theirs) < 1e-6
    compare("KSG, 10,000 samples of 1 + 1 units", peers, {}, rounds=5)


@pytest.mark.short
def test_gaussian(compare: Compare) -> None:
    torch.manual_seed(0)
    mixing = torch.randn(1000, 1500, dtype=torch.float64)
    covariance = mixing @ mixing.T
    blocks = [list(range(start, start + 10)) for start in range(0, 1000, 10)]

    def loop() -> Tensor:
        logs = [torch.linalg.slogdet(covariance[block][:, block])[1] for block in blocks]
        found = torch.full((100, 100), torch.inf, dtype=torch.float64)
        for i, j in combinations(range(100), 2):
            both = blocks[i] + blocks[j]
            joint = torch.linalg.slogdet(covariance[both][:, both])[1]
            found[i, j] = found[j, i] = (logs[i] + logs[j] - joint) / 2
        return found

    def ours() -> Tensor:
        return modfast.gaussian_mutual_information(y=blocks, covariance=covariance)

    torch.testing.assert_close(ours(), loop(), rtol=0, atol=1e-10)
    peers = {"modfast": ours, "torch.slogdet of each pair": loop}
    compare("Gaussian, 1,000 units in 100 modules, all pairs", peers, {}, rounds=5)


def test_copula(compare: Compare) -> None:
    x, y = known_groups(8, 10_000, 0, 1.0)

    def by_scipy() -> float:
        scores = [ndtri(rankdata(each, axis=0) / (len(each) + 1)) for each in (x, y)]
        whole = np.cov(np.concatenate(scores, axis=1), rowvar=False)
        parts = whole[:8, :8], whole[8:, 8:], whole
        logs = [np.linalg.slogdet(part)[1] for part in parts]
        return float(logs[0] + logs[1] - logs[2]) / 2

    peers = {
        "modfast": lambda: float(modfast.copula_mutual_information(x, y)),
        "scipy's ranks": by_scipy,
    }
    assert abs(by_scipy() - peers["modfast"]()) < 1e-10
    compare("Gaussian copula, 10,000 samples of 8 + 8 units", peers, {}, rounds=7)


@pytest.mark.short
def test_jacobian(compare: Compare) -> None:
    torch.manual_seed(0)
    model, x = modfast.models.MLP([784, 64, 64, 10]).eval(), torch.randn(256, 784)
    modules = [range(5), range(5, 10)]

    def loop() -> float:
        found = []
        for sample in x:
            jacobian = torch.autograd.functional.jacobian(model, sample[None]).reshape(10, 784)
            whole = jacobian.double() @ jacobian.double().T
            logs = [torch.linalg.slogdet(s)[1] for s in (whole[:5, :5], whole[5:, 5:], whole)]
            found.append((logs[0] + logs[1] - logs[2]) / 2)
        return float(torch.stack(found).mean())

    def ours() -> float:
        return float(modfast.jacobian_mutual_information(model, x, "fc3", modules)[0, 1])

    assert abs(ours() - loop()) < 1e-5
    peers = {"modfast": ours, "autograd, sample by sample": loop}
    compare("Jacobians, 784-64-64-10, 256 samples", peers, {}, rounds=5)
