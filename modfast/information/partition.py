"""Which units form a group? The two ways to call an estimator, (x, y) and (activations, partition).

Both end in one: samples of all units, and for each group which of them are its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeAlias

import torch
from torch import Tensor

from modfast import checks
from modfast.information.binning import matrix
from modfast.network.units import Units, read_groups

Partition: TypeAlias = Units


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
            ValueError: values that are not finite, empty or of different samples; see
                `read_groups`.
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
        return cls.of_modules(x, y, differentiable, argument="y", name="x")

    @classmethod
    def of_modules(
        cls,
        activations: Tensor | None,
        partition: Partition | None,
        differentiable: bool = False,
        least: int = 2,
        argument: str = "units",
        name: str = "activations",
    ) -> Groups:
        """The modules of a partition of the units of activations `[n, d]`; errors as in `of`."""
        x = _values(name, activations, differentiable)
        found = read_groups(argument, partition, x.shape[1], overlap=False, least=least)
        members = [units.to(x.device) for units in found]
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
