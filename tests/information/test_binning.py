from __future__ import annotations

import numpy as np
import pytest
import torch

from modfast import digitize, joint_histogram

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("bins", [2, 7, 10, 256, 257, 1000])
def test_uniform_codes_are_numpys(bins: int, device: torch.device) -> None:
    torch.manual_seed(bins)
    x = torch.randn(500, 3, dtype=torch.float64, device=device)
    codes = digitize(x, bins)
    assert codes.dtype == (torch.uint8 if bins <= 256 else torch.int16)
    expected, _ = np.histogram(x.cpu(), bins)
    np.testing.assert_array_equal(codes.flatten().long().bincount(minlength=bins).cpu(), expected)


def test_values_on_edges_go_up_and_the_last_edge_down() -> None:
    x = torch.arange(11, dtype=torch.float32)
    assert digitize(x, 10).tolist() == [*range(10), 9]
    # numpy's edge 9 * 0.1 is above 0.9 in float32.
    x = x / 10
    expected, _ = np.histogram(x.numpy(), 10)
    assert digitize(x, 10).bincount(minlength=10).tolist() == expected.tolist()


def test_ranges_global_by_column_and_given() -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, 10.0]])
    assert digitize(x, 10).tolist() == [[0, 0], [1, 9]]
    assert digitize(x, 10, range="column").tolist() == [[0, 0], [9, 9]]
    assert digitize(x, 10, range=(-10.0, 10.0)).tolist() == [[5, 5], [5, 9]]
    low, high = torch.tensor([0.0, -10.0]), torch.tensor([2.0, 10.0])
    assert digitize(x, 10, range=(low, high)).tolist() == [[0, 5], [5, 9]]


def test_values_outside_a_given_range_are_clipped_or_refused() -> None:
    x = torch.tensor([[0.5, -1.0], [0.2, 3.0], [0.3, 0.5]])
    assert digitize(x, 4, range=(0.0, 1.0)).tolist() == [[2, 0], [0, 3], [1, 2]]
    with pytest.raises(ValueError, match=r"range=\(0.0, 1.0\).*got 2 values outside in feature 1"):
        digitize(x, 4, range=(0.0, 1.0), outside="error")
    assert digitize(x[:, 0], 4, range=(0.0, 1.0), outside="error").tolist() == [2, 0, 1]


@pytest.mark.parametrize("n", [100, 103])
def test_quantile_bins_have_equal_mass_per_feature(n: int) -> None:
    torch.manual_seed(0)
    x = torch.stack([torch.randn(n).exp(), torch.randn(n).double().float()], dim=1)
    for column in digitize(x, 8, rule="quantile").T:
        counts = column.bincount(minlength=8)
        assert counts.max() - counts.min() <= 1
    order = x[:, 0].argsort()
    assert digitize(x, 8, rule="quantile")[order, 0].long().diff().min() >= 0


def test_quantile_keeps_ties_together_and_takes_fewer_samples_than_bins() -> None:
    codes = digitize(torch.tensor([1.0, 1, 1, 1, 1, 2, 3, 4]), 4, rule="quantile")
    assert len(codes[:5].unique()) == 1
    assert digitize(torch.tensor([3.0, 1.0]), 10, rule="quantile").tolist() == [9, 0]


def test_constants_and_huge_values() -> None:
    assert digitize(torch.full((3, 2), 7.0)).tolist() == [[0, 0]] * 3
    huge = torch.tensor([-3e38, -1.0, 1.0, 3e38])
    assert digitize(huge, 4).tolist() == [0, 1, 2, 3]
    assert digitize(huge.double() * 5e269, 2).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_compared_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(300, 2).to(dtype)
    for rule in ("uniform", "quantile", "notebook"):
        assert torch.equal(digitize(x, 9, rule=rule), digitize(x.float(), 9, rule=rule))


def test_layout_does_not_matter() -> None:
    x = torch.randn(40, 12)
    for view in (x.T.contiguous().T, x[::2], x[:, ::3]):
        assert torch.equal(digitize(view, 6), digitize(view.contiguous(), 6))


