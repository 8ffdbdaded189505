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
    positions: Tensor | None = None
    """Where in the sample the activation is, int64 `[d, k]`: which token or, row by row, pixel.

    The first of several that are equal. None where the site has no positions, of means, and in
    files of earlier releases."""
    tokens: Tensor | None = None
    """The tokens around it, int64 `[d, k, w]`, its own in the middle; -1 where there is none.

    Only where a `context` was asked for."""
    activations: Tensor | None = None
    """The unit's activation at each of these tokens, `[d, k, w]`; NaN where there is none."""
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
            ValueError: of another number of units or of samples each; only one has labels, or
                positions, or tokens; windows of another width.

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
        for name in _BESIDE:
            own, others = getattr(self, name), getattr(other, name)
            if (own is None) != (others is None):
                raise ValueError(f"other must have {name} just where this one has them")
            if own is not None and own.shape[2:] != others.shape[2:]:
                raise ValueError(
                    f"other must have {name} of shape {tuple(own.shape)}, got {tuple(others.shape)}"
                )
        return joined([self, other])

    def plot(
        self,
        inputs: Any = None,
        units: Sequence[int] | Tensor | None = None,
        n_samples: int = 10,
        tokenizer: Any = None,
    ) -> Figure:
        """The inputs that activate some units most: images in rows, or vectors as heat strips.

        Without inputs the tokens around each of the largest activations, as darkly colored as they
        activate the unit.

        Args:
            inputs: the data set's inputs, a tensor `[n, ...]`, or anything whose items are inputs
                or pairs of an input and a target. Not needed where `tokens` are held.
            units: by default the first eight that are not dead.
            n_samples: of each unit, at most k.
            tokenizer: says what tokens read: by `decode`, by `convert_ids_to_tokens`, or as a
                function of one; without it they are numbers.

        Raises:
            TypeError: no inputs where no tokens are held, a tokenizer of another kind.
            ValueError: units out of range; a tokenizer beside inputs.
        """
        held = (self.positions, self.tokens, self.activations)
        if inputs is None and all(each is not None for each in held):
            all_of: Any = (self.values, self.indices, *held, units, n_samples, tokenizer)
            return plots.top_contexts(*all_of)
        if tokenizer is not None:
            raise ValueError("tokenizer must be None where no tokens are drawn")
        return plots.top_inputs(self.indices, self.values, inputs, units, n_samples)


_BESIDE = ("labels", "positions", "tokens", "activations")


def taken(values: Tensor, places: Tensor) -> Tensor:
    """Of each unit's values `[d, k, ...]` those at its places `[d, m]`: `[d, m, ...]`."""
    return values[torch.arange(len(places), device=places.device)[:, None], places]


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
    values = values[:, :k].contiguous()
    more = {}
    for name in _BESIDE:
        if getattr(parts[0], name) is not None:
            every = torch.cat([getattr(part, name) for part in parts], 1)
            more[name] = taken(every, order.gather(1, best))
    return TopActivations(indices.gather(1, best), values, **more, backend=parts[0].backend)
