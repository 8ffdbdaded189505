"""How far off is an estimator? Its errors on groups whose information is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from modfast import checks, plots
from modfast.information.copula import copula_mutual_information
from modfast.information.entropies import mutual_information
from modfast.information.gaussian import gaussian_mutual_information
from modfast.information.kmeans import kmeans_mutual_information
from modfast.information.neighbors import ksg_mutual_information
from modfast.information.soft import soft_mutual_information
from modfast.precision import precise
from modfast.progress import bar
from modfast.results import Result

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Estimator: TypeAlias = Callable[[Tensor, Tensor], Tensor]

ESTIMATORS: dict[str, Estimator] = {
    "gaussian": gaussian_mutual_information,
    "copula": copula_mutual_information,
    "ksg": ksg_mutual_information,
    "kmeans": kmeans_mutual_information,
    "binned": mutual_information,
    "soft": soft_mutual_information,
}


@dataclass(frozen=True, eq=False, repr=False)
class Calibration(Result):
    """Errors of estimators on Gaussians with known information, in nats; see `calibrate`.

    Example:
        >>> result = calibrate({"gaussian": gaussian_mutual_information}, dims=[1], samples=[1000])
        >>> bool(result.bias.abs() < 0.05), result.names
        (True, ('gaussian',))
    """

    names: tuple[str, ...]
    """Of the estimators."""
    dims: tuple[int, ...]
    """Units in each group."""
    samples: tuple[int, ...]
    """Numbers of samples."""
    truth: float
    """The groups' information."""
    estimates: Tensor
    """float64 `[estimators, dims, samples, seeds]`."""
    bias: Tensor
    """Mean over seeds less the truth, `[estimators, dims, samples]`."""
    spread: Tensor
    """Standard deviation over seeds, `[estimators, dims, samples]`; NaN for one seed."""

    def table(self) -> str:
        """A Markdown table: bias ± spread by estimator, dimension and number of samples."""
        cases = list(product(range(len(self.dims)), range(len(self.samples))))
        heads = [f"{self.dims[i]} + {self.dims[i]}, {self.samples[j]:,}" for i, j in cases]
        lines = [["units, samples", *heads], ["---"] * (len(cases) + 1)]
        for number, name in enumerate(self.names):
            bias, spread = self.bias[number], self.spread[number]
            lines.append([name, *(f"{bias[c]:+.3f} ± {spread[c]:.3f}" for c in cases)])
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

    def plot(self) -> Figure:
        """Bias against the number of samples, the spread as bars; a panel for each dimension."""
        return plots.calibration(
            self.bias, self.spread, self.names, self.dims, self.samples, self.truth
        )


