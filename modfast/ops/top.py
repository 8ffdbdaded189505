"""Operator `update_top_`: the largest values of each unit, taken up batch by batch.

Each value is compared with the smallest of its unit's largest so far; the few that pass are sorted
and merged, so that a batch costs little more than to read it once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from modfast import checks
from modfast._extension import operator

TOP_DTYPES = (torch.float32, torch.float64)


def _fake_update(top_values: Tensor, top_indices: Tensor, values: Tensor, first: int) -> Tensor:
    return values.new_empty((), dtype=torch.int64)


_update = operator("update_top_", _fake_update)


def update_top_(top_values: Tensor, top_indices: Tensor, values: Tensor, first: int) -> Tensor:
    """Takes the samples of a batch up among the largest of each unit, in place.

    Args:
        top_values: the largest so far, strongest first, float32 or float64 `[d, k]`; -inf before
            the first batch.
        top_indices: their samples, int64 `[d, k]`; -1 before the first batch.
        values: `[n, d]`, of the same dtype.
        first: the index of its first sample; the others follow.

    Returns:
        How many values are NaN, int64 scalar; these are passed over, as are those of -inf. Of equal
        values the one that came first is kept, so with batches in order the one of lower index.

    Raises:
        TypeError: dtypes other than those above.
        ValueError: shapes or devices that do not match, tensors that are written to and not
            contiguous, values that require a gradient: there is none.

    Source: Section 4 of the specification.

    Example:
        >>> import torch
        >>> top, index = torch.full((1, 2), -torch.inf), torch.full((1, 2), -1)
        >>> _ = update_top_(top, index, torch.tensor([[1.0], [3.0], [3.0], [2.0]]), first=10)
        >>> top.tolist(), index.tolist()
        ([[3.0, 3.0]], [[11, 12]])
    """
    tensors = {"top_values": top_values, "top_indices": top_indices, "values": values}
    for name, tensor in tensors.items():
        checks.dense(name, tensor)
    if values.dtype not in TOP_DTYPES or top_values.dtype != values.dtype:
        raise TypeError(
            f"values must be float32 or float64, and as top_values {top_values.dtype}, "
            f"got {values.dtype}"
        )
    if top_indices.dtype != torch.int64:
        raise TypeError(f"top_indices must be int64, got {top_indices.dtype}")
    if values.dim() != 2:
        raise ValueError(f"values must have 2 dimensions, got shape {tuple(values.shape)}")
    first = checks.integer("first", first)
    if not 0 <= first < 2**63 - len(values):
        raise ValueError(f"first must be at least 0 and be held by int64, got {first!r:.40}")
    for name, tensor in (("top_values", top_values), ("top_indices", top_indices)):
        if tensor.dim() != 2 or len(tensor) != values.shape[1] or tensor.shape[1] < 1:
            raise ValueError(
                f"{name} must have shape [{values.shape[1]}, k], got {tuple(tensor.shape)}"
            )
        if tensor.device != values.device:
            raise ValueError(
                f"{name} must be on the device of values, {values.device}, got {tensor.device}"
            )
        if not tensor.is_contiguous() or checks.is_negated(tensor):
            raise ValueError(f"{name} must be contiguous, since it is written to")
    if top_indices.shape != top_values.shape:
        raise ValueError(
            f"top_indices must have the shape of top_values, {tuple(top_values.shape)}, "
            f"got {tuple(top_indices.shape)}"
        )
    if torch.is_grad_enabled() and (values.requires_grad or top_values.requires_grad):
        raise ValueError(
            "values require a gradient, and this operator has none; detach them, or call under "
            "torch.no_grad()"
        )
    found: Tensor = _update(top_values, top_indices, values.contiguous(), first)
    return found
