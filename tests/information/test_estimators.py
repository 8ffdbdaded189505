"""What all estimators of information between groups share: their groups, and the truth."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from modfast import (
    Calibration,
    calibrate,
    copula_mutual_information,
    gaussian_mutual_information,
    kmeans_mutual_information,
    ksg_mutual_information,
    modularity_measures,
    mutual_information,
    soft_mutual_information,
    total_correlation,
)
from modfast.information.calibration import known_groups

ESTIMATORS: dict[str, Callable[..., Tensor]] = {
    "gaussian": gaussian_mutual_information,
    "copula": copula_mutual_information,
    "kmeans": partial(kmeans_mutual_information, k=4),
    "ksg": ksg_mutual_information,
    "ksg 2": partial(ksg_mutual_information, variant=2),
}
every_estimator = pytest.mark.parametrize("name", list(ESTIMATORS))


def activations(n: int = 200, device: torch.device | str = "cpu") -> Tensor:
    torch.manual_seed(0)
    x = torch.randn(n, 6, dtype=torch.float64)
    x[:, 3:] += x[:, :3]
    return x.to(device)


@every_estimator
def test_a_partition_gives_all_pairs(name: str, device: torch.device) -> None:
    estimate, x = ESTIMATORS[name], activations(device=device)
    lists = [[0, 3], [1, 2], [5]]
    matrix = estimate(x, lists)
    assert matrix.shape == (3, 3)
    assert matrix.dtype == torch.float64
    assert torch.equal(matrix, matrix.T)
    if name == "kmeans":
        assert (matrix.diagonal() > 1).all()
        assert (matrix.diagonal() <= np.log(4) + 1e-9).all()
    else:
        assert (matrix.diagonal() == torch.inf).all()
    # Noise of the KSG estimator is drawn group by group, and moves some neighbor of few samples.
    for i, j in ((0, 1), (0, 2), (1, 2)):
        alone = estimate(x[:, lists[i]], x[:, lists[j]])
        assert alone.shape == ()
        torch.testing.assert_close(
            matrix[i, j], alone, rtol=0, atol=1e-3 if "ksg" in name else 1e-9
        )
    mask = torch.zeros(3, 6, dtype=torch.bool)
    for row, units in enumerate(lists):
        mask[row, units] = True
    labels = [0, 1, 1, 0, -1, 2]
    others = (labels, torch.tensor(labels), np.array(labels), mask, mask.int(), mask.numpy())
    for same in (*others, [range(0, 4, 3), (2, 1), torch.tensor([5])]):
        assert torch.equal(estimate(x, same), matrix)


@every_estimator
def test_known_information(name: str) -> None:
    """Within three standard errors; quantized groups lose some."""
    x, y = known_groups(2, 2000, 0, 0.7)
    found = [float(ESTIMATORS[name](*known_groups(2, 2000, seed, 0.7))) for seed in range(8)]
    error = np.std(found, ddof=1) / np.sqrt(len(found))
    if name == "kmeans":
        assert 0.2 < np.mean(found) < 0.7
    else:
        # In two dimensions the KSG estimators are biased by some hundredths.
        assert abs(np.mean(found) - 0.7) < 3 * error + (0.05 if "ksg" in name else 0)
    assert abs(float(ESTIMATORS[name](x, y.flip(0)))) < 0.1


@every_estimator
def test_scale_and_offset_change_nothing(name: str) -> None:
    x = activations()
    scale = torch.tensor([1e-150, 1e150, 3.0, 1e-3, 1e60, 7.0], dtype=torch.float64)
    plain = ESTIMATORS[name](x[:, :3], x[:, 3:])
    found = ESTIMATORS[name](x[:, :3] * scale[:3], x[:, 3:] * scale[3:])
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-2 if "ksg" in name else 1e-9)


@every_estimator
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_types_and_strides(name: str, dtype: torch.dtype) -> None:
    x = activations().to(dtype)
    found = ESTIMATORS[name](x.T.contiguous().T[:, ::2], x[:, 1])
    assert found.dtype == torch.float64
    exact = ESTIMATORS[name](x[:, ::2].double(), x[:, 1:2].double())
    # k-means works in float32, whose centers are rounded.
    torch.testing.assert_close(found, exact, rtol=0, atol=0.03 if name == "kmeans" else 1e-9)


@every_estimator
@pytest.mark.slow
def test_any_number_of_threads(name: str) -> None:
    x, before = activations(3000), torch.get_num_threads()
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(ESTIMATORS[name](x, [[0, 1, 2], [3, 4, 5]]))
    torch.set_num_threads(before)
    for each in found[1:]:
        if name in ("gaussian", "copula"):  # whose sums are the matrix product's
            torch.testing.assert_close(each, found[0], rtol=0, atol=1e-12)
        else:
            assert torch.equal(each, found[0])


@every_estimator
@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        ("x", None, TypeError, "y must be a matrix .* got NoneType"),
        ([1.0], torch.ones(1), TypeError, "x must be a tensor, got list"),
        (torch.arange(9), torch.randn(9), TypeError, "x must have floating values"),
        (torch.randn(9, 0), torch.randn(9), ValueError, "not empty"),
        (torch.randn(9, 1, 1), torch.randn(9), ValueError, r"must be \[n, d\]"),
        (torch.randn(9), torch.randn(8), ValueError, "same samples, got 9 and 8 rows"),
        (torch.full((9,), torch.nan), torch.randn(9), ValueError, "x must be finite, got 9"),
        ("x", [[0, 1], [1, 2]], ValueError, "y must not overlap: unit 1"),
        ("x", [[0, 1], []], ValueError, "units in each group, got none in group 1"),
        ("x", [0, 0, 2, 2, -1, -1], ValueError, "units in each group, got none in group 1"),
        ("x", [[0, 1]], ValueError, "at least 2 groups, got 1"),
        ("x", [[0], [6]], ValueError, "y must hold indices from 0 to 5, got 6"),
        ("x", [[0], [-1]], ValueError, "y must hold indices from 0 to 5, got -1"),
        ("x", [[0], [0.5]], TypeError, "lists of integer unit indices"),
        ("x", [[0], 1], TypeError, "lists of integer unit indices"),
        ("x", [0, 1, 1], ValueError, "of the 6 units there are, got 3"),
        ("x", [0, 1, -2, 0, 0, 0], ValueError, r"y\[2\] must be at least -1"),
        ("x", torch.tensor([[2, 0], [0, 1]]), ValueError, "0 or 1 everywhere"),
        ("x", torch.ones(2, 6, dtype=torch.int64), ValueError, "must not overlap: unit 0"),
        ("x", torch.eye(3, 5).bool(), ValueError, "of the 6 units there are, got 5"),
        ("x", torch.eye(4, 6).bool() & (torch.arange(4) < 3)[:, None], ValueError, "in group 3"),
        ("x", "ab", TypeError, "y must be a matrix .* got str"),
        ("x", {0: [1]}, ValueError, "at least 2 groups, got 1"),
        ("x", [0, 0, 0, 0, 0, 150_000_000], ValueError, "none in group 1 with labels up to"),
    ],
)
def test_bad_groups(name: str, x: object, y: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ESTIMATORS[name](activations(20) if isinstance(x, str) else x, y)


@pytest.mark.parametrize("name", ["copula", "kmeans", "ksg"])
def test_what_has_no_gradient_says_so(name: str) -> None:
    x = torch.randn(20, requires_grad=True)
    with pytest.raises(ValueError, match="x must not require grad"):
        ESTIMATORS[name](x, torch.randn(20))


@every_estimator
def test_estimators_stand_in_modularity_measures(name: str) -> None:
    measures_of(ESTIMATORS[name])


def test_binned_ones_stand_in_modularity_measures() -> None:
    limits = {"range": (-8.0, 8.0), "pairing": "all"}
    sites = measures_of(partial(mutual_information, **limits))
    soft = measures_of(partial(soft_mutual_information, window=1e-9, **limits))
    named = modularity_measures(*ARGUMENTS, range=(-8.0, 8.0))
    for measure in ("c1", "c2", "c3"):
        torch.testing.assert_close(getattr(sites, measure), getattr(named, measure))
        torch.testing.assert_close(getattr(soft, measure), getattr(named, measure))


ARGUMENTS = {"a": activations()[:, :3], "b": activations()[:, 3:]}, {"a": [0, 2], "b": [0]}


def measures_of(estimate: Callable[..., Tensor]):
    found = modularity_measures(*ARGUMENTS, estimator=estimate)
    a, b = ARGUMENTS[0]["a"], ARGUMENTS[0]["b"][:, :1]
    outside, whole, inside = (estimate(b, a[:, c]) for c in ([1], [0, 1, 2], [0, 2]))
    torch.testing.assert_close(found.c1[0], -outside)
    torch.testing.assert_close(found.c2[0], inside - whole)
    torch.testing.assert_close(found.c3[0], outside - whole)
    return found


def test_total_correlation_by_the_chain_rule() -> None:
    x = activations(500)
    partition = [[0, 3], [1], [2, 4, 5]]
    for name in ("gaussian", "copula"):
        direct = total_correlation(x, partition, name)
        torch.testing.assert_close(total_correlation(x, partition, ESTIMATORS[name]), direct)
        unbiased = [
            total_correlation(x, partition, which, unbiased=True)
            for which in (name, ESTIMATORS[name])
        ]
        torch.testing.assert_close(*unbiased)
        assert unbiased[0] < direct
    torch.testing.assert_close(
        total_correlation(x, partition[:2]), gaussian_mutual_information(x, partition[:2])[0, 1]
    )
    nearest = total_correlation(x, partition, ksg_mutual_information, k=5)
    chain = ksg_mutual_information(x[:, [1]], x[:, [0, 3]], k=5) + ksg_mutual_information(
        x[:, [2, 4, 5]], x[:, [0, 3, 1]], k=5
    )
    assert torch.equal(nearest, chain)
    assert total_correlation(x, [[0, 3]]) == 0
    assert total_correlation(x, [[0, 3]], ksg_mutual_information) == 0
    twice = torch.cat([x, x[:, :1] + x[:, 1:2]], dim=1)
    assert total_correlation(twice, range(7)) == torch.inf


def test_bad_total_correlation() -> None:
    x = activations(50)
    with pytest.raises(TypeError, match="estimator must be 'gaussian', 'copula' or .* got 'ksg'"):
        total_correlation(x, [[0], [1]], "ksg")
    with pytest.raises(ValueError, match="estimator must give a scalar, got shape \\(50, 1\\)"):
        total_correlation(x, [[0], [1]], lambda a, b: a)
    with pytest.raises(ValueError, match="covariance must be given instead of samples"):
        total_correlation(x, [[0], [1]], covariance=torch.eye(6))
    with pytest.raises(ValueError, match="at least 7 samples for the covariance of 6 units, got 5"):
        total_correlation(x[:5], range(6))


def test_calibration() -> None:
    result = calibrate(
        {"gaussian": gaussian_mutual_information, "half": lambda x, y: x.new_tensor(0.5)},
        dims=(1, 3),
        samples=(50, 400, 800),
        seeds=range(5, 25),
        information=0.8,
    )
    assert result.estimates.shape == (2, 2, 3, 20)
    assert (result.names, result.dims, result.samples) == (
        ("gaussian", "half"),
        (1, 3),
        (50, 400, 800),
    )
    torch.testing.assert_close(result.bias, result.estimates.mean(-1) - 0.8)
    assert (result.bias[1] == -0.3).logical_or((result.bias[1] + 0.3).abs() < 1e-12).all()
    # The theory of Gaussian samples: bias dx dy / 2n to first order, spread falling with n.
    n = torch.tensor([400.0, 800.0])
    bias, spread = result.bias[0, :, 1:], result.spread[0, :, 1:]
    expected = torch.tensor([[1.0], [9.0]]) / (2 * n)
    assert ((bias - expected).abs() < 3 * spread / 20**0.5).all()
    assert (result.spread[0, :, 0] > spread[:, 1]).all()
    x, y = known_groups(3, 50, 7, 0.8)
    assert result.estimates[0, 1, 0, 2] == gaussian_mutual_information(x, y)
    lines = result.table().splitlines()
    assert lines[0] == (
        "| units, samples | 1 + 1, 50 | 1 + 1, 400 | 1 + 1, 800 | 3 + 3, 50 | 3 + 3, 400 "
        "| 3 + 3, 800 |"
    )
    assert lines[3] == "| half |" + " -0.300 ± 0.000 |" * 6
    assert result.truth == 0.8
    with pytest.raises(AttributeError):
        result.truth = 1  # type: ignore[misc]


def test_calibration_by_default_and_its_figure() -> None:
    result = calibrate(dims=[1], samples=[200], seeds=1)
    assert isinstance(result, Calibration)
    assert result.spread.isnan().all()
    assert set(result.names) == {"gaussian", "copula", "ksg", "kmeans", "binned", "soft"}
    pytest.importorskip("plotly", reason="plotly is not installed")
    result = calibrate(dims=[1, 2], samples=[100, 200], seeds=2)
    figure = result.plot()
    assert len(figure.data) == 12
    np.testing.assert_array_equal(figure.data[1].y, result.bias[0, 1])
    np.testing.assert_array_equal(figure.data[1].error_y.array, result.spread[0, 1])
    assert sum(line.showlegend for line in figure.data) == 6
    assert figure.layout.annotations[1].text == "2 + 2 units"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"estimators": [gaussian_mutual_information]}, TypeError, "mapping of functions by name"),
        ({"estimators": {}}, ValueError, "at least one function"),
        ({"estimators": {"a": 3}}, TypeError, r"estimators\['a'\] must be a function of \(x, y\)"),
        ({"estimators": {"a": lambda x, y: x}}, ValueError, r"\['a'\] must give a scalar"),
        ({"dims": [0]}, ValueError, "dims must be at least 1, got 0"),
        ({"dims": 3}, TypeError, "dims must be a sequence of integers, got 3"),
        ({"samples": []}, ValueError, "samples must hold at least one number"),
        ({"samples": ["a"]}, TypeError, "samples must be an integer, got 'a'"),
        ({"seeds": []}, ValueError, "seeds must hold at least one seed"),
        ({"seeds": 0}, ValueError, "seeds must be at least 1, got 0"),
        ({"seeds": 1.5}, TypeError, "seeds must be an integer, got 1.5"),
        ({"seeds": ["a"]}, TypeError, "seeds must be an integer, got 'a'"),
        ({"information": 0}, ValueError, "information must be above 0, got 0"),
        ({"information": torch.inf}, ValueError, "information must be finite"),
    ],
)
def test_bad_calibration(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        calibrate(**{"dims": [1], "samples": [50], "seeds": 1, **arguments})
