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

_NOTHING = 1e-300
"""Stands for a weight of zero: it is lost beside any other, and its logarithm is finite."""
_LEAST_ROW = 1e-290
"""Sums below it are of nothing else: a float32 is at least 1e-45."""

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
    sizes: tuple[int, int]
    """In- and out-positions."""

    @classmethod
    def of_table(cls, table: Tensor, n_in: int) -> Axis:
        """Of the in-position that each out-position's taps come from, `[n_out, k]`, or -1."""
        valid = table >= 0
        reached = torch.zeros(n_in, table.shape[1], dtype=torch.bool)
        reached[table[valid], valid.nonzero()[:, 1]] = True
        taps, kind, n_of_kind = reached.unique(dim=0, return_inverse=True, return_counts=True)
        kinds = torch.where(valid, kind[table], len(taps))
        sources, n_of_source = kinds.unique(dim=0, return_counts=True)
        return cls(
            taps.double(),
            n_of_kind.double(),
            sources.T.contiguous(),
            n_of_source.double(),
            (n_in, len(table)),
        )

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
        (rows_in, rows_out), (columns_in, columns_out) = self.rows.sizes, self.columns.sizes
        n_in = self.ins * inputs * rows_in * columns_in
        n_out = self.outs * outputs * rows_out * columns_out
        return self.blocks * groups * n_in, self.blocks * groups * n_out

    def sums(self, norm: Norm) -> Tensor:
        """Sum of H_i, of c_j and of c_j ln c_j: float64 `[3]`, in nats."""
        kinds, z = _Kinds.of_axes(self.rows, self.columns, self.weight.device), ABSENT[norm]
        groups, outputs = self.weight.shape[:2]
        parts = self._parts()
        largest = self.weight[parts[0][0], :, parts[0][1]].numel()
        buffer = kinds.taps.new_empty(2, largest)
        column = kinds.taps.new_zeros(groups, outputs, len(kinds.n_out))
        entropy, q_sum = kinds.taps.new_zeros(()), kinds.taps.new_zeros(groups, len(kinds.n_in))
        for group, part in parts:
            both = self._transformed(group, part, norm, buffer)
            row, terms = (both.sum(2) @ kinds.taps).mul_(self.outs)
            if z:
                absent = self.shape[1] - (self.outs * outputs) * kinds.taps.sum(0)
                row += z * absent
                terms += z * math.log(z) * absent
            q = row.reciprocal()
            row_entropy = row.log().addcmul_(terms, q, value=-1)
            if not z:  # Then a row may be all zeros. It stays so, and has no entropy.
                nothing = row < _LEAST_ROW
                q.masked_fill_(nothing, 0.0)
                row_entropy.masked_fill_(nothing, 0.0)
            entropy += row_entropy.sum((0, 1)) @ kinds.n_in
            if z:
                q_sum[group] += q.sum(1)
            column[group].baddbmm_(both[0].flatten(2), kinds.reached(q))
        column *= self.ins
        if z:
            # The in-units that a column is not connected to, in its group and in all others.
            own = q_sum @ kinds.n_in
            others = self.blocks * own.sum() - own
            column += (self.ins * z) * (others[:, None] + q_sum @ kinds.unreached.T)[:, None]
        n_out = (self.blocks * self.outs) * kinds.n_out
        c_log_c = torch.special.xlogy(column, column)
        n_rows = self.blocks * self.ins
        totals = [each.sum((0, 1)) @ n_out for each in (column, c_log_c)]
        return torch.stack([n_rows * entropy, *totals])

    def _parts(self) -> list[tuple[slice, slice]]:
        """Groups and inputs to take at a time, the largest part first."""
        groups, outputs, inputs, *kernel = self.weight.shape
        width = max(outputs, len(self.rows.n_out) * len(self.columns.n_out))
        pairs = max(1, _CELLS // (width * math.prod(kernel)))
        n_inputs = min(pairs, inputs)
        n_groups = min(pairs // n_inputs, groups)
        return [
            (slice(group, group + n_groups), slice(start, start + n_inputs))
            for group in range(0, groups, n_groups)
            for start in range(0, inputs, n_inputs)
        ]

    def _transformed(self, group: slice, part: slice, norm: Norm, buffer: Tensor) -> Tensor:
        """f(w) and f(w) ln f(w) of some weights: float64 `[2, groups, outputs, inputs, taps]`."""
        weight = self.weight[group, :, part]
        f, f_log_f = both = buffer[:, : weight.numel()].view(2, *weight.shape)
        w = (f if norm == "linear" else f_log_f).copy_(weight)
        if self.scale is not None:
            w.mul_(self.scale[group, :, None, None, None])
        if norm == "linear":
            # ReLU, but with a logarithm that is finite.
            torch.log(f.clamp_(min=_NOTHING), out=f_log_f)
        elif norm == "softmax":
            torch.exp(w, out=f)
        else:
            torch.sigmoid(w, out=f)
            f_log_f.copy_(functional.logsigmoid(w))
        f_log_f.mul_(f)
        return both.flatten(4)


@dataclass(frozen=True, eq=False)
class _Kinds:
    """Two axes together: pairs of taps, and pairs of kinds of positions."""

    taps: Tensor
    """`[K, C]`: 1 where a tap leads from an in-position of the kind to an output."""
    n_in: Tensor
    """`[C]`"""
    sources: Tensor
    """int64 `[K, O]`: the kind of in-position that a tap comes from; C where there is none."""
    n_out: Tensor
    """`[O]`"""
    unreached: Tensor
    """`[O, C]`: how many in-positions of each kind an out-position is not connected to."""

    @classmethod
    @lru_cache(maxsize=512)
    def of_axes(cls, rows: Axis, columns: Axis, device: torch.device) -> _Kinds:
        n_in = torch.outer(rows.n_in, columns.n_in).flatten()
        by_row, by_column = rows.sources[:, None, :, None], columns.sources[None, :, None, :]
        nowhere = (by_row == len(rows.n_in)) | (by_column == len(columns.n_in))
        sources = (by_row * len(columns.n_in) + by_column).masked_fill(nowhere, len(n_in))
        reached = torch.kron(rows.touched(), columns.touched())
        tensors = (
            torch.kron(rows.taps, columns.taps).T.contiguous(),
            n_in,
            sources.flatten(2).flatten(0, 1),
            torch.outer(rows.n_out, columns.n_out).flatten(),
            n_in - reached,
        )
        return cls(*(each.to(device) for each in tensors))

    def reached(self, q: Tensor) -> Tensor:
        """Q where each tap of a kind of out-position comes from: `[g, a, C]` to `[g, a K, O]`."""
        return functional.pad(q, (0, 1))[:, :, self.sources].flatten(1, 2)
