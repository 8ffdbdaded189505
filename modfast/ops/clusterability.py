"""Operator family `cluster_penalty`: the clusterability of weights, and its gradient.

A weight is any contiguous tensor of `len(rows) * len(cols)` elements, read row-major as a matrix;
`rows` and `cols` are int32 label vectors on its device, -1 for "in no cluster".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from modfast import reference
from modfast._extension import operator

WEIGHT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _fake_penalty(
    weights: list[Tensor], rows: list[Tensor], cols: list[Tensor], scale: float
) -> tuple[Tensor, Tensor]:
    double = any(w.dtype == torch.float64 for w in weights)
    value = weights[0].new_empty((), dtype=torch.float64 if double else torch.float32)
    return value, weights[0].new_empty((len(weights), 2), dtype=torch.float64)


def _fake_gradient(
    grad: Tensor,
    weights: list[Tensor],
    rows: list[Tensor],
    cols: list[Tensor],
    sums: Tensor,
    scale: float,
) -> list[Tensor]:
    return [torch.empty_like(w) for w in weights]


_penalty = operator("cluster_penalty", _fake_penalty)
_penalty_backward = operator("cluster_penalty_backward", _fake_gradient)


class _Penalty(torch.autograd.Function):
    """`cluster_penalty` with its gradient; differentiable twice, the second time by plain torch."""

    @staticmethod
    def forward(ctx: Any, scale: float, count: int, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        weights, rows, cols = tensors[:count], tensors[count : 2 * count], tensors[2 * count :]
        value, sums = _penalty(weights, rows, cols, scale)
        ctx.save_for_backward(sums, *tensors)
        ctx.mark_non_differentiable(sums)
        ctx.scale, ctx.count = scale, count
        return value, sums

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> Any:
        scale, count = ctx.scale, ctx.count  # type: ignore[attr-defined]
        sums, *tensors = ctx.saved_tensors  # type: ignore[attr-defined]
        needed = ctx.needs_input_grad[2 : 2 + count]  # type: ignore[attr-defined]
        weights, rows, cols = tensors[:count], tensors[count : 2 * count], tensors[2 * count :]
        if not all(needed):
            chosen = [i for i in range(count) if needed[i]]
            weights, rows, cols = ([x[i] for i in chosen] for x in (weights, rows, cols))
            sums = sums[chosen]
        if torch.is_grad_enabled():  # create_graph=True: the gradient must itself have one
            again, _ = reference.cluster_penalty(weights, rows, cols, scale)
            found = torch.autograd.grad(again, weights, grads[0], create_graph=True)
        else:
            found = _penalty_backward(grads[0], weights, rows, cols, sums, scale)
        gradients = iter(found)
        spread = [next(gradients) if need else None for need in needed]
        return None, None, *spread, *(None,) * (2 * count)


def cluster_penalty(
    weights: Sequence[Tensor], rows: Sequence[Tensor], cols: Sequence[Tensor], scale: float
) -> tuple[Tensor, Tensor]:
    """Scale * sum over weights of C(w), and the sums that make each C.

    C(w) = S/T with S the sum of squares of the entries whose row and column share a cluster and T
    that of all entries; C of an all-zero weight is 0. All weights in one call, one pass over each.

    Args:
        weights: float32, float64, bfloat16 or float16 tensors on one device.
        rows: for each weight its row labels, int32.
        cols: for each weight its column labels, int32.
        scale: factor of the sum.

    Returns:
        The value, a scalar (float64 if any weight is, else float32), differentiable; and the sums
        `[n, 2]` (S, T), float64, without gradient. Sums are taken in float64 and are the same for
        any number of threads. A weight that holds NaN or inf gives NaN.

    Raises:
        TypeError: a weight of another dtype.
        ValueError: no weights, lists of different lengths, sizes or devices that do not match.

    Example:
        >>> import torch
        >>> labels = torch.tensor([0, 1], dtype=torch.int32)
        >>> value, sums = cluster_penalty([torch.tensor([[3.0, 1.0], [1.0, 1.0]])],
        ...                               [labels], [labels], scale=1.0)
        >>> value, sums
        (tensor(0.8333), tensor([[10., 12.]], dtype=torch.float64))
    """
    check_weights(weights, rows, cols)
    weights = [w.contiguous() for w in weights]
    result = _Penalty.apply(scale, len(weights), *weights, *rows, *cols)
    return cast("tuple[Tensor, Tensor]", result)


def cluster_sums(
    weights: Sequence[Tensor], rows: Sequence[Tensor], cols: Sequence[Tensor]
) -> Tensor:
    """The float64 sums `[n, 2]` (within clusters, total) of `cluster_penalty`, without a graph."""
    check_weights(weights, rows, cols)
    with torch.no_grad():
        sums: Tensor = _penalty([w.contiguous() for w in weights], rows, cols, 1.0)[1]
    return sums


def cluster_penalty_gradient(
    weights: Sequence[Tensor], rows: Sequence[Tensor], cols: Sequence[Tensor], scale: float
) -> list[Tensor]:
    """The gradient of `cluster_penalty`'s value for each weight, without autograd.

    d(scale C)/dw = 2 scale w (m - C) / T, m being 1 inside clusters and 0 outside.
    """
    check_weights(weights, rows, cols)
    with torch.no_grad():
        weights = [w.contiguous() for w in weights]
        sums = _penalty(weights, rows, cols, scale)[1]
        one = torch.ones((), device=weights[0].device)
        gradients: list[Tensor] = _penalty_backward(one, weights, rows, cols, sums, scale)
    return gradients


def check_weights(
    weights: Sequence[Tensor], rows: Sequence[Tensor], cols: Sequence[Tensor]
) -> None:
    """Refuses weights and labels that no kernel should see; see `cluster_penalty`."""
    if not weights:
        raise ValueError("weights must not be empty")
    if not len(weights) == len(rows) == len(cols):
        raise ValueError(
            f"weights, rows and cols must have one entry per weight, "
            f"got {len(weights)}, {len(rows)} and {len(cols)}"
        )
    device = weights[0].device
    for i, (w, r, c) in enumerate(zip(weights, rows, cols, strict=True)):
        if w.dtype not in WEIGHT_DTYPES:
            raise TypeError(
                f"weights[{i}] must be float32, float64, bfloat16 or float16, got {w.dtype}"
            )
        if w.device != device or r.device != device or c.device != device:
            raise ValueError(
                f"weights and labels must be on one device, got weights[{i}] on {w.device}, "
                f"its rows on {r.device}, its cols on {c.device}, and weights[0] on {device}"
            )
        if r.dtype != torch.int32 or c.dtype != torch.int32:
            raise TypeError(f"labels must be int32, got rows[{i}] {r.dtype}, cols[{i}] {c.dtype}")
        if r.numel() * c.numel() != w.numel():
            raise ValueError(
                f"weights[{i}] of shape {tuple(w.shape)} must have one row per row label and one "
                f"column per column label, got {r.numel()} and {c.numel()} labels"
            )
