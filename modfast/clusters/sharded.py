"""Clusterability of weights that lie in shards on several processes (DTensor, as FSDP2 makes).

Each process sums over its own shard with the labels of the shard's rows and columns; the two sums
of a layer are all that is reduced, and the gradient of a shard is local. Labels are everywhere
those of the whole weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modfast import checks
from modfast.ops import cluster_penalty, cluster_penalty_gradient, cluster_sums
from modfast.reference import ratio


def is_sharded(weight: Tensor) -> bool:
    """Whether a weight is a DTensor.

    Told by its look: importing the class takes half a second, and builds of torch may lack it.
    """
    plain = type(weight) in (Tensor, nn.Parameter)
    return not plain and hasattr(weight, "device_mesh") and hasattr(weight, "placements")


def penalty_of(weights: Sequence[Tensor], labels: Sequence[Tensor], scale: float) -> Tensor:
    """`modfast.ops.cluster_penalty` of weights of which any may be sharded.

    The value is the same on every process of a mesh; differentiable once where one is sharded.
    """
    weights, labels = _matched(weights, labels)
    if not any(map(is_sharded, weights)):
        return cluster_penalty(weights, torch.cat(labels) if labels else _NONE, scale)
    scale = checks.finite_number("scale", scale)
    terms = [
        _ShardedPenalty.apply(_local(w), w, each, scale)
        if is_sharded(w)
        else cluster_penalty([w], each, scale)
        for w, each in zip(weights, labels, strict=True)
    ]
    return torch.stack(terms).sum()


def sums_of(weights: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
    """Float64 `[n, 2]`, `modfast.ops.cluster_sums` of whole weights of which any may be sharded.

    Also of weights on several devices; on the CPU.
    """
    weights, labels = _matched(weights, labels)
    if not weights:
        return torch.zeros(0, 2, dtype=torch.float64, device="cpu")
    each = [
        _whole_sums(w, _local(w.detach()), x) if is_sharded(w) else cluster_sums([w], x)
        for w, x in zip(weights, labels, strict=True)
    ]
    return torch.cat([sums.cpu() for sums in each])


def gradient_of(weight: Tensor, labels: Tensor, scale: float, sums: Tensor) -> Tensor:
    """`modfast.ops.cluster_penalty_gradient` of one weight, a DTensor if it is one.

    Args:
        weight: the weight, or its shard here.
        labels: of the whole weight.
        scale: factor of the clusterability.
        sums: float64 `[1, 2]` of the whole weight.
    """
    checks.dense("sums", sums)
    checks.some_tensor("weight", weight)
    weight, sums = weight.detach(), sums.to(weight.device)
    if not is_sharded(weight):
        return cluster_penalty_gradient([weight], labels, scale, sums)[0]
    from torch.distributed.tensor import DTensor

    local = _local(weight)
    (gradient,) = cluster_penalty_gradient([local], _shard_labels(weight, labels), scale, sums)
    mesh, placements = weight.device_mesh, weight.placements  # type: ignore[attr-defined]
    return DTensor.from_local(
        gradient, mesh, placements, run_check=False, shape=weight.shape, stride=weight.stride()
    )


_NONE = torch.zeros(0, dtype=torch.int32, device="cpu")


def _matched(
    weights: Sequence[Tensor], labels: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Both as lists of tensors, as many of one as of the other."""
    weights, labels = checks.several("weights", weights), checks.several("labels", labels)
    if len(weights) != len(labels):
        raise ValueError(f"labels must be as many as weights, got {len(labels)}, {len(weights)}")
    for each in labels:
        checks.tensor("labels", each, torch.int32)
        if each.dim() != 1:
            raise ValueError(f"labels must be one-dimensional, got shape {tuple(each.shape)}")
    return weights, labels


class _ShardedPenalty(torch.autograd.Function):
    """scale * clusterability of a whole weight, with the gradient of the shard."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, weight: Tensor, labels: Tensor, scale: float) -> Tensor:
        sums = _whole_sums(weight, local, labels)
        ctx.save_for_backward(local, sums)
        ctx.rest = _shard_labels(weight, labels), scale
        return (scale * ratio(sums).sum()).to(
            torch.float64 if local.dtype == torch.float64 else torch.float32
        )

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        local, sums = ctx.saved_tensors
        labels, scale = ctx.rest
        (gradient,) = cluster_penalty_gradient([local], labels, scale, sums)
        return gradient * grad.to(gradient.dtype), None, None, None


def _local(weight: Any) -> Tensor:
    for placement in weight.placements:
        # By name: a strided shard's rows are not consecutive, and it passes for a Shard.
        if type(placement).__name__ not in ("Shard", "Replicate"):
            raise ValueError(f"weight must be sharded or replicated, got {weight.placements}")
    local: Tensor = weight.to_local()
    return local.contiguous()


def _shard_labels(weight: Any, labels: Tensor) -> Tensor:
    """Labels of the rows and columns that lie here."""
    rows, cols = labels.split([weight.shape[0], weight.shape[1:].numel()])
    return torch.cat(
        [_part(weight, rows, 0), _part(weight, cols.view(weight.shape[1:]), 1).flatten()]
    )


def _part(weight: Any, whole: Tensor, first: int) -> Tensor:
    """The part, beside the weight's shard, of a tensor over its dimensions from `first` on."""
    from torch.distributed.tensor import DTensor, Replicate, Shard

    n_dims = range(first, first + whole.dim())
    wanted = [
        Shard(p.dim - first) if p.is_shard() and p.dim in n_dims else Replicate()
        for p in weight.placements
    ]
    everywhere = [Replicate() for _ in wanted]
    # From a copy everywhere to shards: each process takes its part, none sends anything.
    whole = DTensor.from_local(whole, weight.device_mesh, everywhere, run_check=False)
    part: Tensor = whole.redistribute(placements=wanted).to_local()
    return part


@torch.no_grad()
def _whole_sums(weight: Any, local: Tensor, labels: Tensor) -> Tensor:
    """Float64 `[1, 2]`, by one reduction over the processes that hold different shards."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    sums = cluster_sums([local], _shard_labels(weight, labels))
    shares = [Partial() if p.is_shard() else Replicate() for p in weight.placements]
    whole: Tensor = DTensor.from_local(
        sums, weight.device_mesh, shares, run_check=False
    ).full_tensor()
    return whole
