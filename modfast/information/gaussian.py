"""Information of groups that are jointly Gaussian, from covariances alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from modfast import checks
from modfast.information.partition import (
    Groups,
    Partition,
    module_names,
    standardized,
    within_one,
)
from modfast.network.units import read_groups
from modfast.precision import precise

# A unit is taken to be a function of others where what these leave of its variance is less than
# this many times what rounding may leave.
SLACK = 16.0
_CELLS = 2**22  # Numbers in the blocks that are factored at a time.


@precise
def gaussian_mutual_information(
    x: Tensor | None = None,
    y: Tensor | Partition | None = None,
    *,
    covariance: Tensor | None = None,
    unbiased: bool = False,
) -> Tensor:
    """I(x; y) = -1/2 (log|S| - log|S_x| - log|S_y|) of Gaussian groups, in nats.

    S is the covariance of x and y together, S_x and S_y are its blocks. Units are scaled to unit
    variance, which changes nothing, and determinants are taken as sums of logarithms, so that none
    over- or underflows. Where groups are not Gaussian, the value is that of Gaussians with the same
    covariance.

    Args:
        x: floating values `[n, dx]` or `[n]`, or the activations of all units `[n, d]`. float64 is
            used within.
        y: `[n, dy]` or `[n]`, the same samples; or a partition of the units: a boolean or 0-1
            integer matrix `[n_modules, d]`, labels `[d]` (-1 for "in no module"), or a list of unit
            indices for each module.
        covariance: `[d, d]` instead of x, with a partition as y. Of a linear map W of standard
            normal numbers it is W W^T.
        unbiased: subtracts the bias of n Gaussian samples, about dx dy / 2n, which is known
            exactly. Values may then be below 0.

    Returns:
        A float64 scalar; for a partition the matrix `[m, m]` of all pairs of modules, infinite on
        the diagonal. Infinite also where one group is known from the other: where S is singular,
        but its blocks are not. Differentiable with respect to x, y or covariance.

    Raises:
        TypeError: values that do not float, a partition of another kind.
        ValueError: a group whose own covariance is singular, as for constant units (group and unit
            are named); not more samples than units in two groups together; values that are not
            finite; different samples; modules that overlap or are empty; a covariance that is not
            symmetric and positive semidefinite.

    Source: N3, the mutual-information notebook.

    Example:
        >>> import torch
        >>> weight = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
        >>> gaussian_mutual_information(y=[[0], [1]], covariance=weight @ weight.T)[0, 1]
        tensor(0.2231, dtype=torch.float64)
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(100_000, 2)
        >>> y = 0.6 * x[:, 0] + 0.8 * torch.randn(100_000)
        >>> f"{gaussian_mutual_information(x, y):.2f}"
        '0.22'
    """
    if covariance is None:
        return of_samples(Groups.of(x, y, differentiable=True), unbiased)
    return pair_matrix(*_given(x, y, covariance, unbiased, least=2))


def of_samples(groups: Groups, unbiased: bool = False) -> Tensor:
    """The result of a call: information of all pairs of groups."""
    checks.flag("unbiased", unbiased)
    sizes = sorted(len(units) for units in groups.members)
    n = _samples(groups, sum(sizes[-2:]))
    found = pair_matrix(*correlations(groups), groups.names)
    return groups.result(found - _bias(n, groups.members) if unbiased else found)


def total_of_samples(groups: Groups, unbiased: bool = False) -> Tensor:
    """Total correlation of the groups."""
    checks.flag("unbiased", unbiased)
    sizes = [len(units) for units in groups.members]
    n = _samples(groups, sum(sizes))
    found = total(*correlations(groups), groups.names)
    if unbiased:
        found = found - (sum(_expected(n, d) for d in sizes) - _expected(n, sum(sizes))) / 2
    return found


def total_of_covariance(
    activations: Tensor | None, partition: Partition, covariance: Tensor, unbiased: bool
) -> Tensor:
    """Total correlation of modules of units with a covariance `[d, d]`."""
    return total(*_given(activations, partition, covariance, unbiased, least=1))


def correlations(groups: Groups) -> tuple[Tensor, list[Tensor], Tensor]:
    """Correlations `[d, d]` of all units, the groups' units, and what rounding may leave `[d]`."""
    values = groups.values
    z = standardized(values)
    # What rounding of the values themselves adds to the variance, against the variance.
    exact = within_one(values.detach())
    square, variance = exact.square().mean(0), exact.var(0, correction=0)
    rounding = torch.finfo(values.dtype).eps ** 2 * square / torch.where(variance > 0, variance, 1)
    epsilon = values.shape[1] * torch.finfo(torch.float64).eps
    return z.T @ z / len(z), groups.members, SLACK * rounding.clamp(min=epsilon)


