"""Which units form a group? The two ways to call an estimator, (x, y) and (activations, partition).

Both end in one: samples of all units, and for each group which of them are its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from operator import index
from typing import TypeAlias

import torch
from torch import Tensor

from modfast import checks
from modfast.clusters.labels import checked_labels, labels_of_lists, labels_of_masks
from modfast.information.binning import matrix

Partition: TypeAlias = Tensor | Sequence[int] | Sequence[Sequence[int]]


@dataclass(frozen=True)
class Groups:
    """Samples of all units, and the groups among them."""

    values: Tensor
    """`[n, d]`, finite."""
    members: list[Tensor]
    """Of each group, the indices of its units."""
    names: list[str]
    """What an error message calls each group."""
    paired: bool
    """Whether the groups are the x and y of a call, whose result is one number."""

    @classmethod
    def of(
        cls, x: Tensor | None, y: Tensor | Partition | None, differentiable: bool = False
    ) -> Groups:
        """The groups x `[n, dx]` and y `[n, dy]`, or those of a partition y of the units of x.

        Raises:
            TypeError: values that do not float, a partition of another kind.
            ValueError: values that are not finite, empty or of different samples; see `modules`.
        """
        if isinstance(y, Tensor) and y.is_floating_point():
            x, y = _values("x", x, differentiable), _values("y", y, differentiable)
            if len(x) != len(y):
                raise ValueError(
                    f"x and y must have the same samples, got {len(x)} and {len(y)} rows (a "
                    "partition must hold integers or booleans)"
                )
            if x.device != y.device:
                raise ValueError(f"x and y must be on one device, got {x.device} and {y.device}")
            units = torch.arange(x.shape[1] + y.shape[1], device=x.device)
            members = [units[: x.shape[1]], units[x.shape[1] :]]
            return cls(torch.cat([x, y], dim=1), members, ["x", "y"], True)
        return cls.of_modules(x, y, differentiable)

    @classmethod
    def of_modules(
        cls,
        activations: Tensor | None,
        partition: Partition | None,
        differentiable: bool = False,
        least: int = 2,
    ) -> Groups:
        """The modules of a partition of the units of activations `[n, d]`; errors as in `of`."""
        x = _values("activations", activations, differentiable)
        members = [units.to(x.device) for units in modules(partition, x.shape[1], least)]
        return cls(x, members, module_names(members), False)

    def each(self) -> list[Tensor]:
        """The values of each group."""
        return [self.values.index_select(1, units) for units in self.members]

    def result(self, matrix: Tensor) -> Tensor:
        """What a call returns: the matrix of all pairs of groups, or x's and y's entry."""
        return matrix[0, 1] if self.paired else matrix

    def pairs(self, information: Callable[[int, int], Tensor]) -> Tensor:
        """The result of a function of two groups, by their numbers.

        A group of continuous values tells all about itself: the diagonal is infinite.
        """
        m = len(self.members)
        found = self.values.new_full((m, m), torch.inf, dtype=torch.float64)
        for i, j in combinations(range(m), 2):
            found[i, j] = found[j, i] = information(i, j)
        return self.result(found)


def modules(partition: Partition | None, d: int, least: int = 2) -> list[Tensor]:
    """The units of each module of a partition of d units, in ascending order.

    Args:
        partition: a boolean or 0-1 matrix `[n_modules, d]`; labels `[d]`, -1 for "in no module"; or
            a list with a list of unit indices for each module.
        d: number of units.
        least: how many modules there must be.

    Raises:
        TypeError: neither of them.
        ValueError: another number of units, modules that overlap or have no units, too few modules.
    """
    labels, count = _labels(partition, d)
    if len(labels) != d:
        raise ValueError(f"partition must be of the {d} units there are, got {len(labels)}")
    if count < least:
        raise ValueError(f"partition must have at least {least} modules, got {count}")
    sizes = labels[labels >= 0].bincount(minlength=count)
    if not sizes.all():
        raise ValueError(
            f"partition must have units in each module, got none in module {int(sizes.argmin())}"
        )
    return [(labels == module).nonzero()[:, 0] for module in range(count)]


def module_names(members: Sequence[Tensor]) -> list[str]:
    """What an error message calls each module."""
    return [f"module {number} of partition" for number in range(len(members))]


def standardized(values: Tensor) -> Tensor:
    """Values `[n, d]` in float64 with mean 0 and variance 1 in each feature; constants are 0."""
    values = within_one(values)
    low, high = values.detach().aminmax(dim=0)
    centered = values - values.mean(0)
    # A constant's mean may be rounded, and leave of it what is no variation.
    spread = torch.where(low < high, centered.square().mean(0), 1).sqrt()
    return torch.where(low < high, centered / spread, 0)


def within_one(values: Tensor) -> Tensor:
    """Values `[n, d]` in float64, each feature over its largest: squares then stay in range."""
    top = values.detach().abs().amax(0).double()
    return values.double() / torch.where(top > 0, top, 1)


def _values(argument: str, values: Tensor | None, differentiable: bool) -> Tensor:
    if isinstance(values, Tensor) and not values.is_floating_point():
        raise TypeError(f"{argument} must have floating values, got {values.dtype}")
    found = matrix(argument, values, differentiable)  # type: ignore[arg-type]
    checks.finite(argument, found)
    return found


def _labels(partition: Partition | None, d: int) -> tuple[Tensor, int]:
    """Labels, -1 for "in no module", and how many modules there are."""
    if hasattr(partition, "__array__"):
        partition = torch.as_tensor(partition).cpu()
        if partition.dim() != 2:
            return _count(checked_labels("partition", partition))
        if not ((partition == 0) | (partition == 1)).all():
            raise ValueError("partition must be 0 or 1 everywhere as a matrix, got other values")
        return labels_of_masks("partition", partition.bool()), len(partition)
    if not isinstance(partition, Sequence):
        raise TypeError(
            "partition must be a matrix [n_modules, d], labels [d] or a list of unit indices for "
            f"each module, got {type(partition).__name__}"
        )
    if not any(isinstance(units, Iterable) for units in partition):
        return _count(checked_labels("partition", torch.as_tensor(partition)))
    try:
        lists = [[index(unit) for unit in units] for units in partition]  # type: ignore[union-attr]
    except TypeError:
        raise TypeError(
            f"partition must hold lists of integer unit indices, got {partition!r}"
        ) from None
    return labels_of_lists("partition", lists, d)


def _count(labels: Tensor) -> tuple[Tensor, int]:
    return labels, int(labels.max()) + 1 if len(labels) else 0
