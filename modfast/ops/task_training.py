"""Operator family `train_mlps_`: many small networks trained at once.

Training a network of a few hundred weights on some thousand samples costs torch far more in
memory traffic and calls than in arithmetic. Here each network goes through all epochs on one
thread, block of samples by block of samples, with everything in the caches next to its core.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from modfast import checks
from modfast._extension import operator

TRAINING_DTYPES = (torch.float32, torch.float64)


def _fake(x: Tensor, y: Tensor, *rest: Any) -> Tensor:
    _, parameters, _, _, _, epochs, *_ = rest
    return x.new_empty((parameters.shape[0], epochs), dtype=torch.float64)


_train = operator("train_mlps_", _fake)


def train_mlps_(
    x: Tensor,
    y: Tensor,
    sizes: Sequence[int],
    parameters: Tensor,
    exp_avgs: Tensor,
    exp_avg_sqs: Tensor,
    step: int = 0,
    epochs: int = 1,
    lr: float = 1e-2,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> Tensor:
    """Trains m MLPs with ReLU by full-batch Adam on the mean squared error, in place.

    Args:
        x: samples all of them are trained on, float32 or float64 `[n, sizes[0]]`, finite.
        y: targets `[n, sizes[-1]]`, finite.
        sizes: widths from the input to the output.
        parameters: `[m, p]`, contiguous; a row holds one network's weights `[outputs, inputs]` and
            biases, layer by layer, as `torch.nn.utils.parameters_to_vector` gives them.
        exp_avgs: Adam's state, as the parameters; zeros before the first step.
        exp_avg_sqs: the same of the squares.
        step: the steps taken before.
        epochs: steps to take; a few calls give the same numbers as one.
        lr: Adam's, as the next two.
        betas: in [0, 1).
        eps: at least 0.

    Returns:
        The losses before each step, float64 `[m, epochs]`. All results are the same bits for any
        number of threads.

    Raises:
        TypeError: dtypes other than those above.
        ValueError: shapes or devices that do not match, no samples, numbers out of range,
            parameters that are not contiguous, a tensor that requires a gradient.

    Source: N4, whose networks are trained one by one.

    Example:
        >>> import torch
        >>> x, parameters = torch.ones(1, 1), torch.zeros(1, 2)
        >>> train_mlps_(x, x, [1, 1], parameters, *torch.zeros(2, 1, 2), lr=0.5)
        tensor([[1.]], dtype=torch.float64)
        >>> parameters  # weight and bias
        tensor([[0.5000, 0.5000]])
    """
    tensors = {"x": x, "y": y, "parameters": parameters}
    tensors |= {"exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs}
    for name, tensor in tensors.items():
        checks.dense(name, tensor)
    sizes = checks.several("sizes", sizes)
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise TypeError(f"betas must be a pair of numbers, got {checks.shown(betas)}")
    _check(tensors, sizes, step, epochs)
    options = {"lr": lr, "betas[0]": betas[0], "betas[1]": betas[1], "eps": eps}
    for name, value in options.items():
        if checks.finite_number(name, value) < 0 or (name.startswith("betas") and value >= 1):
            raise ValueError(f"{name} must be at least 0, a beta also below 1, got {value}")
    losses: Tensor = _train(
        x.contiguous(),
        y.contiguous(),
        list(sizes),
        parameters,
        exp_avgs,
        exp_avg_sqs,
        step,
        epochs,
        float(lr),
        float(betas[0]),
        float(betas[1]),
        float(eps),
    )
    return losses


def _check(tensors: dict[str, Tensor], sizes: Sequence[int], step: int, epochs: int) -> None:
    x, parameters = tensors["x"], tensors["parameters"]
    widths = [checks.count(f"sizes[{i}]", size) for i, size in enumerate(sizes)]
    if len(widths) < 2:
        raise ValueError(f"sizes must hold at least two widths, got {list(sizes)}")
    for name, value in (("step", step), ("epochs", epochs)):
        if checks.integer(name, value) < 0:
            raise ValueError(f"{name} must be at least 0, got {value!r:.40}")
        if value >= 2**62:
            raise ValueError(f"{name} must be below 2**62, got {value!r:.40}")
    n_parameters = sum((a + 1) * b for a, b in pairwise(widths))
    rows = parameters.shape[0] if parameters.dim() else 0
    n = x.shape[0] if x.dim() else 0
    if n == 0:
        raise ValueError(f"x must have at least one sample, got shape {tuple(x.shape)}")
    shapes = {"x": (n, widths[0]), "y": (n, widths[-1])}
    for name, tensor in tensors.items():
        shape = shapes.get(name, (rows, n_parameters))
        if tensor.dtype not in TRAINING_DTYPES or tensor.dtype != x.dtype:
            raise TypeError(
                f"{name} must be float32 or float64, and as x {x.dtype}, got {tensor.dtype}"
            )
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
        if tensor.device != x.device:
            raise ValueError(f"{name} must be on the device of x, {x.device}, got {tensor.device}")
        if name not in shapes and (checks.is_negated(tensor) or not tensor.is_contiguous()):
            raise ValueError(f"{name} must be contiguous, got strides {tensor.stride()}")
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name} requires a gradient, and this operator has none; detach it, or call "
                "under torch.no_grad()"
            )
