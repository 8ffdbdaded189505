from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from modfast import (
    copula_mutual_information,
    gaussian_mutual_information,
    total_correlation,
)


def by_determinants(covariance: np.ndarray, *groups: list[int]) -> float:
    """-1/2 (log|S| - sum log|S_b|)."""
    every = [unit for group in groups for unit in group]
    logs = [np.linalg.slogdet(covariance[np.ix_(g, g)])[1] for g in (every, *groups)]
    return -(logs[0] - sum(logs[1:])) / 2


def by_canonical_correlations(x: np.ndarray, y: np.ndarray) -> float:
    """-1/2 sum log(1 - r^2)."""
    bases = [np.linalg.qr(each - each.mean(0))[0] for each in (x, y)]
    r = np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)
    return float(-np.log1p(-(r**2)).sum() / 2)


def weight(d: int = 7, inputs: int = 12) -> Tensor:
    return torch.randn(d, inputs, generator=torch.Generator().manual_seed(1)).double()


LISTS = [[0, 4, 2], [1], [6, 3]]


@pytest.mark.parametrize(("n", "dx", "dy"), [(3, 1, 1), (50, 2, 5), (2001, 17, 3), (64, 30, 33)])
def test_samples(n: int, dx: int, dy: int, device: torch.device) -> None:
    torch.manual_seed(n)
    x = torch.randn(n, dx, dtype=torch.float64)
    y = torch.randn(n, dy, dtype=torch.float64) + x[:, :1]
    found = gaussian_mutual_information(x.to(device), y.to(device))
    assert float(found) == pytest.approx(by_canonical_correlations(x.numpy(), y.numpy()), rel=1e-8)


def test_covariances(device: torch.device) -> None:
    covariance = weight() @ weight().T
    matrix = gaussian_mutual_information(y=LISTS, covariance=covariance.to(device)).cpu()
    for i, j in ((0, 1), (0, 2), (1, 2)):
        expected = by_determinants(covariance.numpy(), LISTS[i], LISTS[j])
        assert float(matrix[i, j]) == pytest.approx(expected, abs=1e-12)
        assert matrix[i, j] == matrix[j, i]
    whole = total_correlation(None, LISTS, covariance=covariance.to(device))
    assert float(whole) == pytest.approx(by_determinants(covariance.numpy(), *LISTS), abs=1e-12)
    single = gaussian_mutual_information(y=LISTS, covariance=covariance.float())
    torch.testing.assert_close(single, matrix, rtol=0, atol=1e-5)


def test_a_thousand_units_in_blocks() -> None:
    """Determinants of which no float64 could hold: of 1e-3 to the 2,000th."""
    torch.manual_seed(0)
    mixing = 1e-3 * torch.randn(1000, 1500, dtype=torch.float64)
    covariance = mixing @ mixing.T
    assert torch.linalg.det(covariance) == 0
    blocks = [list(range(start, start + 40)) for start in range(0, 1000, 40)]
    matrix = gaussian_mutual_information(y=blocks, covariance=covariance)
    for i, j in ((0, 1), (3, 24), (23, 11)):
        expected = by_determinants(covariance.numpy(), blocks[i], blocks[j])
        assert float(matrix[i, j]) == pytest.approx(expected, abs=1e-10)
    whole = total_correlation(None, blocks, covariance=covariance)
    assert float(whole) == pytest.approx(by_determinants(covariance.numpy(), *blocks), rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_group_that_is_known_from_the_other_has_no_bound(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(500, 20, dtype=dtype) + 3
    y = x @ torch.randn(20, 5, dtype=dtype)
    assert gaussian_mutual_information(x, y) == torch.inf
    assert gaussian_mutual_information(x, x[:, 3:4].clone()) == torch.inf
    almost = y + 1e-2 * torch.randn(500, 5, dtype=dtype)
    assert 20 < float(gaussian_mutual_information(x, almost)) < 40
    mapping = torch.cat([weight(), weight().sum(0, keepdim=True)])
    singular = (mapping @ mapping.T).to(dtype)
    matrix = gaussian_mutual_information(y=[range(4), range(4, 8), [0]][:2], covariance=singular)
    assert matrix[0, 1] == torch.inf
    assert gaussian_mutual_information(y=[range(3), range(4, 8)], covariance=singular).isfinite()[
        0, 1
    ]
    assert copula_mutual_information(x, (x[:, 0] ** 3)) == torch.inf


@pytest.mark.parametrize("value", [0.0, 0.1, -1e30])
def test_singular_groups_are_named(value: float) -> None:
    x, y = torch.randn(50, 3), torch.randn(50, 2)
    y[:, 1] = value
    for estimate in (gaussian_mutual_information, copula_mutual_information):
        with pytest.raises(ValueError, match="y has a singular covariance: its unit at place 1"):
            estimate(x, y)
        with pytest.raises(ValueError, match="module 1 of partition has .* place 0 is constant"):
            estimate(torch.cat([x, y], dim=1), [[0, 1], [4]])
    x[:, 2] = x[:, 0]
    with pytest.raises(ValueError, match="x has a singular covariance: its unit at place 2"):
        gaussian_mutual_information(x, y[:, 0])
    with pytest.raises(ValueError, match="module 0 of partition has a singular covariance"):
        total_correlation(x, [[0, 2], [1]])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"covariance": [[1.0]]}, TypeError, "covariance must be a floating tensor, got list"),
        ({"covariance": torch.eye(3).int()}, TypeError, "floating tensor, got torch.int32"),
        ({"covariance": torch.ones(2, 3)}, ValueError, r"must be \[d, d\], got shape \(2, 3\)"),
        ({"covariance": torch.eye(3) * torch.nan}, ValueError, "covariance must be finite"),
        ({"covariance": torch.eye(3) + torch.ones(3, 3).triu(1)}, ValueError, "be symmetric"),
        ({"covariance": 1.9 * torch.eye(3) - 0.9}, ValueError, "positive semidefinite"),
        ({"covariance": torch.diag(torch.tensor([1.0, -1, 1]))}, ValueError, "eigenvalue of -1"),
        ({"covariance": torch.eye(3), "unbiased": True}, ValueError, "unbiased must be False"),
        ({"covariance": torch.eye(3), "x": torch.ones(4, 3)}, ValueError, "got both"),
        ({"x": torch.randn(3, 2), "y": [0, 1]}, None, ""),
        ({"x": torch.randn(2, 2), "y": [0, 1]}, ValueError, "activations must have at least 3"),
        ({"x": torch.randn(4, 2), "y": torch.randn(4, 2)}, ValueError, "x and y must .* least 5"),
    ],
)
def test_bad_input(arguments: dict, error: type[Exception] | None, message: str) -> None:
    torch.manual_seed(0)
    arguments = {"y": [[0], [1, 2]], **arguments}
    if error is None:
        assert gaussian_mutual_information(**arguments)[0, 1] >= 0
        return
    with pytest.raises(error, match=message):
        gaussian_mutual_information(**arguments)


