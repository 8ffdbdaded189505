"""How ablations change a site's activations, whose features stand in the last dimension here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

Activation = Callable[[Tensor], Tensor]


class Changes(Protocol):
    """Several ablations of one site."""

    kind: ClassVar[str]

    def __len__(self) -> int:
        """How many."""

    def numbers(self) -> Tensor:
        """What each is called: `[a]`."""

    def apply(self, site: Tensor, chosen: slice) -> Tensor:
        """The site `[..., d]` after each of the chosen ablations: `[a, ..., d]`."""

    def rank_one(
        self, site: Tensor, activation: Activation | None, weight: Tensor, chosen: slice
    ) -> tuple[Tensor, Tensor] | None:
        """Scales `[n, a]` and updates `[a, m]` of activation(site) weightᵀ; None if not rank 1.

        `site` is `[n, d]`, no activation stands for the identity.
        """


@dataclass(frozen=True)
class Units:
    """Each of `index` `[a]` set to its entry of `value` `[d]`."""

    kind: ClassVar[str] = "unit"
    index: Tensor
    value: Tensor
    in_order: bool = False
    """Whether `index` is 0 to d - 1."""

    def __len__(self) -> int:
        return len(self.index)

    def numbers(self) -> Tensor:
        """As `Changes.numbers`."""
        return self.index

    def apply(self, site: Tensor, chosen: slice) -> Tensor:
        """As `Changes.apply`."""
        index = self.index[chosen]
        mask = torch.arange(site.shape[-1], device=site.device) == index[:, None]
        return Groups(mask, self.value).apply(site, slice(None))

    def rank_one(
        self, site: Tensor, activation: Activation | None, weight: Tensor, chosen: slice
    ) -> tuple[Tensor, Tensor]:
        """As `Changes.rank_one`."""
        index = self.index[chosen]
        after, before = self.value, site
        if activation is not None:
            after, before = activation(after), activation(before)
        if self.in_order and len(index) == len(self.index):
            return after - before, weight.T  # nothing to pick
        return after[index] - before[:, index], weight.T[index]


@dataclass(frozen=True)
class Groups:
    """All units of each row of `mask` `[a, d]` set to their entries of `value` `[d]`."""

    kind: ClassVar[str] = "group"
    mask: Tensor
    value: Tensor

    def __len__(self) -> int:
        return len(self.mask)

    def numbers(self) -> Tensor:
        """As `Changes.numbers`."""
        return torch.arange(len(self), device="cpu")

    def apply(self, site: Tensor, chosen: slice) -> Tensor:
        """As `Changes.apply`."""
        mask = self.mask[chosen]
        mask = mask.reshape(len(mask), *[1] * (site.dim() - 1), mask.shape[1])
        return torch.where(mask, self.value, site)

    def rank_one(
        self, site: Tensor, activation: Activation | None, weight: Tensor, chosen: slice
    ) -> None:
        """As `Changes.rank_one`."""
        return None


@dataclass(frozen=True)
class Directions:
    """The part along each row of `vectors` `[a, d]`, of unit length, taken away."""

    kind: ClassVar[str] = "direction"
    vectors: Tensor

    def __len__(self) -> int:
        return len(self.vectors)

    def numbers(self) -> Tensor:
        """As `Changes.numbers`."""
        return torch.arange(len(self), device="cpu")

    def apply(self, site: Tensor, chosen: slice) -> Tensor:
        """As `Changes.apply`."""
        vectors = self.vectors[chosen]
        lengths = (site @ vectors.T).movedim(-1, 0)[..., None]
        return site - lengths * vectors.reshape(
            len(vectors), *[1] * (site.dim() - 1), vectors.shape[1]
        )

    def rank_one(
        self, site: Tensor, activation: Activation | None, weight: Tensor, chosen: slice
    ) -> tuple[Tensor, Tensor] | None:
        """As `Changes.rank_one`."""
        if activation is not None:  # it acts on each unit, of which a direction has many
            return None
        vectors = self.vectors[chosen]
        return site @ vectors.T, (vectors @ weight.T).neg_()
