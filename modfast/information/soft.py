"""Differentiable information: values that lie in several bins at once."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from modfast import checks
from modfast.information.binning import (
    Binning,
    Range,
    matrices,
    not_finite,
    refuse_not_finite,
)
from modfast.information.counts import Pairing
from modfast.precision import precise, product
from modfast.reference import compute_dtype

Kernel: TypeAlias = Literal["b-spline", "gaussian"]


@precise
def soft_mutual_information(
    x: Tensor,
    y: Tensor,
    bins: int = 10,
    *,
    window: float = 1.0,
    kernel: Kernel = "b-spline",
    range: Range | None = None,
    pairing: Pairing = "aligned",
) -> Tensor:
    """Mutual information of softly binned values, in nats: a loss term with a gradient.

    A value counts in bin b with weight w_b(x), the share in that bin of a window around it, so that
    the weights of a value sum to 1; p(a, b) = mean w_a(x) w_b(y) and I = sum p log(p / (p_x p_y)).
    As the window narrows, this converges to `mutual_information` with the same bins; the wider it
    is, the smoother is the gradient, and the smaller the information.

    Args:
        x: float32, float64, bfloat16 or float16 values `[n, dx]` or `[n]`.
        y: `[n, dy]` or `[n]`, the same samples.
        bins: number of bins of each, from 2 on.
        window: width of the window in bins, above 0: for "b-spline" its support is three of them,
            for "gaussian" it is the standard deviation.
        kernel: "b-spline", the quadratic one, whose weights of window 1 are cubic B-splines (Daub
            et al., 2004), or "gaussian", a Parzen window.
        range: as in `joint_histogram`. The gradient takes account of a range that is found.
        pairing: "aligned" and "all" pool columns, "pairwise" gives a matrix, whose mean is a
            measure of what two groups of units share; see `joint_histogram`.

    Returns:
        A scalar, for "pairwise" `[dx, dy]`; float64 for float64 values, else float32.
        Differentiable with respect to x and y.

    Raises:
        TypeError: values of another type.
        ValueError: as `mutual_information`; a window that is not above 0.

    Source: Daub, Steuer, Selbig and Kloska (2004).

    Example:
        >>> import torch
        >>> x = torch.linspace(-1, 1, 100, dtype=torch.float64).requires_grad_()
        >>> information = soft_mutual_information(x, x.square(), bins=4, window=0.1)
        >>> information.backward()
        >>> f"{information:.2f}", bool(x.grad.isfinite().all())
        ('0.60', True)
    """
    return _soft_terms(x, y, bins, window, kernel, range, pairing)[1]


@precise
def soft_conditional_entropy(
    x: Tensor,
    y: Tensor,
    bins: int = 10,
    *,
    window: float = 1.0,
    kernel: Kernel = "b-spline",
    range: Range | None = None,
    pairing: Pairing = "aligned",
) -> Tensor:
    """H(x | y) = H(x) - I(x; y) of softly binned values, in nats: a loss term with a gradient.

    Arguments, result and errors are those of `soft_mutual_information`; `conditional_entropy` is
    its limit for narrow windows.

    Source: Daub, Steuer, Selbig and Kloska (2004).

    Example:
        >>> import torch
        >>> x = torch.linspace(-1, 1, 100, dtype=torch.float64)
        >>> f"{soft_conditional_entropy(x, 3 - 2 * x, bins=4, window=0.001):.2f}"
        '0.00'
    """
    x_entropy, mutual = _soft_terms(x, y, bins, window, kernel, range, pairing)
    return x_entropy - mutual


def _soft_terms(
    x: Tensor,
    y: Tensor,
    bins: int,
    window: float,
    kernel: Kernel,
    range: Range | None,
    pairing: Pairing,
) -> tuple[Tensor, Tensor]:
    """H(x) and I(x; y)."""
    checks.choice("pairing", pairing, get_args(Pairing))
    x, y = matrices(x, y, differentiable=True)
    if pairing == "aligned" and x.shape != y.shape:
        raise ValueError(
            f"x and y must have as many features with pairing='aligned', "
            f"got {x.shape[1]} and {y.shape[1]}"
        )
    if range is None:
        range = "column" if pairing == "pairwise" else "global"
    binning = Binning(bins, range)
    wx = weights("x", x, binning, window, kernel)
    wy = weights("y", y, binning, window, kernel)
    dtype = torch.promote_types(wx.dtype, wy.dtype)
    wx, wy = wx.to(dtype), wy.to(dtype)
    if pairing == "aligned":
        joint = product(wx.flatten(0, 1).T, wy.flatten(0, 1))
    elif pairing == "all":
        joint = product(wx.sum(1).T, wy.sum(1))
    else:
        joint = product(wx.flatten(1).T, wy.flatten(1))
        joint = joint.unflatten(0, wx.shape[1:]).unflatten(2, wy.shape[1:]).transpose(1, 2)
    return information(joint)


def information(joint: Tensor) -> tuple[Tensor, Tensor]:
    """H(x) and I(x; y) of joint sums of weights `[..., bins, bins]`."""
    p = joint / joint.sum((-2, -1), keepdim=True)
    x_entropy, y_entropy = _entropy(p.sum(-1)), _entropy(p.sum(-2))
    return x_entropy, x_entropy + y_entropy - _entropy(p.flatten(-2))


def weights(
    argument: str, values: Tensor, binning: Binning, window: float, kernel: Kernel
) -> Tensor:
    """How much of each value `[n, d]` lies in each bin: `[n, d, bins]`."""
    checks.choice("kernel", kernel, get_args(Kernel))
    window = checks.finite_number("window", window)
    if window <= 0:
        raise ValueError(f"window must be above 0, got {window}")
    return _weights(_positions(argument, values, binning), binning.bins, window, kernel)


def _entropy(p: Tensor) -> Tensor:
    # An empty bin has no gradient, where p log p would have an infinite one.
    return -(p * torch.where(p > 0, p, 1).log()).sum(-1)


def _positions(argument: str, values: Tensor, binning: Binning) -> Tensor:
    """Where in its range a value lies, in bins from the lower bound."""
    refuse_not_finite(argument, not_finite(values))
    values = values.to(compute_dtype(values))
    bounds = binning.bounds_for(argument, values)
    if bounds is not None:
        low, high = bounds.to(values.dtype).unbind(1)
    else:
        low, high = values.aminmax(dim=0) if binning.range == "column" else values.aminmax()
    # Halves, because huge values have a difference that overflows.
    width = high / 2 - low / 2
    scale = torch.where(width == 0, 1, width)
    return (values / 2 - low / 2) / scale * binning.bins


def _weights(positions: Tensor, bins: int, window: float, kernel: Kernel) -> Tensor:
    """w_b of each value: `[n, d]` to `[n, d, bins]`."""
    edges = torch.arange(1, bins, dtype=positions.dtype, device=positions.device)
    z = (positions[..., None] - edges) / window
    if kernel == "gaussian":
        below = torch.erf(z / math.sqrt(2)) / 2 + 0.5
    else:
        # The quadratic B-spline's integral: a cubic on each of its three pieces.
        z = z.clamp(-1.5, 1.5)
        outer = (1.5 - z.abs()) ** 3 / 6
        inner = 0.5 + z * (0.75 - z * z / 3)
        below = torch.where(z.abs() <= 0.5, inner, torch.where(z > 0, 1 - outer, outer))
    # How much of the window lies above each edge; differences are what lies in each bin.
    ends = below.new_ones((*positions.shape, 1)), below.new_zeros((*positions.shape, 1))
    return -torch.cat([ends[0], below, ends[1]], dim=-1).diff(dim=-1)
