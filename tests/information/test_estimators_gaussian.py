from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from modfast import (
    copula_mutual_information,
    gaussian_mutual_information,
    jacobian_mutual_information,
    total_correlation,
)
from modfast.models import MLP


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
        ({"covariance": [[1.0]]}, TypeError, "covariance must be a tensor of floating values"),
        ({"covariance": torch.eye(3).int()}, TypeError, "floating values, got torch.int32"),
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


# Jacobians


def brute_force(model: nn.Module, inputs: Tensor, groups: list[list[int]]) -> float:
    """Sample by sample, by autograd; the mean."""
    found = []
    for sample in inputs:
        jacobian = torch.autograd.functional.jacobian(lambda s: model(s[None])[0].flatten(), sample)
        jacobian = jacobian.flatten(1).double()
        found.append(by_determinants((jacobian @ jacobian.T).numpy(), *groups))
    return float(np.mean(found))


@pytest.mark.parametrize("units", [3, 8])
def test_a_linear_network_has_the_information_of_its_covariance(units: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 6), nn.Linear(6, units, bias=units == 3)).double()
    if units == 8:
        model = nn.Sequential(nn.Linear(9, units)).double()
    weights = [layer.weight.detach() for layer in model]
    whole = weights[1] @ weights[0] if units == 3 else weights[0]
    lists = [[0], [2, 1]] if units == 3 else [[0, 5], [2, 1, 3], [7]]
    site = str(len(model) - 1)
    found = jacobian_mutual_information(model, torch.randn(20, 9).double(), site, lists)
    expected = gaussian_mutual_information(y=lists, covariance=whole @ whole.T)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    single = jacobian_mutual_information(model.float(), torch.randn(20, 9), site, lists)
    torch.testing.assert_close(single, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("max_memory", [None, 1, 20_000])
@pytest.mark.parametrize("widths", [[6, 20, 5], [3, 20, 3]])
def test_jacobians_equal_brute_force(widths: list[int], max_memory: int | None) -> None:
    torch.manual_seed(0)
    d = widths[-1]
    model = nn.Sequential(
        nn.Linear(widths[0], widths[1]), nn.Tanh(), nn.Dropout(), nn.Linear(widths[1], d)
    ).double()
    groups = [[0], list(range(1, d))]
    inputs = torch.randn(13, widths[0], dtype=torch.float64)
    found = jacobian_mutual_information(model, inputs, "3", groups, max_memory=max_memory)
    assert model.training
    expected = brute_force(model.eval(), inputs, groups)
    assert float(found[0, 1]) == pytest.approx(expected, abs=1e-9)
    whole = jacobian_mutual_information(model, inputs, "3", range(d), total=True)
    expected = brute_force(model, inputs, [[unit] for unit in range(d)])
    assert float(whole) == pytest.approx(expected, abs=1e-9)


def test_sites_are_modules_by_default() -> None:
    """Two convolutions' channels, one of them worked on in place by what follows."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3, padding=1)
            self.act = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.a(x)).mean((2, 3)) + self.b(x**3).mean((2, 3))

    model, inputs = Net().double(), torch.randn(3, 1, 4, 4, dtype=torch.float64)
    found = jacobian_mutual_information(model, inputs, ["a", "b"])
    assert found.shape == (2, 2)
    assert (found.diagonal() == torch.inf).all()
    assert found[0, 1] == torch.inf  # 16 units of b know all 16 inputs
    values = model.state_dict()
    part = [range(4), range(4, 10)]
    found = jacobian_mutual_information(model, inputs, ["a", "b"], part)
    both = nn.ModuleList([model.a, model.b])

    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([both[0](x).flatten(1), both[1](x**3).flatten(1)], dim=1)

    expected = brute_force(Flat(), inputs, [list(each) for each in part])
    assert float(found[0, 1]) == pytest.approx(expected, abs=1e-9)
    assert all(torch.equal(values[name], each) for name, each in model.state_dict().items())


def test_batch_norm_and_known_units() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    inputs = torch.randn(6, 8)
    model(torch.randn(100, 8))
    found = jacobian_mutual_information(model, inputs, ["0", "2"])
    assert found[0, 1] == torch.inf  # the second layer is a function of the first
    covariance = model[0].weight @ model[0].weight.T
    expected = gaussian_mutual_information(y=[[0, 1], [2, 3]], covariance=covariance.detach())
    found = jacobian_mutual_information(model, inputs, "0", [[0, 1], [2, 3]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_bad_jacobians() -> None:
    torch.manual_seed(0)
    model, x = MLP([6, 8, 8, 3]), torch.randn(5, 6)
    call = jacobian_mutual_information
    with pytest.raises(ValueError, match="sites='fc9': no such module; did you mean: 'fc"):
        call(model, x, "fc9", [0, 1])
    with pytest.raises(ValueError, match="at least 2 modules, got 1"):
        call(model, x, "fc3")
    with pytest.raises(ValueError, match="of the 3 units there are, got 2"):
        call(model, x, "fc3", [0, 1])
    with pytest.raises(TypeError, match="inputs must be a tensor of floating values, got list"):
        call(model, [1.0], "fc3", [0, 1, 1])
    with pytest.raises(TypeError, match="got torch.int64"):
        call(model, torch.ones(5, 6).long(), "fc3", [0, 1, 1])
    with pytest.raises(ValueError, match=r"inputs must be \[n, ...\] and not empty"):
        call(model, torch.ones(6), "fc3", [0, 1, 1])
    with pytest.raises(ValueError, match="inputs must be finite, got 1 of 30"):
        call(model, torch.where(torch.arange(30) == 7, torch.nan, 1.0).view(5, 6), "fc3", [0, 1, 1])
    with pytest.raises(ValueError, match="max_memory must be at least 1"):
        call(model, x, "fc3", [0, 1, 1], max_memory=0)
    # Seven units of six inputs; units that a ReLU holds at 0.
    with pytest.raises(ValueError, match="module 0 of partition .* at sample 0: .* place 6"):
        call(model, x, "fc1", [[*range(7)], [7]])
    model.fc1.bias.data.fill_(1000)
    x[3] = -1e6 * model.fc1.weight.detach()[2]
    with pytest.raises(ValueError, match="module 1 of partition .* at sample 3: .* place 0"):
        call(model, x, "act1", [[0], [2]], max_memory=1)


def test_information_through_a_channel() -> None:
    """y = x + noise: 1/2 log(1 + snr), with the noise an input of the network."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    model[0].weight.data.copy_(torch.tensor([[1.0, 0.0], [2.0, 0.5]]))
    found = jacobian_mutual_information(model, torch.randn(4, 2), "0", [0, 1])
    assert float(found[0, 1]) == pytest.approx(math.log(17) / 2, abs=1e-6)
