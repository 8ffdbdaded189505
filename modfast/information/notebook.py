"""The source notebook's numbers, artefacts included, so that they can be reproduced and shown.

Its entropy has `bins` real bins and its conditional entropy bins - 1; both have an epsilon in the
log. What is right is in `modfast.information.entropies`.
"""

from __future__ import annotations

import math

from torch import Tensor

from modfast.information.binning import Binning, matrices, matrix, not_finite, refuse_not_finite
from modfast.information.counts import joint_counts
from modfast.reference import compute_dtype

_EPSILON = 1e-8


def entropy(argument: str, values: Tensor, binning: Binning) -> Tensor:
    """-sum p log(p + 1e-8) over the bins of `torch.histc`, all columns pooled."""
    values = matrix(argument, values)
    if not values.is_floating_point():
        raise ValueError(
            f"{argument} must hold floating values with rule='notebook', got codes ({values.dtype})"
        )
    values = values.to(compute_dtype(values))
    low, high = values.aminmax()
    width = high - low
    if not math.isfinite(float(width * binning.bins)):
        refuse_not_finite(argument, not_finite(values))
        raise ValueError(
            f"{argument} must span less than {values.dtype} holds with rule='notebook', got "
            f"values from {float(low)} to {float(high)}"
        )
    # torch.histc's own formula, but faster; it does not meet numpy's exact edges. Constants go into
    # one bin, whichever it is.
    codes = (values - low).mul_(binning.bins).div_(width if float(width) else 1)
    codes = codes.int().clamp_(max=binning.bins - 1)
    p = codes.flatten().bincount(minlength=binning.bins).double() / values.numel()
    return -(p * (p + _EPSILON).log()).sum()


def conditional_entropy(x: Tensor, y: Tensor, binning: Binning) -> Tensor:
    """H(x | y) of the first columns of y, over bins - 1 intervals and a wrapped minimum."""
    return conditional_of_counts(joint_counts(x, y, binning, "aligned"))


def conditional_of_counts(counts: Tensor) -> Tensor:
    """-sum p log(p / (p_y + 1e-8) + 1e-8) of joint counts `[..., bins, bins]`."""
    p = counts.double()
    p = p / p.sum((-2, -1), keepdim=True)
    given = p / (p.sum(-2, keepdim=True) + _EPSILON)
    return -(p * (given + _EPSILON).log()).sum((-2, -1))


def joint_entropy(x: Tensor, y: Tensor, binning: Binning) -> Tensor:
    """H(y) + H(x | y)."""
    x, y = matrices(x, y)
    return entropy("y", y, binning) + conditional_entropy(x, y, binning)


def mutual_information(x: Tensor, y: Tensor, binning: Binning) -> Tensor:
    """H(x) - H(x | y)."""
    x, y = matrices(x, y)
    return entropy("x", x, binning) - conditional_entropy(x, y, binning)
