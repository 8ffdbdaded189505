"""Optimal ablation: the constants that change the class probabilities least."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from modfast.ablation.changes import Changes, Directions, Groups, Units
from modfast.network.logits import log_softmax
from modfast.network.resume import Start, batched, one_by_one
from modfast.precision import full_precision

STEPS = 200
CHUNK = 32


def optimized(start: Start, changes: Changes, where: Tensor | None, counted: Tensor) -> Changes:
    """The same changes, to the constants that give the least KL(original | ablated).

    One number for a unit or direction, one for each unit of a group. Adam, from the mean; what is
    returned is the best point seen, of which the means and zero are two.

    Args:
        start: where the network is resumed.
        changes: to the units' means.
        where: at which samples and positions, `[n, ..., 1]`.
        counted: the site at samples and positions that count, `[n', d]`.

    Source: Li and Janson, "Optimal Ablation for Interpretability", 2024.
    """
    deviation = counted.double().std(0, correction=0).to(counted.dtype)
    first, scale = _beginning(changes, counted, deviation)
    resume, _ = resumed(start, None)
    best = torch.cat(
        [
            _search(start, resume, changes, where, slice(i, i + CHUNK), first, scale)
            for i in range(0, len(changes), CHUNK)
        ]
    )
    return _with(changes, best, where)


def constants(changes: Changes) -> dict[str, Any]:
    """The constants that were found, as `AblationResult` keeps them."""
    found = changes.lengths if isinstance(changes, Directions) else getattr(changes, "own", None)
    return {"values": found.cpu()} if isinstance(found, Tensor) else {}


def _beginning(changes: Changes, counted: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """The means, and how widely they are searched around."""
    if isinstance(changes, Directions):
        along = counted @ changes.vectors.T
        return along.mean(0), along.std(0, correction=0)
    assert isinstance(changes, (Units, Groups))
    if isinstance(changes, Units):
        return changes.value[changes.index], deviation[changes.index]
    shape = changes.mask.shape
    return changes.value.expand(shape), deviation.expand(shape)


def _with(changes: Changes, values: Tensor, where: Tensor | None) -> Changes:
    if isinstance(changes, Directions):
        return replace(changes, value=None, lengths=values, where=where)
    assert isinstance(changes, (Units, Groups))
    return replace(changes, own=values, where=where)


def _search(
    start: Start,
    resume: Callable[[Tensor], Tensor],
    changes: Changes,
    where: Tensor | None,
    chosen: slice,
    first: Tensor,
    scale: Tensor,
) -> Tensor:
    scale = scale[chosen].clamp(min=1e-6)
    begin = first[chosen] / scale
    rows, n = start.rows, len(changes)
    log_p = log_softmax(rows.logits)

    def divergence(point: Tensor) -> Tensor:
        whole = torch.zeros(n, *point.shape[1:], dtype=point.dtype, device=point.device)
        whole = whole.index_copy(0, torch.arange(n, device=point.device)[chosen], point * scale)
        values = _with(changes, whole, where).apply(start.features, chosen)
        ablated = resume(values.movedim(-1, start.dim + 1))
        with full_precision():
            log_q = log_softmax(rows.of_each(ablated))
            terms = nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True)
            return terms.sum((1, 2))

    best, least = begin, divergence(begin)
    zero = torch.zeros_like(begin)
    best, least = _better(best, least, zero, divergence(zero))
    point = best.clone().requires_grad_()
    # What the parameters' gradients would take is not asked for.
    optimizer = torch.optim.Adam([point], lr=0.1, betas=(0.8, 0.95))
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 + math.cos(math.pi * step / STEPS)) / 2
        with torch.enable_grad():
            found = divergence(point)
            slope = None
            if found.requires_grad:
                (slope,) = torch.autograd.grad(found.sum(), point, allow_unused=True)
        if slope is None:
            if bool((least > 0).any()):
                raise ValueError("value='optimal' needs gradients, which do not reach the site")
            break  # the logits do not depend on it
        best, least = _better(best, least, point.detach(), found.detach())
        # Each ablation by itself: what is small for one is not for another.
        point.grad = slope
        optimizer.step()
    return best * scale


def _better(best: Tensor, least: Tensor, point: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    better = (found < least).reshape(-1, *[1] * (best.dim() - 1))
    return torch.where(better, point, best), torch.minimum(found, least)


def resumed(start: Start, backend: str | None) -> tuple[Callable[[Tensor], Tensor], str]:
    """The logits for several values of the site, with their gradient."""
    alone = one_by_one(start.resume)
    if start.tape is None or backend == "replay":
        return alone, start.backend
    together = batched(start.tape)
    try:
        with torch.enable_grad():
            tried = start.site[None].detach().clone().requires_grad_()
            torch.autograd.grad(together(tried).sum(), tried, allow_unused=True)
    except (RuntimeError, NotImplementedError):
        # An LSTM, say, of which torch.vmap knows nothing.
        if backend == "vmap":
            raise ValueError("backend='vmap': torch.vmap cannot run what follows") from None
        return alone, "replay"
    return together, "vmap"
