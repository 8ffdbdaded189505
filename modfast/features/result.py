"""The samples that activate each unit most, and how results for parts of a data set are joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modfast import plots
from modfast.results import Result

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True, eq=False, repr=False)
class TopActivations(Result):
    """The k samples of the largest activation for each of the d units of a site, strongest first.

    Equal activations stand in the order of their indices. All tensors are on the CPU.

    Example:
        >>> import torch
        >>> top = TopActivations(torch.tensor([[4, 0]]), torch.tensor([[2.0, 0.0]]))
        >>> top.dead
        tensor([False])
    """

    indices: Tensor
    """Of the samples in the data set, int64 `[d, k]`."""
    values: Tensor
    """Their activations, float32 or float64 `[d, k]`."""
    labels: Tensor | None = None
    """Their targets, `[d, k]`, where the data hold any."""
    backend: str = ""
    """Which way it was computed."""

    @property
    def dead(self) -> Tensor:
        """Which units no sample activates above 0, as a ReLU's that is always off: bool `[d]`.

        Before a ReLU these are the units that it will always turn off. The samples of a dead unit
        tell nothing: among equal values they are the first of the data set.
        """
        return self.values[:, 0] <= 0

    def merge(self, other: TopActivations) -> TopActivations:
        """The result for the samples of both, which are parts of one data set.

        A sample that both have seen counts once.

        Raises:
            TypeError: not a `TopActivations`.
            ValueError: of another number of units or of samples each; only one has labels.

        Example:
            >>> import torch
            >>> a = TopActivations(torch.tensor([[0]]), torch.tensor([[2.0]]))
            >>> a.merge(TopActivations(torch.tensor([[7]]), torch.tensor([[3.0]]))).indices
            tensor([[7]])
        """
        if not isinstance(other, TopActivations):
            raise TypeError(f"other must be a TopActivations, got {type(other).__name__}")
        if other.values.shape != self.values.shape:
            raise ValueError(
                f"other must have as many units and samples of each, {tuple(self.values.shape)}, "
                f"got {tuple(other.values.shape)}"
            )
        if (self.labels is None) != (other.labels is None):
            raise ValueError("other must have labels just where this one has them")
        return joined([self, other])

    def plot(
        self, inputs: Any, units: Sequence[int] | Tensor | None = None, n_samples: int = 10
    ) -> Figure:
        """The inputs that activate some units most: images in rows, or vectors as heat strips.

        Args:
            inputs: the data set's inputs, a tensor `[n, ...]`, or anything whose items are inputs
                or pairs of an input and a target.
            units: by default the first eight that are not dead.
            n_samples: of each unit, at most k.
        """
        return plots.top_inputs(self.indices, self.values, inputs, units, n_samples)


def joined(parts: Sequence[TopActivations]) -> TopActivations:
    """The largest of several results for parts of one data set; index -1 is an empty place."""
    k = parts[0].values.shape[1]
    indices = torch.cat([part.indices for part in parts], 1)
    values = torch.cat([part.values for part in parts], 1)
    order = indices.argsort(dim=1, stable=True)
    indices, values = indices.gather(1, order), values.gather(1, order)
    again = torch.zeros_like(indices, dtype=torch.bool)
    again[:, 1:] = indices[:, 1:] == indices[:, :-1]
    indices, values = indices.masked_fill(again, -1), values.masked_fill(again, -torch.inf)
    # Stable, so that equal values stay in the order of their indices.
    values, best = values.sort(dim=1, descending=True, stable=True)
    best = best[:, :k]
    labels = None
    if parts[0].labels is not None:
        every = torch.cat([part.labels for part in parts if part.labels is not None], 1)
        labels = every.gather(1, order.gather(1, best))
    values = values[:, :k].contiguous()
    return TopActivations(indices.gather(1, best), values, labels, parts[0].backend)
