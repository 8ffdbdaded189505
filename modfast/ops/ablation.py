"""Operator family `ablation_sweep`: ablations that change one layer's inputs by a rank-1 term.

Setting unit i of a layer's inputs h to a value, or taking the part of h along a direction away,
adds scales[:, a] updates[a] to the layer's outputs: for units (value - h_i) and the weight's column
i, for directions -(h·v) and W v. So no network runs again for an ablation, and nothing of the size
samples times ablations times width lies in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from modfast import checks
from modfast._extension import operator
from modfast.reference import ACTIVATIONS

SWEEP_DTYPES = (torch.float32, torch.float64)
FLOAT_DTYPES = (*SWEEP_DTYPES, torch.bfloat16, torch.float16)


def _fake_sweep(
    logits: Tensor, scales: Tensor, updates: Tensor, targets: Tensor | None, per_sample: bool
) -> tuple[Tensor, Tensor]:
    n_terms, (n, n_ablations) = 3 if targets is None else 5, scales.shape
    shape = (n_terms, n, n_ablations) if per_sample else (n_terms, n_ablations)
    n_classes = 0 if targets is None else logits.shape[1]
    return (
        logits.new_empty(shape, dtype=torch.float64),
        logits.new_empty((n_ablations, n_classes), dtype=torch.float64),
    )


def _fake_sweep_hidden(logits: Tensor, hidden: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    scales, updates, _, _, targets, per_sample = rest
    return _fake_sweep(logits, scales, updates, targets, per_sample)


def _fake_terms(
    logits: Tensor, ablated: Tensor, targets: Tensor | None, per_sample: bool
) -> tuple[Tensor, Tensor]:
    scales = logits.new_empty(logits.shape[0], ablated.shape[0])
    return _fake_sweep(logits, scales, ablated, targets, per_sample)


_terms = operator("logit_terms", _fake_terms)
_sweep = operator("ablation_sweep", _fake_sweep)
_sweep_hidden = operator("ablation_sweep_hidden", _fake_sweep_hidden)


def ablation_sweep(
    logits: Tensor,
    scales: Tensor,
    updates: Tensor,
    targets: Tensor | None = None,
    per_sample: bool = False,
) -> tuple[Tensor, Tensor]:
    """What ablations do that turn logits z into z + scales[:, a] updates[a].

    Args:
        logits: of the whole network, float32 or float64 `[n, c]`, finite.
        scales: `[n, a]`.
        updates: `[a, c]`.
        targets: int64 classes `[n]`.
        per_sample: keep the terms of each sample apart.

    Returns:
        The sums over samples of, in nats, H(p) - H(q), KL(q | p) and KL(p | q), where p are the
        class probabilities before and q those after, and with targets of the loss -log q(target)
        and of 1 where the target has the largest logit: float64 `[3 or 5, a]`, or
        `[3 or 5, n, a]` with `per_sample`. Then the correct samples of each class, float64
        `[a, c]` (`[a, 0]` without targets). On the CPU, both are the same bits for any number of
        threads. KLs are at least 0 and never infinite.

    Raises:
        TypeError: dtypes other than those above.
        ValueError: shapes or devices that do not match, a tensor that requires a gradient: there
            is none.
        RuntimeError: targets outside of the classes, on the CPU. A GPU is not waited for: there
            their losses, and the sums of these, are NaN.

    Source: N0, its ablations of units and directions.

    Example:
        >>> import torch
        >>> z = torch.zeros(1, 2)
        >>> terms, _ = ablation_sweep(z, torch.ones(1, 1), torch.tensor([[30.0, 0.0]]))
        >>> terms[0]  # all of the entropy ln 2 is lost
        tensor([0.6931], dtype=torch.float64)
    """
    tensors = {"logits": logits, "scales": scales, "updates": updates}
    targets = _check(tensors, targets, per_sample)
    n, c = logits.shape
    a = scales.shape[1]
    _check_shapes(tensors, {"scales": (n, a), "updates": (a, c)})
    found: tuple[Tensor, Tensor] = _sweep(
        logits.contiguous(), scales.contiguous(), updates.contiguous(), targets, per_sample
    )
    return found


def ablation_sweep_hidden(
    logits: Tensor,
    hidden: Tensor,
    scales: Tensor,
    updates: Tensor,
    activation: str,
    weight: Tensor,
    targets: Tensor | None = None,
    per_sample: bool = False,
) -> tuple[Tensor, Tensor]:
    """What ablations do that reach the logits through one hidden layer.

    They turn its pre-activations h into h + scales[:, a] updates[a] and so the logits into
    z + (act(h + scales[:, a] updates[a]) - act(h)) Wᵀ.

    Args:
        logits: of the whole network, float32 or float64 `[n, c]`, finite.
        hidden: pre-activations of the last hidden layer `[n, m]`.
        scales: `[n, a]`.
        updates: `[a, m]`.
        activation: a name of `modfast.reference.ACTIVATIONS`.
        weight: of the last layer, `[c, m]`.
        targets: int64 classes `[n]`.
        per_sample: keep the terms of each sample apart.

    Returns:
        What `ablation_sweep` does. On a GPU, with more than 10 classes, products with the weight
        are torch's, as exact as `torch.set_float32_matmul_precision` says.

    Raises:
        TypeError, ValueError, RuntimeError: as `ablation_sweep`; ValueError for an unknown
            activation.

    Source: N0, its ablations of units and directions.

    Example:
        >>> import torch
        >>> one = torch.ones(1, 1)
        >>> z, weight = torch.zeros(1, 2), torch.tensor([[0.0], [1.0]])
        >>> terms, _ = ablation_sweep_hidden(z, -one, one, one, "relu", weight)
        >>> terms[:, 0].tolist()  # the unit was off and stays off
        [0.0, 0.0, 0.0]
    """
    tensors = {"logits": logits, "hidden": hidden, "scales": scales, "updates": updates}
    tensors["weight"] = weight
    targets = _check(tensors, targets, per_sample)
    (n, c), m, a = logits.shape, hidden.shape[1], scales.shape[1]
    _check_shapes(
        tensors, {"hidden": (n, m), "scales": (n, a), "updates": (a, m), "weight": (c, m)}
    )
    checks.choice("activation", activation, ACTIVATIONS)
    found: tuple[Tensor, Tensor] = _sweep_hidden(
        logits.contiguous(),
        hidden.contiguous(),
        scales.contiguous(),
        updates.contiguous(),
        activation,
        weight.contiguous(),
        targets,
        per_sample,
    )
    return found


def logit_terms(
    logits: Tensor, ablated: Tensor, targets: Tensor | None = None, per_sample: bool = False
) -> tuple[Tensor, Tensor]:
    """What ablations do that turn logits `[n, c]` into others `[a, n, c]`.

    Args:
        logits: of the whole network, floating `[n, c]`, finite.
        ablated: after each ablation, `[a, n, c]`, of the same dtype.
        targets: int64 classes `[n]`.
        per_sample: keep the terms of each sample apart.

    Returns:
        What `ablation_sweep` does. Of bfloat16 and float16 the values are taken as float32.

    Raises:
        TypeError, ValueError, RuntimeError: as `ablation_sweep`.

    Source: N0, its ablations of units and directions.

    Example:
        >>> import torch
        >>> terms, _ = logit_terms(torch.zeros(1, 2), torch.tensor([[[30.0, 0.0]]]))
        >>> terms[0]  # all of the entropy ln 2 is lost
        tensor([0.6931], dtype=torch.float64)
    """
    checks.dense("logits", logits)
    checks.dense("ablated", ablated)
    if ablated.dim() < 2:
        raise ValueError(f"ablated must be [a, n, c], got shape {tuple(ablated.shape)}")
    flat = {"logits": logits, "ablated": ablated.flatten(0, -2)}
    targets = _check(flat, targets, per_sample, FLOAT_DTYPES)
    if ablated.dim() != 3 or ablated.shape[1:] != logits.shape:
        raise ValueError(
            f"ablated must have shape [a, {logits.shape[0]}, {logits.shape[1]}], "
            f"got {tuple(ablated.shape)}"
        )
    found: tuple[Tensor, Tensor] = _terms(
        logits.contiguous(), ablated.contiguous(), targets, per_sample
    )
    return found


def _check(
    tensors: Mapping[str, Tensor],
    targets: Tensor | None,
    per_sample: bool,
    dtypes: tuple[torch.dtype, ...] = SWEEP_DTYPES,
) -> Tensor | None:
    logits = tensors["logits"]
    checks.flag("per_sample", per_sample)
    for name, tensor in tensors.items():
        checks.dense(name, tensor)
        if tensor.dtype not in dtypes or tensor.dtype != logits.dtype:
            *most, last = (str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise TypeError(
                f"{name} must be {', '.join(most)} or {last}, and as logits {logits.dtype}, "
                f"got {tensor.dtype}"
            )
        if tensor.dim() != 2:
            raise ValueError(f"{name} must have 2 dimensions, got shape {tuple(tensor.shape)}")
        if tensor.device != logits.device:
            raise ValueError(
                f"{name} must be on the device of logits, {logits.device}, got {tensor.device}"
            )
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name} requires a gradient, and this operator has none; detach it, or call "
                "under torch.no_grad()"
            )
    if targets is None:
        return None
    checks.tensor("targets", targets, torch.int64)
    if targets.shape != logits.shape[:1] or targets.device != logits.device:
        raise ValueError(
            f"targets must have shape {tuple(logits.shape[:1])} on {logits.device}, "
            f"got {tuple(targets.shape)} on {targets.device}"
        )
    return targets.contiguous()


def _check_shapes(tensors: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(tensors[name].shape)}")
