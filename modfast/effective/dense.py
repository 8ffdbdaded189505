"""Effective information's steps on dense matrices: for small layers, and to see what is meant."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from modfast import checks
from modfast.effective.layers import is_layer, require_real, shape_of
from modfast.effective.wiring import Norm
from modfast.network.interrupts import under
from modfast.network.names import modules_of
from modfast.network.turns import alone
from modfast.network.weights import current_weight, has_weight, plain_layer

MAX_MEMORY = 2**30
_CELLS_AT_ONCE = 2**22
_SLACK = 1e-3


@under(torch.no_grad)
def connectivity_matrix(
    module: nn.Module,
    input_shape: Sequence[int] | int,
    *,
    channel_mixing: bool = False,
    max_memory: int | None = None,
) -> Tensor:
    """A layer's weights as a dense matrix of in-units by out-units.

    Entry (i, j) is what in-unit i adds to out-unit j for each unit of its own value; units are
    numbered as the flattened input and output.

    Args:
        module: a linear, convolution, transposed convolution or average pooling layer, with any
            padding mode.
        input_shape: of the layer's input, without the batch axis.
        channel_mixing: for average pooling, whether every channel is connected to every channel.
        max_memory: bytes that the matrix may take, by default 2^30.

    Returns:
        float64 `[n_in, n_out]`, on the module's device.

    Raises:
        TypeError: `module` is of another kind, `input_shape` is no shape.
        ValueError: an input that does not fit, weights that are not finite, a matrix of more than
            `max_memory`.

    Source: N2, the effective-information notebook.

    Example:
        >>> import torch
        >>> conv = torch.nn.Conv1d(1, 1, 2, bias=False)
        >>> _ = conv.weight.data.copy_(torch.tensor([[[1.0, 2.0]]]))
        >>> connectivity_matrix(conv, (1, 3))
        tensor([[1., 0.],
                [2., 1.],
                [0., 2.]], dtype=torch.float64)
    """
    if not isinstance(module, nn.Module) or not is_layer(module):
        raise TypeError(
            f"module must be a linear, convolution, transposed convolution or average pooling "
            f"layer, got {module!r:.80}"
        )
    checks.flag("channel_mixing", channel_mixing)
    shape = shape_of(input_shape)
    n_in = math.prod(shape)
    memory = MAX_MEMORY if max_memory is None else checks.count("max_memory", max_memory)
    _require_room(memory, n_in, 1)
    layer, device = module, torch.device("cpu")
    if has_weight(module):
        with alone(modules_of(module)):
            weight = current_weight(module).detach()
            require_real("module", weight)
            checks.finite("weight", weight)
            device = weight.device
            # What a layer without a bias makes of one-hot inputs are its rows.
            layer = plain_layer(module, weight.to(torch.float64, copy=True), None)
    with torch.autocast(device.type, enabled=False):
        try:
            one = torch.zeros(1, *shape, dtype=torch.float64, device=device)
            n_out = layer.forward(one).numel()
        except (RuntimeError, IndexError) as error:
            raise ValueError(f"input_shape={shape} does not fit the module: {error}") from error
        _require_room(memory, n_in, n_out)
        matrix = torch.empty(n_in, n_out, dtype=torch.float64, device=device)
        rows = max(1, _CELLS_AT_ONCE // max(n_in, n_out))
        for start in range(0, n_in, rows):
            part = matrix[start : start + rows]
            x = torch.zeros(len(part), n_in, dtype=torch.float64, device=device)
            x.diagonal(start).fill_(1.0)
            part.copy_(layer.forward(x.unflatten(1, shape)).flatten(1))
    if channel_mixing and isinstance(module, (nn.AvgPool1d, nn.AvgPool2d)):
        channels = shape[0]
        one = matrix[: n_in // channels, : n_out // channels]
        return one.repeat(channels, channels)
    return matrix


def normalize_rows(weight: Tensor, norm: Norm = "linear") -> Tensor:
    """Rows of a connectivity matrix as distributions over out-units.

    Args:
        weight: `[n_in, n_out]`, as `connectivity_matrix` gives it: the transpose of a
            torch.nn.Linear's weight.
        norm: "linear", ReLU and division by the row's sum, where rows without a positive weight
            become zero; "softmax" over the row; "sigmoid" and division by the row's sum. The last
            two give weight to absent connections too, as exp(0) and sigmoid(0).

    Returns:
        float64 `[n_in, n_out]`.

    Raises:
        TypeError: `weight` is no floating tensor.
        ValueError: another shape or norm, weights that are not finite.

    Source: N2, the effective-information notebook.

    Example:
        >>> import torch
        >>> normalize_rows(torch.tensor([[1.0, 3.0], [-1.0, 0.0]]))
        tensor([[0.2500, 0.7500],
                [0.0000, 0.0000]], dtype=torch.float64)
    """
    checks.floating("weight", weight)
    if weight.dim() != 2:
        raise ValueError(f"weight must be [n_in, n_out], got shape {tuple(weight.shape)}")
    checks.choice("norm", norm, get_args(Norm))
    checks.finite("weight", weight.detach())
    weight = weight.double()
    if norm == "softmax":
        return weight.softmax(1)
    weight = weight.relu() if norm == "linear" else weight.sigmoid()
    total = weight.sum(1, keepdim=True)
    return weight / total.where(total > 0, 1.0)


def entropy_bits(p: Tensor, dim: int = 0) -> Tensor:
    """H(p) = -sum p log2 p along a dimension, in bits.

    Args:
        p: probabilities; along `dim` they sum to 1, or are all 0, which has no entropy.
        dim: the dimension to sum over.

    Returns:
        float64, of p's shape without `dim`.

    Raises:
        TypeError: `p` is no floating tensor.
        ValueError: values that are not finite or negative, sums that are not 1, no such dimension.

    Source: N2, the effective-information notebook.

    Example:
        >>> import torch
        >>> entropy_bits(torch.full((256,), 1 / 256))
        tensor(8., dtype=torch.float64)
    """
    checks.floating("p", p)
    dim = checks.integer("dim", dim)
    if not -p.dim() <= dim < p.dim():
        raise ValueError(f"dim must be a dimension of p, which has {p.dim()}, got {dim}")
    checks.finite("p", p.detach())
    p = p.double()
    if (p < 0).any():
        raise ValueError(f"p must not be negative, got {p.min().item()}")
    total = p.sum(dim)
    wrong = ((total - 1).abs() > _SLACK) & (total != 0)
    if wrong.any():
        raise ValueError(f"p must sum to 1 along dim={dim}, got {total[wrong][0].item()}")
    entropy: Tensor = torch.special.entr(p).sum(dim) / math.log(2)
    return entropy


def _require_room(memory: int, n_in: int, n_out: int) -> None:
    if n_in * n_out * 8 > memory:
        raise ValueError(
            f"max_memory must be at least the matrix's {n_in * n_out * 8} bytes, got {memory} for "
            f"{n_in} x {n_out} entries; a smaller input_shape has fewer, and effective_information "
            "needs no matrix"
        )