def pair_matrix(
    correlation: Tensor,
    members: Sequence[Tensor],
    noise: Tensor,
    names: Sequence[str],
    first_sample: int | None = None,
) -> Tensor:
    """Information of all pairs of groups `[..., m, m]` in correlations `[..., d, d]`."""
    m, blocks = len(members), _padded(members)
    own = _regular(correlation, members, noise, names, first_sample)
    first, second = torch.tensor(list(combinations(range(m), 2)), device=blocks.device).unbind(1)
    joint, _ = log_determinants(
        correlation, torch.cat([blocks[first], blocks[second]], dim=1), noise
    )
    # Blocks tell no less than nothing, but a rounded difference may.
    found = ((own[..., first] + own[..., second] - joint) / 2).clamp(min=0)
    matrix = found.new_full((*found.shape[:-1], m, m), torch.inf)
    matrix[..., first, second] = found
    matrix[..., second, first] = found
    return matrix


def total(
    correlation: Tensor,
    members: Sequence[Tensor],
    noise: Tensor,
    names: Sequence[str],
    first_sample: int | None = None,
) -> Tensor:
    """Total correlation of groups `[...]` in correlations `[..., d, d]`."""
    own = _regular(correlation, members, noise, names, first_sample)
    joint, _ = log_determinants(correlation, torch.cat(list(members))[None], noise)
    return ((own.sum(-1) - joint[..., 0]) / 2).clamp(min=0)