def test_a_product_that_is_rounded_is_symmetric_enough() -> None:
    w = torch.randn(50, 300)
    covariance = w @ w.T
    covariance += 1e-6 * covariance.triu()  # as the rounding of a large product may
    assert (
        gaussian_mutual_information(y=[range(25), range(25, 50)], covariance=covariance).ndim == 2
    )


def test_gradients() -> None:
    torch.manual_seed(0)
    x = torch.randn(12, 2, dtype=torch.float64, requires_grad=True)
    y = torch.randn(12, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gaussian_mutual_information, (x, y))
    w = weight(4).requires_grad_()

    def of_weight(w: Tensor) -> Tensor:
        return gaussian_mutual_information(y=[[0], [1, 2], [3]], covariance=w @ w.T).triu(1)

    assert torch.autograd.gradcheck(lambda w: of_weight(w)[[0, 0, 1], [1, 2, 2]], (w,))
    assert torch.autograd.gradcheck(
        lambda w: total_correlation(None, range(4), covariance=w @ w.T), (w,)
    )


@pytest.mark.parametrize("estimate", [gaussian_mutual_information, copula_mutual_information])
@pytest.mark.slow
def test_unbiased_values_are_right_on_average(estimate) -> None:
    torch.manual_seed(0)
    values = []
    for _ in range(400):
        x, y = torch.randn(2, 30, 3, dtype=torch.float64)
        values.append(estimate(x, y, unbiased=True))
        assert values[-1] < estimate(x, y)
    found = torch.stack(values)
    assert abs(found.mean()) < 3 * found.std() / 20
    assert (found < 0).any()
    matrix = estimate(torch.cat([x, y], dim=1), [range(3), range(3, 6)], unbiased=True)
    torch.testing.assert_close(matrix[0, 1], estimate(x, y, unbiased=True))
    assert matrix[0, 0] == torch.inf


def test_copula_takes_ranks_alone() -> None:
    torch.manual_seed(0)
    x = torch.randn(1000, 2)
    y = torch.stack([x.sum(1), x[:, 0] * x[:, 1]], dim=1) + torch.randn(1000, 2)
    found = copula_mutual_information(x, y)
    assert torch.equal(copula_mutual_information(x.exp(), y**3), found)
    from scipy.stats import norm, rankdata

    scores = [norm.ppf(rankdata(each, axis=0) / 1001) for each in (x.numpy(), y.numpy())]
    assert float(found) == pytest.approx(by_canonical_correlations(*scores), abs=1e-12)
    tied = (2 * x).round(), (2 * y).round()
    scores = [norm.ppf(rankdata(each.numpy(), axis=0) / 1001) for each in tied]
    expected = by_canonical_correlations(*scores)
    assert float(copula_mutual_information(*tied)) == pytest.approx(expected, abs=1e-12)
