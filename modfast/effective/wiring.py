"""The sums that effective information needs, without a layer's dense matrix.

A layer is a matrix of in-units by out-units. A connection of weight w counts as f(w), an absent one
as the constant z = f(0), and row i is divided by its sum R_i. With f and f ln f of the weights, and
Q = 1 / R:

    R_i = sum over i's connections of f(w) + z * (absent connections of i)
    H_i = ln R_i - (sum over i's connections of f ln f + z ln z * (absent connections of i)) / R_i
    c_j = sum over j's connections of f(w_ij) Q_i + z * (sum of Q_i over in-units not connected)

A convolution's rows differ by in-channel and by the kernel taps that reach an output from their
position, and its columns by out-channel and by the kinds of positions that their taps come from.
Both are so for height and width apart, so that each kind is computed once and counted as often as
it occurs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

Norm: TypeAlias = Literal["linear", "softmax", "sigmoid"]

ABSENT: dict[Norm, float] = {"linear": 0.0, "softmax": 1.0, "sigmoid": 0.5}
"""What an absent connection counts as: ReLU, exp and sigmoid of 0."""
MAX_LOGIT = 600.0
"""Largest weight with softmax: the sums of exp(w) and of w exp(w) still fit a float64."""

_CELLS = 2**19
"""Numbers held at a time for each of a few temporaries: about what a processor's cache holds."""


@dataclass(frozen=True, eq=False)
class Axis:
    """Which positions a kernel connects along one dimension, by kinds of positions.

    Every pair of an in- and an out-position is connected by at most one tap. With C kinds of
    in-positions, O kinds of out-positions and k taps:
    """

    taps: Tensor
    """float64 `[C, k]`: 1 where a tap leads from a position of the kind to an output."""
    n_in: Tensor
    """float64 `[C]`: how many in-positions are of each kind."""
    sources: Tensor
    """int64 `[k, O]`: the kind of in-position that a tap comes from; C where there is none."""
    n_out: Tensor
    """float64 `[O]`: how many out-positions are of each kind."""

    @classmethod
    def of_table(cls, table: Tensor, n_in: int) -> Axis:
        """Of the in-position that each out-position's taps come from, `[n_out, k]`, or -1."""
        valid = table >= 0
        reached = torch.zeros(n_in, table.shape[1], dtype=torch.bool)
        reached[table[valid], valid.nonzero()[:, 1]] = True
        taps, kind, n_of_kind = reached.unique(dim=0, return_inverse=True, return_counts=True)
        kinds = torch.where(valid, kind[table], len(taps))
        sources, n_of_source = kinds.unique(dim=0, return_counts=True)
        return cls(taps.double(), n_of_kind.double(), sources.T.contiguous(), n_of_source.double())

    def touched(self) -> Tensor:
        """How many in-positions of each kind an out-position is connected to: `[O, C]`."""
        kinds = functional.one_hot(self.sources, len(self.n_in) + 1)
        return kinds.sum(0)[:, :-1].double()


