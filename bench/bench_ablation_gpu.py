"""Ablation sweeps on a GPU, beside plain torch and torch.compile of that.

All begin with the site's activations, which one forward pass has left.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from bench_ablation import (
    COMPILED,
    TORCH,
    UNITS,
    assert_close,
    divergences,
    prefix,
    suffix,
    sweep,
    trained,
)
from timing import Compare
from torch import Tensor, nn
from torch.nn import functional

from modfast import ops

# Those of bench_ablation.py.
TARGETS = {"act2": {TORCH: 8.0, COMPILED: 2.5}, "act1": {TORCH: 25.0}}


def ours(model: nn.Module, h: Tensor, site: str) -> Tensor:
    if site == "act2":
        return ops.ablation_sweep(suffix(model, h, site), -h, model.fc3.weight.T)[0]
    before = model.fc2(h)
    logits = model.fc3(model.act2(before))
    updates, weight = model.fc2.weight.T, model.fc3.weight
    return ops.ablation_sweep_hidden(logits, before, -h, updates, "relu", weight)[0]


@pytest.mark.short
@pytest.mark.parametrize(("n", "small"), [(10_000, 40), (64, 8)])
@pytest.mark.parametrize("site", TARGETS)
@torch.no_grad()
def test_units(compare: Compare, gpu: str, n: int, small: int, site: str) -> None:
    targets, n = TARGETS[site] if n > 64 else {}, n if gpu == "cuda" else small
    model, x = trained(n)
    model, x = model.to(gpu), x.to(gpu)
    h = prefix(model, x, site)
    exact = sweep(copy.deepcopy(model).double(), h.double(), site, 16)
    assert_close(ours(model, h, site), exact, 1e-5)
    peers = {"modfast": ours, TORCH: partial(sweep, chunk=UNITS)}
    peers[COMPILED] = torch.compile(peers[TORCH])
    for call in peers.values():
        assert_close(call(model, h, site), exact, 1e-2)  # torch's entropies lose digits
    compare(
        f"ablation of {UNITS} units, {site}, {n} samples",
        {name: torch.no_grad()(partial(call, model, h, site)) for name, call in peers.items()},
        targets,
        device=gpu,
    )


def batched(z: Tensor, h: Tensor, scales: Tensor, updates: Tensor, weight: Tensor) -> Tensor:
    """16 ablations at a time, through GELU."""
    log_p, before = z.log_softmax(-1), functional.gelu(h)
    found = []
    for s, u in zip(scales.T.split(16), updates.split(16), strict=True):
        delta = functional.gelu(h + s[..., None] * u[:, None]) - before
        found.append(divergences(log_p, (z + delta @ weight.T).log_softmax(-1)))
    return torch.cat(found, 1)


@torch.no_grad()
def test_vocabulary(compare: Compare, gpu: str) -> None:
    """Of GPT-2: the MLP's units and the vocabulary."""
    sizes = (64, 64, 3072, 50_257) if gpu == "cuda" else (3, 5, 12, 40)
    n, n_ablations, width, n_classes = sizes
    torch.manual_seed(0)
    h, scales = torch.randn(n, width, device=gpu), torch.randn(n, n_ablations, device=gpu)
    updates = torch.randn(n_ablations, width, device=gpu)
    weight = torch.randn(n_classes, width, device=gpu) / width**0.5
    arguments = 4 * functional.gelu(h) @ weight.T, h, scales, updates, weight

    def modfast_sweep(z: Tensor, h: Tensor, s: Tensor, u: Tensor, w: Tensor) -> Tensor:
        return ops.ablation_sweep_hidden(z, h, s, u, "gelu", w)[0]

    few = [x[:2] if x is updates else x[:, :2] if x is scales else x for x in arguments]
    exact = batched(*(x.double() for x in few))
    peers: dict[str, Callable[..., Tensor]] = {"modfast": modfast_sweep, TORCH: batched}
    for call in peers.values():
        assert_close(call(*few), exact, 1e-3)
    compare(
        f"ablations through {width} units and {n_classes} classes, {n} x {n_ablations}",
        {name: torch.no_grad()(partial(call, *arguments)) for name, call in peers.items()},
        {TORCH: 1.0},
        rounds=5,
        device=gpu,
    )
