"""Operator family `wiring_sums`: rows and columns of a layer's normalized weights, summed.

A convolution's dense matrix repeats its few weights at every position. Its rows and columns are
computed once for each kind of position, from the weights alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from modfast import checks
from modfast._extension import operator

WIRING_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
WIRING_NORMS = ("linear", "softmax", "sigmoid")


def _fake(
    weight: Tensor,
    scale: Tensor | None,
    sources: Tensor,
    n_in: Tensor,
    n_out: Tensor,
    norm: str,
    blocks: int,
    ins: int,
    outs: int,
) -> Tensor:
    return weight.new_empty(3, dtype=torch.float64)


_sums = operator("wiring_sums", _fake)


def wiring_sums(
    weight: Tensor,
    scale: Tensor | None,
    sources: Tensor,
    n_in: Tensor,
    n_out: Tensor,
    norm: str = "linear",
    blocks: int = 1,
    ins: int = 1,
    outs: int = 1,
) -> Tensor:
    """Sums over a layer's rows and columns of normalized weights, without its dense matrix.

    Of in-units i and out-units j with normalized weights p_ij, which are f(w_ij) divided by row i's
    sum, with f(0) for absent connections: H_i = -sum_j p_ij ln p_ij and c_j = sum_i p_ij.

    Args:
        weight: float32, float64, bfloat16 or float16 `[groups, outputs, inputs, taps]`, finite, and
            with "softmax" from -600 to 600 (times `scale`).
        scale: multiplies the weights, float64 `[groups, outputs]`; None for 1.
        sources: int64 `[taps, O]`: of which kind the in-position is that an out-position of each of
            O kinds is joined to by a tap, from 0; C for none.
        n_in: how many in-positions are of each of C kinds, float64 `[C]`.
        n_out: how many out-positions are of each kind, float64 `[O]`.
        norm: f, "linear" for ReLU, "softmax" for exp, or "sigmoid".
        blocks: how often all of it is repeated for other in- and out-units, which are not joined.
        ins: copies of each in-unit within a block that have the same weights.
        outs: the same of each out-unit.

    Returns:
        The sums of H_i, of c_j and of c_j ln c_j, in nats, float64 `[3]`. On the CPU they are the
        same bits for any number of threads.

    Raises:
        TypeError: dtypes other than those above.
        ValueError: shapes or devices that do not match, an unknown norm, numbers below 1, a weight
            that requires a gradient.
        RuntimeError: sources out of range.

    Source: N2, whose matrices are dense.

    Example:
        >>> import torch
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> weight = torch.ones(1, 2, 3, 1)  # 3 inputs, each to 2 outputs
        >>> wiring_sums(weight, None, torch.zeros(1, 1, dtype=torch.int64), one, one).tolist()
        [2.0794415416798357, 3.0, 1.2163953243244932]
    """
    _check(weight, scale, sources, n_in, n_out, norm)
    for name, value in (("blocks", blocks), ("ins", ins), ("outs", outs)):
        checks.count(name, value)
    scale = None if scale is None else scale.contiguous()
    kinds = sources.contiguous(), n_in.contiguous(), n_out.contiguous()
    sums: Tensor = _sums(weight.contiguous(), scale, *kinds, norm, blocks, ins, outs)
    return sums


def _check(
    weight: Tensor, scale: Tensor | None, sources: Tensor, n_in: Tensor, n_out: Tensor, norm: str
) -> None:
    checks.tensor("weight", weight, *WIRING_DTYPES)
    for name, each in (("sources", sources), ("n_in", n_in), ("n_out", n_out)):
        checks.dense(name, each)
    if weight.dim() != 4:
        raise ValueError(
            f"weight must be [groups, outputs, inputs, taps], got shape {tuple(weight.shape)}"
        )
    if weight.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "weight requires a gradient, and this operator has none; detach it, or call under "
            "torch.no_grad()"
        )
    checks.choice("norm", norm, WIRING_NORMS)
    groups, outputs, _, taps = weight.shape
    wanted: list[tuple[str, Tensor, torch.dtype, tuple[int, ...]]]
    wanted = [("n_in", n_in, torch.float64, (n_in.numel(),))]
    wanted.append(("n_out", n_out, torch.float64, (n_out.numel(),)))
    wanted.append(("sources", sources, torch.int64, (taps, n_out.numel())))
    if scale is not None:
        wanted.append(("scale", scale, torch.float64, (groups, outputs)))
    for name, tensor, dtype, shape in wanted:
        checks.tensor(name, tensor, dtype)
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
        if tensor.device != weight.device:
            raise ValueError(
                f"{name} must be on the device of weight, {weight.device}, got {tensor.device}"
            )
