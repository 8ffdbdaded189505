"""Information of groups whose dependence is Gaussian, whatever each unit's own distribution."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from modfast.information import gaussian
from modfast.information.partition import Groups, Partition


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
    columns = groups.values.T.contiguous()
    ordered = columns.sort(dim=1).values
    # Ranks from 1 on; equal values have the mean of theirs.
    below = torch.searchsorted(ordered, columns)
    upto = torch.searchsorted(ordered, columns, right=True)
    share = (below + upto + 1).double() / (2 * (columns.shape[1] + 1))
    return replace(groups, values=torch.special.ndtri(share.T))
