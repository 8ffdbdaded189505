"""How strongly a layer's outputs and inputs go together, by what a network does on data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from modfast import checks
from modfast.clusters.wiring import Wiring
from modfast.information import pairwise_mutual_information
from modfast.network.capture import capture
from modfast.network.inputs import Batch
from modfast.network.logits import Output, pick, read_rows
from modfast.network.names import unwrapped
from modfast.network.run import require_differentiable, running
from modfast.network.samples import read_data
from modfast.network.weights import input_first

METHODS = ("coactivation", "gradient", "information")


def observed(method: str, model: nn.Module, wiring: Wiring, inputs: Any, output: Output) -> Wiring:
    """The wiring with strengths in place of weights, the squares of which are clustered.

    They are absolute correlations, roots of squared gradients summed over batches, or roots of
    mutual information.

    Raises:
        TypeError, ValueError: inputs that the model does not take, or without targets where
            gradients are asked for; weights that gradients do not reach.
    """
    if method == "gradient":
        found = _gradients(model, wiring, inputs, output)
    else:
        of_pair = {"coactivation": _correlation, "information": _information}[method]
        found = _of_activations(of_pair, model, wiring, inputs)
    layers = []
    for layer in wiring.layers:
        rows, cols = layer.values.shape[:2]
        values = found[layer.name].double().cpu().numpy().reshape(rows, cols, -1)
        layers.append(replace(layer, values=values))
    return replace(wiring, layers=tuple(layers))


def _of_activations(
    of_pair: Callable[[Tensor, Tensor], Tensor], model: nn.Module, wiring: Wiring, inputs: Any
) -> dict[str, Tensor]:
    names = [layer.name for layer in wiring.layers]
    sites = [*names, *(f"{name}:input" for name in names)]
    values = capture(model, inputs, sites, progress=False)
    found = {}
    for name in names:
        module = unwrapped(model).get_submodule(name)
        spatial = module.weight.dim() > 2 and "Conv" in type(module).__name__  # type: ignore[operator]
        x, y = (_samples(values[site], spatial) for site in (f"{name}:input", name))
        found[name] = of_pair(y, x)
    return found


def _samples(values: Tensor, spatial: bool) -> Tensor:
    """`[n, units]`: of a convolution's channels the means over positions."""
    values = values.double()
    return values.flatten(2).mean(2) if spatial else values.reshape(-1, values.shape[-1])


def _correlation(y: Tensor, x: Tensor) -> Tensor:
    def scaled(each: Tensor) -> Tensor:
        centered = each - each.mean(0)
        length = centered.norm(dim=0)
        still = length <= 1e-12 * each.abs().amax(0) * len(each) ** 0.5  # constant to rounding
        return torch.where(still, 0.0, centered / torch.where(still, 1.0, length))

    return (scaled(y).T @ scaled(x)).abs()


def _information(y: Tensor, x: Tensor) -> Tensor:
    return pairwise_mutual_information(y, x, range="column").mi.clamp(min=0).sqrt()


def _loss(logits: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy of classes, squared error of real targets."""
    y = batch.targets
    assert y is not None
    checks.floating("the model's logits", logits)
    if not y.is_floating_point():
        rows = read_rows(logits, batch, "inputs")
        assert rows.targets is not None
        return nn.functional.cross_entropy(rows.logits, rows.targets)
    if logits.shape != y.shape:
        raise ValueError(f"inputs must have targets {list(logits.shape)}, got {list(y.shape)}")
    return (logits - y).square().mean()


def _gradients(
    model: nn.Module, wiring: Wiring, inputs: Any, output: Output
) -> Mapping[str, Tensor]:
    require_differentiable(model)
    modules = {layer.name: unwrapped(model).get_submodule(layer.name) for layer in wiring.layers}
    weights: dict[str, Tensor] = {}
    for name, module in modules.items():
        weight = module._parameters.get("weight")
        if weight is None or not weight.requires_grad:
            raise ValueError(
                f"layer {name!r} must have a weight that requires gradients itself, got {module}"
            )
        weights[name] = weight
    squares = {
        name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in weights.items()
    }
    with running(model) as run, torch.enable_grad():
        for batch in read_data(model, inputs, "inputs"):
            logits = pick(run(batch), output, batch)
            loss = _loss(logits, batch)
            names = list(weights)
            found: tuple[Tensor | None, ...] = (None,) * len(names)
            if loss.requires_grad:
                found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            for name, gradient in zip(names, found, strict=True):
                if gradient is None:
                    raise ValueError(
                        f"layer {name!r} must be one that the loss depends on, got no gradient"
                    )
                squares[name] += gradient.double().square()
    return {
        name: (x.transpose(0, 1) if input_first(modules[name]) else x).sqrt()
        for name, x in squares.items()
    }