@lru_cache(maxsize=512)
def convolution_axis(
    n_in: int, n_out: int, kernel: int, stride: int, padding: int, dilation: int, transposed: bool
) -> Axis:
    """The axis of a (transposed) convolution that gives `n_out` positions of `n_in`."""
    near, far = (n_in, n_out) if transposed else (n_out, n_in)
    start = torch.arange(near)[:, None] * stride - padding
    table = start + torch.arange(kernel) * dilation
    table[(table < 0) | (table >= far)] = -1
    if not transposed:
        return Axis.of_table(table, n_in)
    back = torch.full((n_out, kernel), -1)
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
    start = torch.arange(n_out) * stride - padding
    end = (start + kernel).clamp(max=n_in + padding)
    if divide == "padded":
        size = end - start
    elif divide == "valid":
        size = end.clamp(max=n_in) - start.clamp(min=0)
    else:
        size = torch.ones_like(start)
    # Windows of different sizes weigh differently, and so have their own taps.
    sizes, which = size.unique(return_inverse=True)
    table = torch.full((n_out, len(sizes), kernel), -1)
    inside = start[:, None] + torch.arange(kernel)
    table[torch.arange(n_out), which] = inside.where((inside >= 0) & (inside < n_in), -1)
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
        n_in = self.rows.n_in.sum() * self.columns.n_in.sum()
        n_out = self.rows.n_out.sum() * self.columns.n_out.sum()
        blocks = self.blocks * groups
        return blocks * self.ins * inputs * int(n_in), blocks * self.outs * outputs * int(n_out)

    def sums(self, norm: Norm) -> Tensor:
        """Sum of H_i, of c_j and of c_j ln c_j: float64 `[3]`, in nats."""
        device, z = self.weight.device, ABSENT[norm]
        groups, outputs, inputs, *kernel = self.weight.shape
        _, all_outputs = self.shape
        across = _Grid(self.rows, self.columns, device)
        absent = all_outputs - outputs * self.outs * across.n_taps  # of a row
        n_rows = (self.blocks * self.ins) * across.n_in

        entropy = torch.zeros((), dtype=torch.float64, device=device)
        column = entropy.new_zeros(groups, outputs, across.n_out.numel())
        q_sum = entropy.new_zeros(groups, *across.n_in.shape)
        for group, part in self._parts():
            f, f_log_f = _transform(self._weights(group, part), norm)
            row = self.outs * across.rows_of(f.sum(1))
            terms = self.outs * across.rows_of(f_log_f.sum(1))
            if z:
                row += z * absent
                terms += z * math.log(z) * absent
            # With "linear" a row may be all zeros. It stays so, and has no entropy.
            q = row.reciprocal().where(row > 0, 0.0)
            row_entropy = row.log().sub_(terms.mul_(q)).where(row > 0, 0.0)
            entropy += (row_entropy * n_rows).sum()
            q_sum[group] += q.sum(1)
            f, q = f.flatten(2), across.columns_of(q).flatten(1, 3)
            column[group].baddbmm_(f, q)
        column *= self.ins
        if z:
            column += z * self._absent(across, q_sum)[:, None]
        return torch.stack([entropy, *_column_sums(column, across, self.blocks * self.outs)])

    def _parts(self) -> list[tuple[slice, slice]]:
        """Groups and inputs to take at a time."""
        groups, outputs, inputs, *kernel = self.weight.shape
        width = max(outputs, self.rows.n_out.numel() * self.columns.n_out.numel())
        pairs = max(1, _CELLS // max(1, width * math.prod(kernel)))
        n_inputs = min(pairs, inputs)
        n_groups = min(max(1, pairs // n_inputs), groups)
        return [
            (slice(group, group + n_groups), slice(start, start + n_inputs))
            for group in range(0, groups, n_groups)
            for start in range(0, inputs, n_inputs)
        ]

    def _weights(self, group: slice, part: slice) -> Tensor:
        """A copy of some of the weights, float64 `[groups, outputs, inputs, taps]`."""
        weight = self.weight[group, :, part].to(torch.float64, copy=True).flatten(3)
        return weight if self.scale is None else weight * self.scale[group, :, None, None].double()

    def _absent(self, across: _Grid, q_sum: Tensor) -> Tensor:
        """The sum of Q over the in-units that a column is not connected to: `[groups, O]`.

        Args:
            across: the layer's positions.
            q_sum: Q summed over the inputs of each group, `[groups, C, C]`.
        """
        own = (q_sum * across.n_in).sum((1, 2))
        others = self.blocks * own.sum() - own
        # n m - s t, of which s t are connected, as (n - s) m + s (m - t): nothing cancels.
        s, t = across.touched
        n, m = across.ns
        unconnected = ((n - s) @ (q_sum @ m)[..., None]) + s @ q_sum @ (m - t).mT
        return self.ins * (others[:, None] + unconnected.flatten(1))


class _Grid:
    """Two axes together: sums over taps of both, and how often each pair of kinds occurs."""

    def __init__(self, rows: Axis, columns: Axis, device: torch.device) -> None:
        self.taps = rows.taps.to(device), columns.taps.to(device)
        self.ns = rows.n_in.to(device), columns.n_in.to(device)
        self.axes = rows, columns
        by_row, by_column = rows.sources.to(device), columns.sources.to(device)
        self.sources = by_row[:, None, :, None], by_column[None, :, None, :]
        self.n_in = self.ns[0][:, None] * self.ns[1]
        self.n_out = (rows.n_out[:, None] * columns.n_out).to(device)
        self.n_taps = self.taps[0].sum(1)[:, None] * self.taps[1].sum(1)

    @property
    def touched(self) -> tuple[Tensor, Tensor]:
        """`Axis.touched` of both."""
        rows, columns = (axis.touched().to(self.n_in.device) for axis in self.axes)
        return rows, columns

    def rows_of(self, taps: Tensor) -> Tensor:
        """Sums over the taps of each kind of row: `[g, a, taps]` to `[g, a, C, C]`."""
        by_row, by_column = self.taps
        taps = taps.unflatten(2, (by_row.shape[1], by_column.shape[1]))
        return by_row @ taps @ by_column.T

    def columns_of(self, q: Tensor) -> Tensor:
        """Q where each tap of a kind of column comes from: `[g, a, k, k, O]`; 0 if nowhere."""
        by_row, by_column = self.sources
        return functional.pad(q, (0, 1, 0, 1))[:, :, by_row, by_column].flatten(4)


def _transform(w: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """f(w) and f(w) ln f(w). May overwrite w."""
    if norm == "linear":
        f = w.clamp(min=0.0)
        # Where f is 0 any finite logarithm will do.
        return f, w.clamp_(min=torch.finfo(w.dtype).tiny).log_().mul_(f)
    if norm == "softmax":
        f = w.exp()
        return f, w.mul_(f)
    f = w.sigmoid()
    return f, functional.logsigmoid(w).mul_(f)


def _column_sums(column: Tensor, across: _Grid, copies: int) -> tuple[Tensor, Tensor]:
    """The sum of c and of c ln c over columns `[g, b, O]`, each `copies` times."""
    n_out = copies * across.n_out.flatten()
    return (column * n_out).sum(), (torch.special.xlogy(column, column) * n_out).sum()
