from __future__ import annotations

import pytest
import torch
from torch import nn

from modfast import (
    conditional_entropy,
    mutual_information,
    soft_conditional_entropy,
    soft_mutual_information,
)

KERNELS = ["b-spline", "gaussian"]
HARD = {soft_mutual_information: mutual_information, soft_conditional_entropy: conditional_entropy}


@pytest.mark.parametrize("pairing", ["aligned", "all", "pairwise"])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("soft", HARD)
def test_converges_to_the_hard_value(pairing: str, kernel: str, soft: object) -> None:
    assert callable(soft)
    torch.manual_seed(0)
    x = torch.randn(300, 2, dtype=torch.float64)
    y = x.sin() + 0.3 * torch.randn(300, 2, dtype=torch.float64)
    hard = HARD[soft](x, y, 6, pairing=pairing)
    off = [
        float((soft(x, y, 6, pairing=pairing, kernel=kernel, window=w) - hard).abs().max())
        for w in (1e-2, 1e-3, 1e-9)
    ]
    assert off[0] < 0.02
    assert off[1] < 0.002
    assert off[2] < 1e-9


@pytest.mark.parametrize("limits", [None, (-2.0, 2.0), "column"])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("pairing", ["aligned", "all", "pairwise"])
def test_gradients(limits: object, kernel: str, pairing: str) -> None:
    torch.manual_seed(1)
    x, y = (torch.randn(7, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def both(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        options = {"bins": 4, "range": limits, "kernel": kernel, "pairing": pairing}
        return soft_mutual_information(x, y, **options), soft_conditional_entropy(x, y, **options)

    assert torch.autograd.gradcheck(both, (x, y))


def test_narrow_windows_and_empty_bins_have_finite_gradients() -> None:
    x = torch.randn(50, 2, requires_grad=True)
    y = torch.cat([torch.zeros(50, 1), torch.randn(50, 1)], dim=1)
    for kernel in KERNELS:
        for window in (1e-6, 0.1, 30.0):
            found = soft_mutual_information(x, y, 20, window=window, kernel=kernel)
            (grad,) = torch.autograd.grad(found, x)
            assert grad.isfinite().all()


def test_weights_of_window_one_are_cubic_b_splines() -> None:
    # The cubic's values at whole and at half knots; bin 3 goes from 3 to 4.
    def probabilities(value: float) -> torch.Tensor:
        from modfast.information.soft import _weights

        return _weights(torch.tensor([[value]], dtype=torch.float64), 7, 1.0, "b-spline")[0, 0]

    at_knots = torch.tensor([0, 0, 1 / 6, 2 / 3, 1 / 6, 0, 0]).double()
    torch.testing.assert_close(probabilities(3.5), at_knots, atol=1e-7, rtol=0)
    halfway = torch.tensor([0, 1, 23, 23, 1, 0, 0]).double() / 48
    torch.testing.assert_close(probabilities(3.0), halfway)


def test_symmetric_and_at_most_the_entropy() -> None:
    torch.manual_seed(2)
    x = torch.rand(500, 2)
    y = x.flip(1) + 0.1 * torch.rand(500, 2)
    for pairing in ("aligned", "all"):
        found = soft_mutual_information(x, y, pairing=pairing)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, soft_mutual_information(y, x, pairing=pairing))
        assert 0 <= found < soft_conditional_entropy(x, y, pairing=pairing) + found
    matrix = soft_mutual_information(x, y, pairing="pairwise")
    assert matrix[0, 1] > 5 * matrix[0, 0]
    assert soft_mutual_information(x.half(), y.half()).dtype == torch.float32
    huge = torch.tensor([-3e38, 0.0, 3e38])
    assert soft_mutual_information(huge, huge, 3, window=1e-3).isfinite()


@pytest.mark.parametrize("sign", [1, -1])
def test_a_network_learns_to_share_information_between_groups_or_not_to(sign: int) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))
    x = torch.randn(512, 4)

    def between(outputs: torch.Tensor) -> torch.Tensor:
        return soft_mutual_information(
            outputs[:, :2], outputs[:, 2:], bins=8, pairing="pairwise"
        ).mean()

    def measured() -> float:
        with torch.no_grad():
            outputs = model(torch.randn(4000, 4, generator=torch.Generator().manual_seed(0)))
            found = mutual_information(outputs[:, :2], outputs[:, 2:], pairing="pairwise")
        return float(found.mean())

    before = measured()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        (-sign * between(model(x))).backward()
        optimizer.step()
    after = measured()
    assert after > 2 * before if sign > 0 else after < before / 2


def test_bad_input() -> None:
    x = torch.randn(10, 2)
    for options, error, message in (
        ({"window": 0}, ValueError, "window must be above 0, got 0"),
        ({"window": float("nan")}, ValueError, "window must be finite, got nan"),
        ({"window": "1"}, TypeError, "window must be a number, got '1'"),
        ({"kernel": "box"}, ValueError, "kernel must be one of .*, got 'box'"),
        ({"pairing": "each"}, ValueError, "pairing must be one of .*, got 'each'"),
        ({"bins": 1}, ValueError, "bins must be from 2"),
    ):
        with pytest.raises(error, match=message):
            soft_mutual_information(x, x, **options)
    with pytest.raises(ValueError, match="'aligned', got 2 and 1"):
        soft_mutual_information(x, x[:, :1])
    with pytest.raises(ValueError, match="same samples, got 10 and 9"):
        soft_conditional_entropy(x, x[1:])
    with pytest.raises(TypeError, match="y must have float32, .*float16 values, got torch.int64"):
        soft_mutual_information(x, x.long())
    x[3, 1] = float("inf")
    with pytest.raises(ValueError, match="x must be finite, got 1 NaN .* in feature 1"):
        soft_mutual_information(x, torch.randn(10, 2))
