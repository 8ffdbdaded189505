"""How a layer connects in-units to out-units, without its dense matrix.

A convolution's rows differ by in-channel and by the kernel taps that reach an output from their
position, and its columns by out-channel and by the kinds of positions that their taps come from.
Both are so for height and width apart, so that each kind is computed once and counted as often as
it occurs; `modfast.ops.wiring_sums` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from modfast.ops import wiring_sums

Norm: TypeAlias = Literal["linear", "softmax", "sigmoid"]

MAX_LOGIT = 600.0
"""Of weights with softmax, in size: sums of exp(w) and w exp(w) fit a float64, and are not 0."""


@dataclass(frozen=True, eq=False)
class Axis:
    """Which positions a kernel connects along one dimension, by kinds of positions.

    Every pair of an in- and an out-position is connected by at most one tap. With C kinds of
    in-positions, O kinds of out-positions and k taps:
    """

    n_in: Tensor
    """float64 `[C]`: how many in-positions are of each kind."""
    sources: Tensor
    """int64 `[k, O]`: the kind of in-position that a tap comes from; C where there is none."""
    n_out: Tensor
    """float64 `[O]`: how many out-positions are of each kind."""
    sizes: tuple[int, int]
    """In- and out-positions."""

    @classmethod
    def of_table(cls, table: Tensor, n_in: int) -> Axis:
        """Of the in-position that each out-position's taps come from, `[n_out, k]`, or -1."""
        valid = table >= 0
        reached = torch.zeros(n_in, table.shape[1], dtype=torch.bool, device="cpu")
        reached[table[valid], valid.nonzero()[:, 1]] = True
        _, kind, n_of_kind = reached.unique(dim=0, return_inverse=True, return_counts=True)
        kinds = torch.where(valid, kind[table], len(n_of_kind))
        sources, n_of_source = kinds.unique(dim=0, return_counts=True)
        return cls(
            n_of_kind.double(),
            sources.T.contiguous(),
            n_of_source.double(),
            (n_in, len(table)),
        )


@lru_cache(maxsize=512)
def convolution_axis(
    n_in: int, n_out: int, kernel: int, stride: int, padding: int, dilation: int, transposed: bool
) -> Axis:
    """The axis of a (transposed) convolution that gives `n_out` positions of `n_in`."""
    near, far = (n_in, n_out) if transposed else (n_out, n_in)
    start = torch.arange(near, device="cpu")[:, None] * stride - padding
    table = start + torch.arange(kernel, device="cpu") * dilation
    table[(table < 0) | (table >= far)] = -1
    if not transposed:
        return Axis.of_table(table, n_in)
    back = torch.full((n_out, kernel), -1, device="cpu")
    position, tap = (table >= 0).nonzero(as_tuple=True)
    back[table[position, tap], tap] = position
    return Axis.of_table(back, n_in)


@lru_cache(maxsize=512)
def pooling_axis(
    n_in: int, n_out: int, kernel: int, stride: int, padding: int, divide: str
) -> tuple[Axis, Tensor]:
    """The axis of an average pooling, and the share of the sum that each tap adds.

    Args:
        n_in: in-positions.
        n_out: out-positions.
        kernel: positions in a window.
        stride: between windows.
        padding: on each side.
        divide: by the window's size with padding ("padded") or without ("valid"), or not at all.
    """
    start = torch.arange(n_out, device="cpu") * stride - padding
    end = (start + kernel).clamp(max=n_in + padding)
    if divide == "padded":
        size = end - start
    elif divide == "valid":
        size = end.clamp(max=n_in) - start.clamp(min=0)
    else:
        size = torch.ones_like(start)
    # Windows of different sizes weigh differently, and so have their own taps.
    sizes, which = size.unique(return_inverse=True)
    table = torch.full((n_out, len(sizes), kernel), -1, device="cpu")
    inside = start[:, None] + torch.arange(kernel, device="cpu")
    table[torch.arange(n_out, device="cpu"), which] = inside.where(
        (inside >= 0) & (inside < n_in), -1
    )
    return Axis.of_table(table.flatten(1), n_in), (1 / sizes.double()).repeat_interleave(kernel)


@dataclass(frozen=True, eq=False)
class Wiring:
    """How a layer connects in-units to out-units.

    Besides what is spelled out, the whole may be repeated: `blocks` times for other in- and
    out-units, and within a block with `ins` copies of each in-unit and `outs` of each out-unit that
    have the same weights.
    """

    weight: Tensor
    """`[groups, outputs, inputs, taps, taps]`, channels of each group by channels by kernel."""
    rows: Axis
    columns: Axis
    scale: Tensor | None = None
    """`[groups, outputs]`: multiplies the weights."""
    blocks: int = 1
    ins: int = 1
    outs: int = 1

    @property
    def shape(self) -> tuple[int, int]:
        """In-units and out-units."""
        groups, outputs, inputs = self.weight.shape[:3]
        (rows_in, rows_out), (columns_in, columns_out) = self.rows.sizes, self.columns.sizes
        n_in = self.ins * inputs * rows_in * columns_in
        n_out = self.outs * outputs * rows_out * columns_out
        return self.blocks * groups * n_in, self.blocks * groups * n_out

    def sums(self, norm: Norm) -> Tensor:
        """Sum of H_i, of c_j and of c_j ln c_j: float64 `[3]`, in nats."""
        kinds = _kinds(self.rows, self.columns, self.weight.device)
        weight = self.weight.flatten(3)
        return wiring_sums(weight, self.scale, *kinds, norm, self.blocks, self.ins, self.outs)


@lru_cache(maxsize=512)
def _kinds(rows: Axis, columns: Axis, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Two axes together: sources `[taps, O]`, n_in `[C]` and n_out `[O]` of pairs."""
    n_in = torch.outer(rows.n_in, columns.n_in).flatten()
    by_row, by_column = rows.sources[:, None, :, None], columns.sources[None, :, None, :]
    nowhere = (by_row == len(rows.n_in)) | (by_column == len(columns.n_in))
    sources = (by_row * len(columns.n_in) + by_column).masked_fill(nowhere, len(n_in))
    n_out = torch.outer(rows.n_out, columns.n_out).flatten()
    return sources.flatten(2).flatten(0, 1).to(device), n_in.to(device), n_out.to(device)
