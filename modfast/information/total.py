"""How far are many groups from independent?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from modfast import checks
from modfast._renamed import renamed
from modfast.information import gaussian
from modfast.information.copula import normal_scores
from modfast.information.partition import Groups, Partition
from modfast.precision import precise

Estimator: TypeAlias = Literal["gaussian", "copula"] | Callable[..., Tensor]


@renamed(partition="units")
@precise
def total_correlation(
    activations: Tensor | None,
    units: Partition,
    estimator: Estimator = "gaussian",
    **options: Any,
) -> Tensor:
    """Sum of H(module) over all modules, less H(all of them together), in nats.

    It is 0 for independent modules. "gaussian" and "copula" take it from determinants,
    -1/2 (log|S| - sum log|S_b|). Any other estimator gives it by the chain rule, as the sum over
    modules b of I(module b; all modules before b).

    Args:
        activations: floating values `[n, d]`; None with a covariance.
        units: groups of them; a boolean or 0-1 matrix `[n_modules, d]`, labels `[d]` (-1 for "in
            no module"), or a list of unit indices for each module.
        estimator: "gaussian", "copula", or any function of two groups `(x [n, dx], y [n, dy])` that
            gives their information as a scalar, such as `ksg_mutual_information`. The biases of
            such a function add up over the modules.
        options: of `gaussian_mutual_information`, `copula_mutual_information` or the function.

    Returns:
        A scalar, 0 for one module; infinite where one module is known from others.

    Raises:
        TypeError: an estimator of another kind; activations or partition as in
            `gaussian_mutual_information`.
        ValueError: modules that overlap or are empty; what the estimator refuses.

    Source: Watanabe (1960), Information theoretical analysis of multivariate correlation; N3, the
    mutual-information notebook.

    Example:
        >>> import torch
        >>> weight = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 1, 1]])  # of three normal inputs
        >>> total_correlation(None, [0, 1, 2], covariance=weight @ weight.T)  # log(3) / 2
        tensor(0.5493, dtype=torch.float64)
        >>> _ = torch.manual_seed(0)
        >>> activations = torch.randn(100_000, 3) @ weight.T
        >>> f"{total_correlation(activations, [[0], [1], [2]], 'copula'):.2f}"
        '0.55'
    """
    checks.estimator(estimator, "gaussian", "copula")
    if estimator == "gaussian":
        return _gaussian(activations, units, **options)
    groups = Groups.of_modules(activations, units, least=1, differentiable=callable(estimator))
    if estimator == "copula":
        return gaussian.total_of_samples(normal_scores(groups), **options)
    assert callable(estimator)
    checks.takes_pair("estimator", estimator, options)
    found = groups.values.new_zeros((), dtype=torch.float64)
    before, *others = groups.each()
    for module in others:
        found = found + checks.scalar("estimator", estimator(module, before, **options))
        before = torch.cat([before, module], dim=1)
    return found


def _gaussian(
    activations: Tensor | None,
    partition: Partition,
    covariance: Tensor | None = None,
    unbiased: bool = False,
) -> Tensor:
    if covariance is not None:
        return gaussian.total_of_covariance(activations, partition, covariance, unbiased)
    groups = Groups.of_modules(activations, partition, least=1, differentiable=True)
    return gaussian.total_of_samples(groups, unbiased)
