"""How ablations change a site's activations, whose features stand in the last dimension here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor

Activation = Callable[[Tensor], Tensor]
Pick = Callable[[Tensor], Tensor]
"""The rows `[n', k]` of values `[n, ..., k]`."""


class Changes(Protocol):
    """Several ablations of one site."""

    @property
    def kind(self) -> str:
        """What each changes."""

    def __len__(self) -> int:
        """How many."""

    def numbers(self) -> Tensor:
        """What each is called: `[a]`."""

    def apply(self, site: Tensor, chosen: slice) -> Tensor:
        """The site `[..., d]` after each of the chosen ablations: `[a, ..., d]`."""

    def of_rows(self, pick: Pick) -> Changes:
        """The same for rows of the site, `[n, d]`."""

    def rank_one(
        self, site: Tensor, activation: Activation | None, weight: Tensor, chosen: slice
    ) -> tuple[Tensor, Tensor] | None:
        """Scales `[n, a]` and updates `[a, m]` of activation(site) weightᵀ; None if not rank 1.

        `site` is `[n, d]`, no activation stands for the identity.
        """


@dataclass(frozen=True)
class Units:
    """Each of `index` `[a]` set to its entries of `value`."""

    kind: ClassVar[str] = "unit"
    index: Tensor
    value: Tensor
    """`[d]`, or for each sample and position `[n, ..., d]`."""
    in_order: bool = False
    """Whether `index` is 0 to d - 1."""
    own: Tensor | None = None
    """In place of `value`, `[a]`."""
    where: Tensor | None = None
    """With `own`: at which samples and positions, `[n, ..., 1]`."""

    def __len__(self) -> int:
        return len(self.index)

    def numbers(self) -> Tensor:
        """As `Changes.numbers`."""
        return self.index

    def apply(self, site: Tensor, chosen: slice) -> Tensor:
        """As `Changes.apply`."""
        index = self.index[chosen]
        mask = torch.arange(site.shape[-1], device=site.device) == index[:, None]
        own = None if self.own is None else self.own[chosen, None].expand(mask.shape)
        return Groups(mask, self.value, own, self.where).apply(site, slice(None))

    def of_rows(self, pick: Pick) -> Units:
        """As `Changes.of_rows`."""
        value = self.value if self.value.dim() == 1 else pick(self.value)
        return replace(self, value=value, where=None if self.where is None else pick(self.where))

    def rank_one(
        self, site: Tensor, activation: Activation | None, weight: Tensor, chosen: slice
    ) -> tuple[Tensor, Tensor]:
        """As `Changes.rank_one`."""
        index = self.index[chosen]
        after, before = self.value, site
        if self.own is not None:
            after = self.own[chosen]
        if activation is not None:
            after, before = activation(after), activation(before)
        if self.own is not None:
            change = after - before[:, index]
            return change if self.where is None else change * self.where, weight.T[index]
        if self.in_order and len(index) == len(self.index):
            return after - before, weight.T  # nothing to pick
        return after[..., index] - before[:, index], weight.T[index]


@dataclass(frozen=True)
class Groups:
    """All units of each row of `mask` `[a, d]` set to their entries of `value`."""

    kind: ClassVar[str] = "group"
    mask: Tensor
    value: Tensor
    """`[d]`, or for each sample and position `[n, ..., d]`."""
    own: Tensor | None = None
    """In place of `value`, for each group `[a, d]`."""
    where: Tensor | None = None
    """With `own`: at which samples and positions, `[n, ..., 1]`."""

    def __len__(self) -> int:
        return len(self.mask)

    def numbers(self) -> Tensor:
        """As `Changes.numbers`."""
        return torch.arange(len(self), device="cpu")

    def apply(self, site: Tensor, chosen: slice) -> Tensor:
        """As `Changes.apply`."""
        mask = self.mask[chosen]
        shape = len(mask), *[1] * (site.dim() - 1), mask.shape[1]
        mask = mask.reshape(shape)
        value = self.value if self.own is None else self.own[chosen].reshape(shape)
        return torch.where(mask if self.where is None else mask & self.where, value, site)

    def of_rows(self, pick: Pick) -> Groups:
        """As `Changes.of_rows`."""
        value = self.value if self.value.dim() == 1 else pick(self.value)
        return replace(self, value=value, where=None if self.where is None else pick(self.where))

    def rank_one(
        self, site: Tensor, activation: Activation | None, weight: Tensor, chosen: slice
    ) -> None:
        """As `Changes.rank_one`."""
        return None


@dataclass(frozen=True)
class Directions:
    """The part along each row of `vectors` `[a, d]`, of unit length, set to another length."""

    kind: ClassVar[str] = "direction"
    vectors: Tensor
    value: Tensor | None = None
    """Activations `[d]`, or for each sample and position `[n, ..., d]`, whose parts are taken."""
    lengths: Tensor | float = 0.0
    """Without `value`: the new lengths, one or `[a]`."""
    where: Tensor | None = None
    """At which samples and positions, `[n, ..., 1]`; without, at all."""

    def __len__(self) -> int:
        return len(self.vectors)

    def numbers(self) -> Tensor:
        """As `Changes.numbers`."""
        return torch.arange(len(self), device="cpu")

    def _excess(self, site: Tensor, chosen: slice) -> Tensor:
        """How much of each direction is taken away: `[..., a]`."""
        vectors = self.vectors[chosen]
        found = (site if self.value is None else site - self.value) @ vectors.T
        if self.value is None and isinstance(self.lengths, Tensor):
            found = found - self.lengths[chosen]
        elif self.value is None and self.lengths != 0:
            found = found - self.lengths
        return found if self.where is None else found * self.where

    def apply(self, site: Tensor, chosen: slice) -> Tensor:
        """As `Changes.apply`."""
        vectors = self.vectors[chosen]
        excess = self._excess(site, chosen).movedim(-1, 0)[..., None]
        return site - excess * vectors.reshape(
            len(vectors), *[1] * (site.dim() - 1), vectors.shape[1]
        )

    def of_rows(self, pick: Pick) -> Directions:
        """As `Changes.of_rows`."""
        value = self.value
        if value is not None and value.dim() > 1:
            value = pick(value)
        return replace(self, value=value, where=None if self.where is None else pick(self.where))

    def rank_one(
        self, site: Tensor, activation: Activation | None, weight: Tensor, chosen: slice
    ) -> tuple[Tensor, Tensor] | None:
        """As `Changes.rank_one`."""
        if activation is not None:  # it acts on each unit, of which a direction has many
            return None
        return self._excess(site, chosen), (self.vectors[chosen] @ weight.T).neg_()


@dataclass(frozen=True)
class AtEach:
    """Each of several changes at each position apart: those of the first change come first."""

    inner: Changes
    position: Tensor
    """Which position each is, `[1, ..., 1]` as the site."""
    n_positions: int

    @property
    def kind(self) -> str:
        """What is changed."""
        return self.inner.kind

    def __len__(self) -> int:
        return len(self.inner) * self.n_positions

    def numbers(self) -> Tensor:
        """As `Changes.numbers`."""
        return self.inner.numbers().repeat_interleave(self.n_positions)

    def positions(self) -> Tensor:
        """Where each is made: `[a]`."""
        return torch.arange(self.n_positions, device="cpu").repeat(len(self.inner))

    def _split(self, chosen: slice, device: torch.device) -> tuple[slice, Tensor, Tensor]:
        """The changes that some are of, and for each which of these it is, and at what position."""
        at = torch.arange(len(self), device=device)[chosen]
        first, last = int(at[0]) // self.n_positions, int(at[-1]) // self.n_positions
        return slice(first, last + 1), at // self.n_positions - first, at % self.n_positions

    def apply(self, site: Tensor, chosen: slice) -> Tensor:
        """As `Changes.apply`."""
        inner, which, where = self._split(chosen, site.device)
        here = self.position == where.reshape(-1, *[1] * site.dim())
        return torch.where(here, self.inner.apply(site, inner)[which], site)

    def of_rows(self, pick: Pick) -> AtEach:
        """As `Changes.of_rows`."""
        return AtEach(self.inner.of_rows(pick), pick(self.position), self.n_positions)

    def rank_one(
        self, site: Tensor, activation: Activation | None, weight: Tensor, chosen: slice
    ) -> tuple[Tensor, Tensor] | None:
        """As `Changes.rank_one`."""
        inner, which, where = self._split(chosen, site.device)
        found = self.inner.rank_one(site, activation, weight, inner)
        if found is None:
            return None
        scales, updates = found
        return scales[:, which] * (self.position == where), updates[which]