def test_integer_codes_are_checked_and_kept() -> None:
    x = torch.tensor([[0, 4], [2, 1]])
    assert digitize(x, 5).tolist() == x.tolist()
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        assert torch.equal(digitize(x.to(dtype), 5), digitize(x, 5))
    with pytest.raises(ValueError, match=r"codes from 0 to 3 \(bins=4\), got 4 in feature 1"):
        digitize(x, 4)
    with pytest.raises(ValueError, match="got -1 in feature 0"):
        digitize(x - 1, 5)
    with pytest.raises(ValueError, match="floating values with rule='notebook', got codes"):
        digitize(x, 5, rule="notebook")
    with pytest.raises(ValueError, match=r"floating values with range=\(0, 4\), got codes"):
        digitize(x, 5, range=(0, 4))


@pytest.mark.parametrize("rule", ["uniform", "quantile", "notebook"])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_values_that_are_not_finite_are_named(rule: str, bad: float) -> None:
    x = torch.randn(20, 3)
    x[4:6, 1] = bad
    message = "must be finite, got 2 NaN or infinite values in feature 1"
    with pytest.raises(ValueError, match=f"x {message}"):
        digitize(x, 5, rule=rule)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"y {message}"):
        joint_histogram(torch.randn(20, 3), x, 5, rule=rule)  # type: ignore[arg-type]
    if rule == "uniform":
        with pytest.raises(ValueError, match=f"x {message}"):
            digitize(x, 5, range=(-9.0, 9.0))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"bins": 1}, ValueError, "bins must be from 2 to 32767, got 1"),
        ({"bins": 32768}, ValueError, "bins must be from 2 to 32767, got 32768"),
        ({"bins": 2.0}, TypeError, "bins must be an integer, got 2.0"),
        ({"rule": "log"}, ValueError, "rule must be one of .*, got 'log'"),
        ({"outside": "wrap"}, ValueError, "outside must be one of .*, got 'wrap'"),
        ({"range": "row"}, ValueError, "range must be 'global', 'column' or .*, got 'row'"),
        ({"range": (1.0, 1.0)}, ValueError, r"finite bounds lo < hi, got \(1.0, 1.0\)"),
        ({"range": (0.0, INF)}, ValueError, "finite bounds lo < hi"),
        ({"range": (1e9, 1e9 + 1)}, ValueError, "lo < hi, as torch.float32"),
        (
            {"range": (torch.zeros(3), torch.ones(3))},
            ValueError,
            "one bound or one per feature, got 3 for the 2 features of x",
        ),
        (
            {"range": (torch.zeros(2), torch.ones(3))},
            ValueError,
            "as many lower as upper bounds, got 2 and 3",
        ),
        (
            {"range": "column", "rule": "notebook"},
            ValueError,
            "range must be 'global' with rule='notebook', got 'column'",
        ),
        (
            {"range": (0.0, 1.0), "rule": "quantile"},
            ValueError,
            "range must not be given with rule='quantile'",
        ),
        ({"x": [1.0]}, TypeError, "x must be a tensor, got list"),
        ({"x": torch.ones(3).bool()}, TypeError, "x must have float32, .*, got torch.bool"),
        ({"x": torch.ones(3) + 0j}, TypeError, "got torch.complex64"),
        ({"x": torch.ones(())}, ValueError, r"\[n, d\] or \[n\] and not empty, got shape \(\)"),
        ({"x": torch.ones(2, 2, 2)}, ValueError, r"got shape \(2, 2, 2\)"),
        ({"x": torch.ones(0, 3)}, ValueError, r"not empty, got shape \(0, 3\)"),
        ({"x": torch.ones(3, 0)}, ValueError, r"not empty, got shape \(3, 0\)"),
        (
            {"x": torch.ones(3, requires_grad=True)},
            ValueError,
            "x must not require grad.*soft_mutual_information",
        ),
    ],
)
def test_bad_input(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        digitize(**{"x": torch.randn(6, 2), **arguments})


def test_without_grad_mode_parameters_are_values() -> None:
    x = torch.randn(10, 2, requires_grad=True)
    with torch.no_grad():
        assert torch.equal(digitize(x, 3), digitize(x.detach(), 3))
