"""Many small MLPs trained at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def split_mlps(parameters: Tensor, sizes: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """The layers of MLPs, views of their parameters `[m, p]`.

    Returns:
        Weights `[m, outputs, inputs]` and biases `[m, outputs]`, from the first layer to the last,
        which is also their order in a row of the parameters.
    """
    shapes = list(zip(sizes[1:], sizes[:-1], strict=True))
    pieces = iter(parameters.split([k for a, b in shapes for k in (a * b, a)], dim=1))
    return [(next(pieces).unflatten(1, shape), next(pieces)) for shape in shapes]


def run_mlps(x: Tensor, layers: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """What goes into each layer of MLPs with ReLU, `[m, n, inputs]`, and their output."""
    units = [x.expand(len(layers[0][0]), -1, -1)]
    for weight, bias in layers:
        last = len(units) == len(layers)
        out = torch.baddbmm(bias[:, None], units[-1], weight.mT)
        units.append(out if last else out.relu())
    return units


def train_mlps_(
    x: Tensor,
    y: Tensor,
    sizes: Sequence[int],
    parameters: Tensor,
    exp_avgs: Tensor,
    exp_avg_sqs: Tensor,
    step: int,
    epochs: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> Tensor:
    """Full-batch torch.optim.Adam on the mean squared error of MLPs with ReLU, in place.

    Each row of the parameters and of Adam's state is one network's, see `split_mlps`; `step` counts
    the steps before. Returns the losses before each step, float64 `[m, epochs]`.
    """
    losses = [x.new_empty((len(parameters), 0), dtype=torch.float64)]
    for t in range(step + 1, step + epochs + 1):
        layers = split_mlps(parameters, sizes)
        *units, output = run_mlps(x, layers)
        error = output - y
        losses.append(error.double().square().mean((1, 2))[:, None])
        slope = error * (2 / y.numel())
        gradients: list[Tensor] = []
        for (weight, _), unit in zip(reversed(layers), reversed(units), strict=True):
            gradients = [(slope.mT @ unit).flatten(1), slope.sum(1), *gradients]
            slope = (slope @ weight) * (unit > 0)
        gradient = torch.cat(gradients, dim=1)
        exp_avgs.copy_(beta1 * exp_avgs + (1 - beta1) * gradient)
        exp_avg_sqs.copy_(beta2 * exp_avg_sqs + (1 - beta2) * gradient.square())
        denominator = exp_avg_sqs.sqrt() / (1 - beta2**t) ** 0.5 + eps
        parameters.sub_(lr / (1 - beta1**t) * exp_avgs / denominator)
    return torch.cat(losses, dim=1)
