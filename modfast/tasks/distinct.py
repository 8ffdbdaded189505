"""Which gradients occur, and how often?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from modfast import checks
from modfast.precision import precise
from modfast.results import Result

# Projections without a gap after which rows count as one group.
_PATIENCE = 4


@dataclass(frozen=True, eq=False, repr=False)
class DistinctGradients(Result):
    """k different gradient vectors of d features, the most frequent first; on their device."""

    directions: Tensor
    """Of unit length, `[k, d]`; of the zero gradient, zeros."""
    norms: Tensor
    """Their lengths: `[k]`."""
    counts: Tensor
    """How many samples have each: int64 `[k]`."""

    @property
    def mean(self) -> Tensor:
        """The mean gradient over the samples: float64 `[d]`."""
        shares = self.counts.double() / self.counts.sum()
        return (shares * self.norms.double()) @ self.directions.double()


@precise
def distinct_gradients(
    gradients: Tensor, regions: Tensor | None = None, tolerance: float | None = None
) -> DistinctGradients:
    """The different gradient vectors among samples, and how many samples have each.

    With the linear regions that `task_gradients` finds for ReLU networks, samples of one region
    count as equal and each region is looked at once, so that float noise splits none; regions with
    equal gradients (by units that have no effect) are then one. Otherwise all rows are compared.

    Rows that lie within the tolerance, or a chain of rows that do, are never told apart; rows
    farther apart than some sqrt(d) tolerances are. They are separated by gaps in their projections
    on random directions, in n log n steps.

    Args:
        gradients: `[n, d]`, finite.
        regions: integers `[n]`; rows of one region must be equal to within the tolerance.
        tolerance: a distance, as a share of the longest gradient; by default eps^(3/4), 6e-6 in
            float32 and 2e-12 in float64.

    Raises:
        TypeError: no floating tensor; regions that are no integers; a tolerance that is no number.
        ValueError: another number of dimensions or regions, no rows, values that are not finite,
            rows of one region that differ, a tolerance that is negative or not finite.

    Source: N4.

    Example:
        >>> import torch, modfast
        >>> rows = torch.tensor([[3.0, 4.0], [0.0, 1.0], [3.0, 4.0]])
        >>> found = modfast.distinct_gradients(rows)
        >>> found.directions.tolist(), found.norms.tolist(), found.counts.tolist()
        ([[0.6000000238418579, 0.800000011920929], [0.0, 1.0]], [5.0, 1.0], [2, 1])
    """
    check_rows("gradients", gradients)
    gradients = gradients.detach()
    if tolerance is None:
        tolerance = torch.finfo(gradients.dtype).eps ** 0.75
    elif checks.finite_number("tolerance", tolerance) < 0:
        raise ValueError(f"tolerance must be at least 0, got {tolerance}")
    allowed = tolerance * float(_lengths(gradients).max())
    labels = torch.arange(len(gradients), device=gradients.device)
    if regions is not None:
        labels = _check_regions(gradients, regions, allowed)
    first = _first_of_each(labels)
    merged = _group(gradients[first].double(), allowed)
    first, labels = first[_first_of_each(merged)], merged[labels]
    counts = torch.bincount(labels)
    # The most frequent first, then the one seen first.
    order = torch.argsort(first)
    order = order[torch.argsort(counts[order], descending=True, stable=True)]
    rows = gradients[first[order]]
    norms = _lengths(rows)
    directions = rows / torch.where(norms > 0, norms, 1.0)[:, None]
    return DistinctGradients(directions.to(rows), norms.to(rows), counts[order])


def check_rows(argument: str, rows: Tensor, least: int = 1) -> None:
    """Refuses what is no finite floating matrix with at least so many rows, and a column."""
    checks.floating(argument, rows)
    if rows.dim() != 2 or rows.shape[0] < least or rows.shape[1] == 0:
        raise ValueError(
            f"{argument} must have shape [n, d] with n at least {least} and d at least 1, "
            f"got {list(rows.shape)}"
        )
    checks.finite(argument, rows)


def holds_equal(gradients: Tensor, regions: Tensor) -> bool:
    """Whether rows of one region `[n]` are equal, but for the default tolerance."""
    labels = regions.unique(return_inverse=True)[1]
    apart = _lengths(gradients - gradients[_first_of_each(labels)[labels]])
    allowed = torch.finfo(gradients.dtype).eps ** 0.75 * _lengths(gradients).max()
    return bool(apart.max() <= allowed)


def _check_regions(gradients: Tensor, regions: Tensor, allowed: float) -> Tensor:
    """The regions numbered from 0."""
    checks.dense("regions", regions)
    regions = checks.integers("regions", regions)
    if regions.shape != gradients.shape[:1]:
        raise ValueError(
            f"regions must have shape [{len(gradients)}], one for each gradient, "
            f"got {list(regions.shape)}"
        )
    labels: Tensor = regions.to(gradients.device).unique(return_inverse=True)[1]
    apart = _lengths(gradients - gradients[_first_of_each(labels)[labels]])
    if apart.max() > allowed:
        worst = int(apart.argmax())
        raise ValueError(
            f"regions must hold equal gradients, but row {worst} differs by {float(apart[worst])} "
            f"from the first of region {int(regions[worst])}"
        )
    return labels


def _lengths(rows: Tensor) -> Tensor:
    """Of each row, in float64, where the squares of float32 neither over- nor underflow: `[n]`."""
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return lengths


def _first_of_each(labels: Tensor) -> Tensor:
    """The first row of each label 0, 1, ...: `[k]`."""
    rows = torch.arange(len(labels), device=labels.device)
    first = rows.new_full((int(labels.max()) + 1,), len(labels))
    return first.scatter_reduce_(0, labels, rows, "amin")


def _group(rows: Tensor, allowed: float) -> Tensor:
    """Numbers rows so that those with no gap beyond `allowed` between them are one group."""
    generator = torch.Generator("cpu").manual_seed(0)
    labels = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    n_groups, unchanged = 1, 0
    while unchanged < _PATIENCE and n_groups < len(rows):
        direction = torch.randn(
            rows.shape[1], generator=generator, dtype=torch.float64, device="cpu"
        )
        # No projection on a unit vector is longer than what is projected.
        values = rows @ (direction / direction.norm()).to(rows.device)
        order = values.argsort()
        order = order[labels[order].argsort(stable=True)]
        values, before = values[order], labels[order]
        starts = (values.diff() > allowed) | (before.diff() != 0)
        labels = torch.empty_like(labels)
        labels[order] = torch.cat([starts.new_zeros(1), starts]).cumsum(0)
        found = int(starts.sum()) + 1
        unchanged = unchanged + 1 if found == n_groups else 0
        n_groups = found
    return labels
