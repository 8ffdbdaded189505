"""The notebook's way: clone the model, change one thing, run it whole."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from modfast import AblationResult

MEASURES = ("entropy_difference", "kl_ablated_original", "kl_original_ablated")


def run(
    model: nn.Module,
    inputs: Any,
    site: str | None = None,
    change: Callable[[Tensor], Tensor] | None = None,
    output: Callable[[Any], Tensor] = lambda found: found,
) -> Tensor:
    """The logits `[n, c]` of a clone, with the site's output changed."""
    clone = copy.deepcopy(model).eval()
    if site is not None and change is not None:
        clone.get_submodule(site).register_forward_hook(lambda m, a, out: change(out.clone()))
    with torch.no_grad():
        if isinstance(inputs, Mapping):
            found = output(clone(**inputs))
        else:
            found = output(clone(*inputs) if isinstance(inputs, tuple) else clone(inputs))
    return found.reshape(-1, found.shape[-1]).double()


def terms(before: Tensor, after: Tensor) -> Tensor:
    """H(p) - H(q), KL(q | p), KL(p | q) of each sample: `[3, n]`."""
    p, q = torch.softmax(before, -1), torch.softmax(after, -1)
    log_p, log_q = torch.log_softmax(before, -1), torch.log_softmax(after, -1)
    return torch.stack(
        [
            (q * log_q).sum(-1) - (p * log_p).sum(-1),
            (q * (log_q - log_p)).sum(-1),
            (p * (log_p - log_q)).sum(-1),
        ]
    )


def assert_equal(result: AblationResult, expected: Tensor, tolerance: float) -> None:
    """A result against the terms `[a, 3, n]`, relative to the samples' absolute terms."""
    for i, measure in enumerate(MEASURES):
        found = getattr(result, measure)
        wanted = expected[:, i].T if found.dim() == 2 else expected[:, i].sum(1)
        scale = expected[:, i].abs().sum(1)
        allowed = tolerance * (scale + scale.max())
        error = (found - wanted).abs()
        assert (error <= allowed).all(), f"{measure}: {float((error / allowed).max())} of allowed"
