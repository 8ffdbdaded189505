"""The two inputs that edges are compared on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import torch
from torch import Tensor, nn

from modfast import checks
from modfast.circuits.network import Intervention
from modfast.network.inputs import Inputs, is_stream, read_batches


def may_be_chain(clean: Inputs) -> bool:
    """Whether a chain could take these: no tokens, no arguments by name, and one batch."""
    if is_stream(clean) or isinstance(clean, (tuple, Mapping)):
        return False
    return not isinstance(clean, Tensor) or clean.is_floating_point()


def check_intervention(intervention: str, corrupted: Inputs | None) -> None:
    """Refuses what is none, and patching from nothing.

    Raises:
        ValueError: it is one of these.
    """
    checks.choice("intervention", intervention, get_args(Intervention))
    if corrupted is None and intervention == "patch":
        raise ValueError("corrupted must be given with intervention='patch'")


def checked_inputs(
    model: nn.Module, clean: Tensor, corrupted: Tensor, targets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same, copied where made in inference mode; refuses what this network should not run on.

    Raises:
        TypeError: no tensors, no module.
        ValueError: different shapes, dtypes or devices; not the model's; integers; empty; not
            finite.
    """
    checks.python_module("model", model)
    for argument, x in (("clean", clean), ("corrupted", corrupted)):
        checks.dense(argument, x)
        if x.numel() == 0:
            raise ValueError(f"{argument} must not be empty, got shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(
                f"{argument} must be a floating tensor, whose values edges carry, got {x.dtype}"
            )
        if x.dim() < 2:
            raise ValueError(f"{argument} must be [n, ...], got shape {tuple(x.shape)}")
    if (clean.shape, *_kind(clean)) != (corrupted.shape, *_kind(corrupted)):
        raise ValueError(f"corrupted must be as clean, {told_of(clean)}, got {told_of(corrupted)}")
    parameter = next(model.parameters(), None)
    if parameter is not None and _kind(clean) != _kind(parameter):
        dtype, device = _kind(parameter)
        raise ValueError(f"clean must be as the model, {dtype} on {device}, got {told_of(clean)}")
    if isinstance(targets, str):
        raise TypeError("targets must be a tensor, got str")
    (first,) = read_batches(model, clean, targets, argument="clean")
    (second,) = read_batches(model, corrupted, argument="corrupted")
    return first.args[0], second.args[0], first.targets


def _kind(x: Tensor) -> tuple[torch.dtype, torch.device]:
    return x.dtype, x.device


def told_of(x: Tensor) -> str:
    """An input in a message: dtype, shape and device."""
    return f"{x.dtype} {tuple(x.shape)} on {x.device}"