def log_determinants(correlation: Tensor, index: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Log-determinants `[..., b]` of blocks of correlations `[..., d, d]`.

    Args:
        correlation: with ones on the diagonal, zeros for units that do not vary.
        index: the units of each block `[b, s]`, filled up with -1.
        noise: `[..., d]`; a block is singular where what the units before it in the block leave of
            a unit's variance is no more than this.

    Returns:
        The log-determinants, -inf of a singular block; and the place in the block of the first unit
        that makes it so, -1 in a regular one.
    """
    cells = correlation.shape[:-2].numel() * index.shape[1] ** 2
    parts = [
        _factored(correlation, part, noise) for part in index.split(max(1, _CELLS // max(1, cells)))
    ]
    logs, places = zip(*parts, strict=True)
    return torch.cat(logs, dim=-1), torch.cat(places, dim=-1)


def _factored(correlation: Tensor, index: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    filler, units = index < 0, index.clamp(min=0)
    block = correlation[..., units[:, :, None], units[:, None, :]]
    # Rows and columns of the identity leave a determinant as it is.
    identity = torch.eye(index.shape[1], dtype=block.dtype, device=block.device)
    block = torch.where(filler[:, :, None] | filler[:, None, :], identity, block)
    factor, failed = torch.linalg.cholesky_ex(block)
    pivots = factor.diagonal(dim1=-2, dim2=-1).square()
    least = torch.where(filler, 0, noise[..., units])
    places = torch.arange(1, index.shape[1] + 1, device=index.device)
    # From the row at which it failed on, a factor holds anything.
    singular = (pivots <= least) | ((failed > 0)[..., None] & (places >= failed[..., None]))
    any_singular = singular.any(-1)
    logs = torch.where(singular, 1, pivots).log().sum(-1)
    first = torch.where(any_singular, singular.int().argmax(-1), -1)
    return torch.where(any_singular, -torch.inf, logs), first


def _regular(
    correlation: Tensor,
    members: Sequence[Tensor],
    noise: Tensor,
    names: Sequence[str],
    first_sample: int | None,
) -> Tensor:
    """Log-determinants of each group `[..., m]`.

    Raises:
        ValueError: one is singular.
    """
    own, places = log_determinants(correlation, _padded(members), noise)
    if (places >= 0).any():
        *at, group = (places >= 0).nonzero()[0].tolist()
        place = int(places[(*at, group)])
        where = "" if first_sample is None else f" at sample {first_sample + at[0]}"
        raise ValueError(
            f"{names[group]} has a singular covariance{where}: its unit at place "
            f"{place} is constant, or a linear function of those before it"
        )
    return own


def _given(
    x: Tensor | None,
    partition: Tensor | Partition | None,
    covariance: Tensor,
    unbiased: bool,
    least: int,
) -> tuple[Tensor, list[Tensor], Tensor, list[str]]:
    """Correlations, the modules' units, what rounding may leave `[d]`, and the modules' names."""
    if x is not None:
        raise ValueError("covariance must be given instead of samples, got both")
    if checks.flag("unbiased", unbiased):
        raise ValueError("unbiased must be False with a covariance, which has no number of samples")
    checks.floating("covariance", covariance)
    if covariance.dim() != 2 or len(covariance) != covariance.shape[1] or not covariance.numel():
        raise ValueError(f"covariance must be [d, d], got shape {tuple(covariance.shape)}")
    checks.finite("covariance", covariance)
    members = [
        units.to(covariance.device)
        for units in read_groups("y", partition, len(covariance), overlap=False, least=least)
    ]
    epsilon = SLACK * len(covariance) * torch.finfo(covariance.dtype).eps
    correlation = scaled(covariance.double())
    if not torch.allclose(correlation, correlation.T, rtol=0, atol=epsilon):
        raise ValueError("covariance must be symmetric")
    above = correlation.detach() + epsilon * torch.eye(
        len(covariance), dtype=torch.float64, device=covariance.device
    )
    if (covariance.diagonal() < 0).any() or torch.linalg.cholesky_ex(above).info:
        lowest = float(torch.linalg.eigvalsh(covariance.detach().double())[0])
        raise ValueError(
            f"covariance must be positive semidefinite, got an eigenvalue of {lowest:.3g}"
        )
    noise = correlation.new_full((len(covariance),), epsilon)
    return correlation, members, noise, module_names(members)


def scaled(covariance: Tensor) -> Tensor:
    """Correlations of covariances `[..., d, d]`; units without variance have zeros."""
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    scale = torch.where(variance > 0, variance, torch.inf).rsqrt()
    return covariance * scale[..., :, None] * scale[..., None, :]


def _padded(members: Sequence[Tensor]) -> Tensor:
    return pad_sequence(list(members), batch_first=True, padding_value=-1)


def _samples(groups: Groups, d: int) -> int:
    """The number of samples, which must do for the covariance of d units."""
    n = len(groups.values)
    if n < d + 1:
        raise ValueError(
            f"{'x and y' if groups.paired else 'activations'} must have at least {d + 1} samples "
            f"for the covariance of {d} units, got {n}: with fewer it is singular in any case"
        )
    return n


def _expected(n: int, d: int) -> float:
    """How far log|S| of n samples of d Gaussians is off on average, up to terms linear in d."""
    return float(torch.digamma((n - torch.arange(1, d + 1, device="cpu").double()) / 2).sum())


def _bias(n: int, members: Sequence[Tensor]) -> Tensor:
    sizes = [len(units) for units in members]
    alone = {d: _expected(n, d) for d in set(sizes)}
    together = {d: _expected(n, d) for d in {a + b for a, b in combinations(sizes, 2)}}
    rows = [
        [
            0.0 if i == j else (alone[a] + alone[b] - together[a + b]) / 2
            for j, b in enumerate(sizes)
        ]
        for i, a in enumerate(sizes)
    ]
    return torch.tensor(rows, dtype=torch.float64, device=members[0].device)
