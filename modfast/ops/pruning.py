"""Operator `prune_layer`: greedy pruning of the single weights of one layer of an MLP.

Zeroing a weight moves one unit's output t, and where no later ReLU switches the logits are linear
in t, so that a sample's loss is a power series in t (csrc/math/pruning.h). Series are
made anew only where they end: a trial of a weight costs a polynomial per sample, and no forward
pass.

On CUDA a block takes a group of samples through all visits of a unit in one launch, and between
units another launch brings the later layers up to date: orders that go unit by unit are fastest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from modfast import checks
from modfast._extension import operator

PRUNING_DTYPES = (torch.float32, torch.float64)


def _fake(inputs: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    _, _, _, sizes, order, *_ = rest
    groups, visits = sizes.shape[0], order.shape[0]
    return (
        inputs.new_empty((groups, visits), dtype=torch.float64),
        inputs.new_empty((groups, visits + 1), dtype=torch.float64),
    )


_prune_layer = operator("prune_layer", _fake)


def prune_layer(
    inputs: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    targets: Tensor,
    sizes: Tensor,
    order: Tensor,
    original: Tensor | None = None,
    threshold: float = 1e-4,
) -> tuple[Tensor, Tensor]:
    """Zeroes weights of a layer one by one, and puts back those that the loss needs.

    The network is linear layers with ReLU in between, of which the first is pruned. Each of g
    groups of samples is pruned by itself, on its own copy of the weights, which may differ. A
    weight stays zero if the group's mean cross-entropy then is at most `threshold` above the
    running loss, which becomes the new one, or above `original`.

    Args:
        inputs: of the pruned layer, `[n, d]`, group after group; float32 or float64, finite.
        weights: `[g, out, in]` of the pruned layer and of each after it.
        biases: `[g, out]` of each.
        targets: int64 classes `[n]`.
        sizes: int64 `[g]`, the number of samples of each group.
        order: int64 `[v]`, the indices into a flattened `[out, in]` weight to visit, in turn.
        original: float64 `[g]`, the losses over which to count; by default the running ones.
        threshold: at least 0, in nats.

    Returns:
        The margin of each visit, its rise of the loss less the threshold, float64 `[g, v]`: the
        weight stays zero where it is at most 0; and the loss before the first and after each visit,
        float64 `[g, v + 1]`, in nats. Both are the same bits from run to run, and on the CPU for
        any number of threads. In float32, both are exact to about 1e-7 of the largest logit, or
        of 1 if that is more.

    Raises:
        TypeError: dtypes other than those above.
        ValueError: shapes or devices that do not match, a tensor that requires a gradient: there
            is none.
        RuntimeError: targets, sizes or indices out of range.

    Source: N1, its circuits, with a restore that does restore.

    Example:
        >>> import torch
        >>> weight = torch.tensor([[[12.0, 0.1], [-12.0, 0.1]]])  # input 1 tells nothing
        >>> margins, losses = prune_layer(
        ...     torch.ones(1, 2), [weight], [torch.zeros(1, 2)], torch.tensor([0]),
        ...     torch.tensor([1]), torch.tensor([0, 1, 2, 3]))
        >>> margins > 0  # one of the 12 is enough
        tensor([[False, False,  True, False]])
    """
    weights, biases = checks.several("weights", weights), checks.several("biases", biases)
    tensors = {"inputs": inputs}
    tensors |= {f"weights[{m}]": weight for m, weight in enumerate(weights)}
    tensors |= {f"biases[{m}]": bias for m, bias in enumerate(biases)}
    _check_floats(tensors)
    integers = {"targets": targets, "sizes": sizes, "order": order}
    for name, tensor in integers.items():
        checks.tensor(name, tensor, torch.int64)
        if tensor.dim() != 1:
            raise ValueError(f"{name} must have 1 dimension, got shape {tuple(tensor.shape)}")
    groups = len(sizes)
    if inputs.dim() != 2 or len(inputs) == 0:
        raise ValueError(f"inputs must be [n, d] and not empty, got shape {tuple(inputs.shape)}")
    if len(weights) == 0 or len(weights) != len(biases):
        raise ValueError(
            f"weights must not be empty and biases be as many, got {len(weights)} and {len(biases)}"
        )
    width = inputs.shape[1]
    wanted: dict[str, tuple[int, ...]] = {"targets": (len(inputs),)}
    for m, weight in enumerate(weights):
        n_out = weight.shape[1] if weight.dim() == 3 else 1
        wanted |= {f"weights[{m}]": (groups, n_out, width), f"biases[{m}]": (groups, n_out)}
        width = n_out
    if original is not None:
        checks.tensor("original", original, torch.float64)
        tensors["original"] = original
        wanted["original"] = (groups,)
    everything = tensors | integers
    for name, shape in wanted.items():
        if tuple(everything[name].shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(everything[name].shape)}")
    for name, tensor in everything.items():
        if tensor.device != inputs.device:
            raise ValueError(
                f"{name} must be on the device of inputs, {inputs.device}, got {tensor.device}"
            )
    threshold = checks.finite_number("threshold", threshold)
    if threshold < 0:
        raise ValueError(f"threshold must be at least 0, got {threshold}")
    found: tuple[Tensor, Tensor] = _prune_layer(
        inputs.contiguous(),
        [weight.contiguous() for weight in weights],
        [bias.contiguous() for bias in biases],
        targets.contiguous(),
        sizes.contiguous(),
        order.contiguous(),
        None if original is None else original.contiguous(),
        threshold,
    )
    return found


def _check_floats(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        checks.dense(name, tensor)
    dtype = tensors["inputs"].dtype
    for name, tensor in tensors.items():
        if tensor.dtype not in PRUNING_DTYPES or tensor.dtype != dtype:
            raise TypeError(
                f"{name} must be float32 or float64, and as inputs {dtype}, got {tensor.dtype}"
            )
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name} requires a gradient, and this operator has none; detach it, or call "
                "under torch.no_grad()"
            )
