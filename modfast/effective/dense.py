"""Effective information's steps on dense matrices: for small layers, and to see what is meant."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from modfast import checks
from modfast.effective.layers import is_layer, run_once, shape_of
from modfast.effective.wiring import Norm
from modfast.sites import in_mode

_MOST_CELLS = 2**27
_CELLS_AT_ONCE = 2**22
_SLACK = 1e-3


def connectivity_matrix(
    module: nn.Module, input_shape: Sequence[int] | int, *, channel_mixing: bool = False
) -> Tensor:
    """A layer's weights as a dense matrix of in-units by out-units.

    Entry (i, j) is what in-unit i adds to out-unit j for each unit of its own value; units are
    numbered as the flattened input and output.

    Args:
        module: a linear, convolution, transposed convolution or average pooling layer, with any
            padding mode.
        input_shape: of the layer's input, without the batch axis.
        channel_mixing: for average pooling, whether every channel is connected to every channel.

    Returns:
        float64 `[n_in, n_out]`, on the module's device.

    Raises:
        TypeError: `module` is of another kind, `input_shape` is no shape.
        ValueError: an input that does not fit, weights that are not finite, a matrix of more than
            2^27 entries (1 GB).

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
    for name, parameter in module.named_parameters():
        checks.finite(name, parameter.detach())
    shape = shape_of(input_shape)
    n_in, n_out = math.prod(shape), run_once(module, shape).numel()
    if n_in * n_out > _MOST_CELLS:
        raise ValueError(
            f"connectivity_matrix is for at most {_MOST_CELLS} entries, got {n_in} x {n_out}; "
            "effective_information needs no matrix"
        )
    # What a layer without a bias makes of one-hot inputs are its rows.
    values = {name: parameter.detach().double() for name, parameter in module.named_parameters()}
    if "bias" in values:
        values["bias"] = torch.zeros_like(values["bias"])
    device = next((value.device for value in values.values()), None)
    matrix = torch.empty(n_in, n_out, dtype=torch.float64, device=device)
    rows = max(1, _CELLS_AT_ONCE // max(n_in, n_out))
    with in_mode(module, training=False), torch.no_grad():
        for start in range(0, n_in, rows):
            part = matrix[start : start + rows]
            x = torch.zeros(len(part), n_in, dtype=torch.float64, device=device)
            x.diagonal(start).fill_(1.0)
            part.copy_(functional_call(module, values, (x.unflatten(1, shape),)).flatten(1))
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
    _require_floating("weight", weight)
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
    _require_floating("p", p)
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise TypeError(f"dim must be an integer, got {dim!r}")
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


def _require_floating(argument: str, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{argument} must be a tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{argument} must have floating values, got {value.dtype}")
