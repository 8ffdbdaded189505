"""Greedy pruning by brute force: zero a weight, run the whole network, put it back if need be."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@torch.no_grad()
def pruned(
    model: nn.Module,
    inputs: Any,
    targets: Tensor,
    layers: Sequence[str],
    threshold: float,
    against: str = "running",
    orders: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, Tensor], list[float]]:
    """Masks of kept weights, by parameter name, and the loss before and after each visit."""
    model = copy.deepcopy(model).eval()

    def loss() -> float:
        logits = model(**inputs) if isinstance(inputs, dict) else model(inputs)
        return float(functional.cross_entropy(logits.double(), targets))

    masks, running = {}, loss()
    original, path = running, [running]
    for name in layers:
        weight = model.get_submodule(name).weight
        flat = weight.view(-1)
        mask = torch.ones_like(flat, dtype=torch.bool)
        for i in (orders or {}).get(name, torch.arange(flat.numel())).tolist():
            before = flat[i].item()  # a number: a view would be 0 itself, once the weight is
            flat[i] = 0
            after = loss()
            if after - (running if against == "running" else original) > threshold:
                flat[i] = before
            else:
                mask[i] = False
                running = after
            path.append(running)
        masks[f"{name}.weight"] = mask.view(weight.shape)
    return masks, path


@torch.no_grad()
def replayed(
    x: Tensor,
    weights: Sequence[Tensor],
    targets: Tensor,
    margins: Tensor,
    threshold: float,
    original: float | None,
) -> Tensor:
    """Margins of a layer of a ReLU network without biases, pruned row by row, in float64.

    Each weight ends as `margins` say, so that decisions within rounding do not lead two runs apart.
    All trials of a row are run at once, as each of them is known to start where the one before it
    ended. `weights` are those of the layer and of those after it.
    """
    x, weight = x.double(), weights[0].double().clone()
    rest = [each.double() for each in weights[1:]]

    def losses(z: Tensor) -> Tensor:
        """`[trials]` of `[trials, samples, units]`."""
        for after in rest:
            z = z.relu() @ after.T
        chosen = targets.expand(len(z), -1)[..., None]
        return -z.log_softmax(-1).gather(-1, chosen)[..., 0].mean(1)

    found = torch.empty_like(margins)
    for row in range(len(weight)):
        parts = weight[row, :, None] * x.T  # what each weight adds, [trials, samples]
        goes = margins[row] <= 0
        gone = torch.cumsum(parts * goes[:, None], 0) - parts * goes[:, None]
        z = (x @ weight.T).expand(len(parts), -1, -1).clone()
        z[:, :, row] -= gone
        before = losses(z)
        z[:, :, row] -= parts
        over = before if original is None else original
        found[row] = losses(z) - over - threshold
        weight[row, goes] = 0
    return found
