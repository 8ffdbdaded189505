"""N3: what groups of units tell about each other, by different estimators."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modfast.information import (
    calibrate,
    gaussian_mutual_information,
    jacobian_mutual_information,
    kmeans_mutual_information,
    mutual_information,
)
from modfast.information.kmeans import quantized
from modfast.information.partition import standardized
from modfast.reproduce.networks import Networks
from modfast.reproduce.tables import Row, Section

N_SAMPLES, N_INPUTS, N_HIDDEN, GROUP = 2000, 16, 12, 4
BINS, N_PARTS = 4, 2
N_CODES = BINS**N_PARTS
N_JACOBIANS = 16


def study(networks: Networks) -> Section:
    """Linear networks, whose information is known, and Gaussians, for the estimators' errors."""
    found = torch.stack([_of_linear(seed) for seed in networks.each("linear networks")])
    weights, jacobians, samples, argsort, kmeans = found.T
    gap = float((weights - jacobians).abs().max())
    rows = [
        Row("two halves of an output: from weights", None, weights, weights, "Exact, by W W^T."),
        Row(
            "... from Jacobians",
            None,
            jacobians,
            jacobians,
            f"Linear networks: equal to the exact value, within {gap:.1g}.",
        ),
        Row("... from samples, Gaussian", None, samples, samples, "The sampling alone is left."),
        Row(
            f"... from samples, {N_CODES} codes of k-means",
            7.6008,
            argsort,
            kmeans,
            f"ln {N_SAMPLES:,}: by argsort of the codes each sample has one of its own.",
        ),
    ]
    calibration = calibrate(
        dims=[GROUP], samples=[N_SAMPLES], seeds=len(networks.seeds), progress=networks.progress
    )
    for i, name in enumerate(calibration.names):
        values = calibration.estimates[i, 0, 0]
        bias = float(calibration.bias[i, 0, 0])
        rows.append(
            Row(
                f"1 nat of {GROUP} + {GROUP} Gaussian units, by {name}",
                None,
                None,
                values,
                f"Off by {bias:+.3f}.",
            )
        )
    settings = (
        f"Linear networks {N_INPUTS}-{N_HIDDEN}-{2 * GROUP} on {N_SAMPLES:,} samples of standard "
        f"normal inputs; nats. k-means as in N3, with {BINS} bins ** {N_PARTS} parts codes."
    )
    return Section("N3: information between groups", settings, tuple(rows))


def _of_linear(seed: int) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first, second = nn.Linear(N_INPUTS, N_HIDDEN), nn.Linear(N_HIDDEN, 2 * GROUP)
        x = torch.randn(N_SAMPLES, N_INPUTS).double()
    model = nn.Sequential(first, second).double().requires_grad_(False)
    weight, y = second.weight @ first.weight, model(x)
    halves = [range(GROUP), range(GROUP, 2 * GROUP)]
    a, b = y.split(GROUP, 1)
    return torch.stack(
        [
            gaussian_mutual_information(y=halves, covariance=weight @ weight.T)[0, 1],
            jacobian_mutual_information(model, x[:N_JACOBIANS], "1", halves)[0, 1],
            gaussian_mutual_information(a, b),
            _argsort_information(a, b),
            kmeans_mutual_information(a, b, k=N_CODES),
        ]
    )


def _argsort_information(x: Tensor, y: Tensor) -> Tensor:
    """The notebook's: samples' ranks in the order of their codes stand for the codes."""
    x_ranks, y_ranks = (
        quantized(standardized(each).float(), N_CODES, 100, seed=0).argsort() for each in (x, y)
    )
    return mutual_information(x_ranks, y_ranks, bins=len(x))