@precise
def calibrate(
    estimators: Mapping[str, Estimator] | None = None,
    dims: Sequence[int] = (1, 4),
    samples: Sequence[int] = (500, 2000),
    seeds: int | Iterable[int] = 10,
    *,
    information: float = 1.0,
    progress: bool = True,
) -> Calibration:
    """Bias and spread of estimators on Gaussians whose mutual information is known.

    Both groups have d standard normal units; each unit of y has the same correlation r with its
    twin in x and none with any other, so that I(x; y) = -d/2 log(1 - r^2) = `information`. All
    estimators get the same samples, in float64.

    `print(modfast.calibrate().table())` gives, in nats of error on 1 nat:

        | units, samples | 1 + 1, 500 | 1 + 1, 2,000 | 4 + 4, 500 | 4 + 4, 2,000 |
        | --- | --- | --- | --- | --- |
        | gaussian | -0.002 ± 0.033 | +0.004 ± 0.014 | +0.022 ± 0.031 | +0.001 ± 0.020 |
        | copula | -0.017 ± 0.030 | +0.002 ± 0.014 | +0.013 ± 0.034 | -0.002 ± 0.021 |
        | ksg | +0.021 ± 0.036 | +0.007 ± 0.021 | -0.275 ± 0.054 | -0.164 ± 0.029 |
        | kmeans | -0.096 ± 0.030 | -0.109 ± 0.019 | -0.597 ± 0.033 | -0.660 ± 0.016 |
        | binned | -0.144 ± 0.031 | -0.184 ± 0.020 | -0.758 ± 0.008 | -0.776 ± 0.005 |
        | soft | -0.426 ± 0.040 | -0.478 ± 0.026 | -0.824 ± 0.007 | -0.838 ± 0.006 |

    Pooled bins ("binned", "soft") tell of one pair of units, and so of a d-th of the information.
    Codes of k-means lose more of it the more units a group has, and neighbors then need more
    samples.

    Args:
        estimators: functions of `(x [n, d], y [n, d])` by name; by default all that modfast has,
            with their defaults.
        dims: units in each group.
        samples: numbers of samples.
        seeds: of the samples, or how many of them, from 0 on.
        information: the groups' mutual information in nats, above 0.
        progress: show a progress bar, where standard error is a terminal.

    Raises:
        TypeError: `estimators` is no mapping of functions; numbers that are no integers.
        ValueError: empty arguments; dims or samples below 1; `information` that is not above 0; an
            estimator that gives no scalar; what an estimator refuses.

    Source: the specification's section on estimators; Cover and Thomas (2006), chapter 8, for the
    information of Gaussians.

    Example:
        >>> result = calibrate({"gaussian": gaussian_mutual_information}, [2], [1000], seeds=5)
        >>> print(result.table().splitlines()[0])
        | units, samples | 2 + 2, 1,000 |
        >>> bool((result.bias.abs() < 4 * result.spread).all())
        True
    """
    chosen = dict(ESTIMATORS) if estimators is None else _functions(estimators)
    information = checks.finite_number("information", information)
    if information <= 0:
        raise ValueError(f"information must be above 0, got {information}")
    dims, samples = _counts("dims", dims), _counts("samples", samples)
    numbers = _seeds(seeds)
    shape = len(chosen), len(dims), len(samples), len(numbers)
    estimates = torch.empty(shape, dtype=torch.float64, device="cpu")
    places = product(enumerate(dims), enumerate(samples), enumerate(numbers))
    for (i, d), (j, n), (s, seed) in bar(list(places), "calibrate", progress):
        x, y = known_groups(d, n, seed, information)
        for number, (name, estimate) in enumerate(chosen.items()):
            value = checks.scalar(f"estimators[{name!r}]", estimate(x, y))
            estimates[number, i, j, s] = value.item()
    spread = (
        estimates.std(-1) if len(numbers) > 1 else torch.full_like(estimates[..., 0], torch.nan)
    )
    bias = estimates.mean(-1) - information
    return Calibration(tuple(chosen), dims, samples, float(information), estimates, bias, spread)


def known_groups(d: int, n: int, seed: int, information: float) -> tuple[Tensor, Tensor]:
    """Samples `[n, d]` of two Gaussian groups with that mutual information in nats."""
    generator = torch.Generator("cpu").manual_seed(seed)
    x, noise = torch.randn(2, n, d, dtype=torch.float64, generator=generator, device="cpu")
    unexplained = math.exp(-2 * information / d)
    return x, math.sqrt(1 - unexplained) * x + math.sqrt(unexplained) * noise


def _functions(estimators: Mapping[str, Estimator]) -> dict[str, Estimator]:
    if not isinstance(estimators, Mapping):
        raise TypeError(
            f"estimators must be a mapping of functions by name, got {type(estimators).__name__}"
        )
    if not estimators:
        raise ValueError("estimators must hold at least one function, got none")
    for name, each in estimators.items():
        if not callable(each):
            raise TypeError(f"estimators[{name!r}] must be a function of (x, y), got {each!r}")
    return dict(estimators)


def _seeds(seeds: int | Iterable[int]) -> list[int]:
    if not isinstance(seeds, Iterable):
        return list(range(checks.count("seeds", seeds)))
    numbers = [checks.seed("seeds", each) for each in checks.several("seeds", seeds)]
    if not numbers:
        raise ValueError("seeds must hold at least one seed, got none")
    return numbers


def _counts(argument: str, values: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(values, Sequence):
        raise TypeError(f"{argument} must be a sequence of integers, got {values!r}")
    if not values:
        raise ValueError(f"{argument} must hold at least one number, got none")
    return tuple(checks.count(argument, value) for value in values)
