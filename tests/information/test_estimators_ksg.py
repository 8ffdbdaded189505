from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from modfast import ksg_mutual_information
from modfast.information import neighbors
from modfast.information.calibration import known_groups
from modfast.information.neighbors import counts_by_distances, counts_by_trees
from modfast.information.partition import standardized

COUNTERS: list[Callable] = [counts_by_distances]
try:
    import scipy.spatial  # noqa: F401

    COUNTERS.append(counts_by_trees)
except ImportError:
    pass


def brute_force(x: Tensor, y: Tensor, k: int, variant: int) -> tuple[list[int], list[int]]:
    """The paper's words, sample by sample; each counts itself too."""
    near_x, near_y = [], []
    for i in range(len(x)):
        dx = (x - x[i]).abs().amax(1)
        dy = (y - y[i]).abs().amax(1)
        joint = torch.maximum(dx, dy)
        others = [j for j in joint.argsort(stable=True).tolist() if j != i][:k]
        if variant == 1:
            reach = joint[others[-1]]
            near_x.append(int((dx < reach).sum()))
            near_y.append(int((dy < reach).sum()))
        else:
            near_x.append(int((dx <= dx[others].max()).sum()))
            near_y.append(int((dy <= dy[others].max()).sum()))
    return near_x, near_y


def groups(n: int, dx: int, dy: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(n)
    x, y = torch.randn(n, dx).double(), torch.randn(n, dy).double()
    y[:, 0] += x[:, 0]
    return x, y


@pytest.mark.parametrize("counter", COUNTERS)
@pytest.mark.parametrize("variant", [1, 2])
@pytest.mark.parametrize(("n", "dx", "dy", "k"), [(2, 1, 1, 1), (60, 1, 3, 3), (150, 9, 5, 10)])
def test_counts_are_the_papers(
    n: int, dx: int, dy: int, k: int, variant: int, counter: Callable, monkeypatch
) -> None:
    monkeypatch.setattr(neighbors, "_CELLS", 20 * n)
    x, y = groups(n, dx, dy)
    found = counter(x, y, k, variant)
    assert tuple(each.tolist() for each in found) == brute_force(x, y, k, variant)


@pytest.mark.parametrize("variant", [1, 2])
def test_the_formula(variant: int, device: torch.device) -> None:
    x, y = groups(100, 1, 2)
    near = brute_force(standardized(x), standardized(y), 4, variant)

    def psi(values: object) -> Tensor:
        return torch.digamma(torch.as_tensor(values, dtype=torch.float64))

    # The counts n_x and n_y of the paper leave out the sample itself.
    if variant == 1:
        expected = psi(4) + psi(100) - (psi(near[0]) + psi(near[1])).mean()
    else:
        alone = [torch.tensor(each) - 1 for each in near]
        expected = psi(4) - 1 / 4 + psi(100) - (psi(alone[0]) + psi(alone[1])).mean()
    found = ksg_mutual_information(x.to(device), y.to(device), k=4, variant=variant, jitter=0)
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [200, 3000])
@pytest.mark.parametrize("k", [3, 7])
def test_scikit_learn_in_one_dimension(n: int, k: int) -> None:
    """Within its jitter, which may swap a neighbor: without it, to rounding."""
    selection = pytest.importorskip("sklearn.feature_selection")
    x, y = known_groups(1, n, 3, 0.4)
    theirs = selection.mutual_info_regression(
        x.numpy(), y[:, 0].numpy(), n_neighbors=k, random_state=0
    )[0]
    assert float(ksg_mutual_information(x, y, k)) == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize("variant", [1, 2])
@pytest.mark.parametrize("information", [0.0, 0.2, 1.5])
def test_known_information_in_one_dimension(information: float, variant: int) -> None:
    found = torch.stack(
        [
            ksg_mutual_information(*known_groups(1, 1500, seed, information), variant=variant)
            for seed in range(12)
        ]
    )
    assert abs(found.mean() - information) < 3 * found.std() / math.sqrt(12)
    if information == 0:
        assert (found < 0).any()


def test_what_is_not_gaussian() -> None:
    """y = x^2 + noise is uncorrelated with x; what it tells is H(y) - H(noise), by quadrature."""
    torch.manual_seed(0)
    x, h = torch.rand(16_000).double() * 2 - 1, 0.2
    y = x.square() + h * torch.randn(16_000).double()
    grid = torch.linspace(-2, 3, 5001, dtype=torch.float64)
    inner = (torch.arange(2000).double() + 0.5) / 2000
    density = torch.exp(-((grid[:, None] - inner**2) ** 2) / (2 * h**2)).mean(1)
    density /= h * math.sqrt(2 * math.pi)
    of_y = -torch.special.xlogy(density, density).sum() * (grid[1] - grid[0])
    exact = float(of_y) - math.log(2 * math.pi * math.e * h**2) / 2
    assert exact > 0.5
    assert float(ksg_mutual_information(x, y)) == pytest.approx(exact, abs=0.03)


def test_trees_or_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few units go to trees where scipy is installed; the results are the same."""
    x, y = groups(300, 2, 2)
    before = ksg_mutual_information(x, y)
    monkeypatch.setattr(neighbors, "find_spec", lambda name: None)
    monkeypatch.setattr(neighbors, "counts_by_trees", None)
    assert ksg_mutual_information(x, y) == before
    x, y = groups(100, 8, 8)
    assert ksg_mutual_information(x, y).isfinite()


def test_equal_samples() -> None:
    x = torch.tensor([0.0] * 30 + list(np.linspace(1, 2, 30)))
    with pytest.raises(ValueError, match="must not repeat a sample more than k .* got 30 samples"):
        ksg_mutual_information(x, x, jitter=0)
    monotone = ksg_mutual_information(x, -x, jitter=0, k=35)
    assert monotone.isfinite()
    assert ksg_mutual_information(x, x, seed=0) == ksg_mutual_information(x, x, seed=0)
    # Two codes of independent noise share their entropy, and constants nothing.
    torch.manual_seed(0)
    two = torch.randint(0, 2, (2000,)).double()
    assert float(ksg_mutual_information(two, two)) == pytest.approx(math.log(2), abs=0.05)
    for variant in (1, 2):
        found = ksg_mutual_information(torch.ones(2000), two + torch.rand(2000), variant=variant)
        assert abs(float(found)) < 0.05


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"k": 0}, ValueError, "k must be at least 1, got 0"),
        ({"k": 20}, ValueError, "k must be below the number of samples, 20, got 20"),
        ({"k": 1.5}, TypeError, "k must be an integer, got 1.5"),
        ({"variant": 3}, ValueError, r"variant must be one of 1, 2, got 3"),
        ({"jitter": -1.0}, ValueError, "jitter must be at least 0, got -1"),
        ({"jitter": "a"}, TypeError, "jitter must be a number"),
        ({"seed": 1.5}, TypeError, "seed must be an integer, got 1.5"),
    ],
)
def test_bad_input(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ksg_mutual_information(torch.randn(20), torch.randn(20), **arguments)
