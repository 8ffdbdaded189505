"""Information of groups whose dependence is Gaussian, whatever each unit's own distribution."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from modfast.information import gaussian
from modfast.information.partition import Groups, Partition
from modfast.precision import precise


@precise
def copula_mutual_information(
    x: Tensor, y: Tensor | Partition, *, unbiased: bool = False
) -> Tensor:
    """I(x; y) of groups with a Gaussian copula, in nats: a lower bound to it for any other copula.

    Each unit's values are replaced by the normal scores of their ranks, Phi^-1(rank / (n + 1)), on
    which `gaussian_mutual_information` is taken; so no monotone function of a unit changes it.
    Equal values share their mean rank.

    Args:
        x: floating values `[n, dx]` or `[n]`, or the activations of all units `[n, d]`.
        y: `[n, dy]` or `[n]`, the same samples; or a partition of the units, as in
            `gaussian_mutual_information`.
        unbiased: subtracts the bias that n Gaussian samples have. Values may then be below 0.

    Returns:
        A float64 scalar; for a partition the matrix `[m, m]` of all pairs of modules, infinite on
        the diagonal.

    Raises:
        TypeError, ValueError: as `gaussian_mutual_information`; values that require grad, as ranks
            have no gradient.

    Source: Ince et al. (2017), A statistical framework for neuroimaging data analysis based on
    mutual information estimated via a Gaussian copula.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(100_000)
        >>> y = 0.6 * x + 0.8 * torch.randn(100_000)
        >>> f"{copula_mutual_information(x.exp(), y ** 3):.2f}"
        '0.22'
    """
    return gaussian.of_samples(normal_scores(Groups.of(x, y)), unbiased)


def normal_scores(groups: Groups) -> Groups:
    """The same groups of Phi^-1(rank / (n + 1)) of each unit, in float64."""
    ordered, order = groups.values.T.sort(dim=1)
    place = torch.arange(ordered.shape[1], device=ordered.device)
    # Equal values share the mean of their places, from the first to the last of a run of them.
    edge = torch.ones_like(order[:, :1], dtype=torch.bool)
    changes = ordered[:, 1:] != ordered[:, :-1]
    first = torch.where(torch.cat([edge, changes], 1), place, 0).cummax(1).values
    last = torch.where(torch.cat([changes, edge], 1), place, len(place)).flip(1).cummin(1).values
    share = (first + last.flip(1) + 2).double() / (2 * (len(place) + 1))
    scores = torch.empty_like(share).scatter_(1, order, torch.special.ndtri(share))
    return replace(groups, values=scores.T)
