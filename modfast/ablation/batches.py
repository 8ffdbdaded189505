"""What a model is run on: one batch of inputs, or many from a DataLoader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from modfast import checks

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any] | Iterable[Any]


@dataclass(frozen=True)
class Batch:
    """Arguments of one forward pass, and the targets if there are any."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    targets: Tensor | None


def is_stream(inputs: object) -> bool:
    """Whether these are many batches (a DataLoader) and not one."""
    return not isinstance(inputs, (Tensor, tuple, Mapping)) and isinstance(inputs, Iterable)


def read_batches(
    inputs: Inputs, targets: Tensor | None, device: torch.device | None, finite: bool = True
) -> Iterator[Batch]:
    """Checked batches on a device; without `finite`, NaN and infinite inputs are let through.

    Raises:
        TypeError: inputs of another kind.
        ValueError: inputs that are not finite, no batches, targets beside a DataLoader.
    """
    if not is_stream(inputs):
        yield _batch("inputs", inputs, targets, device, finite)
        return
    if targets is not None:
        raise ValueError("targets must come with the batches, as pairs, where inputs is a stream")
    empty = True
    for batch in inputs:
        empty = False
        pair = isinstance(batch, (tuple, list)) and len(batch) == 2
        x, y = checks.pair("a batch of inputs", batch) if pair else (batch, None)
        x = tuple(x) if isinstance(x, list) else x
        yield _batch("a batch of inputs", x, y, device, finite)
    if empty:
        raise ValueError("inputs must not be empty, got no batches")


def _batch(
    argument: str,
    inputs: object,
    targets: Tensor | None,
    device: torch.device | None,
    finite: bool,
) -> Batch:
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(inputs, Tensor):
        args = (inputs,)
    elif isinstance(inputs, tuple):
        args = inputs
    elif isinstance(inputs, Mapping):
        kwargs = dict(inputs)
    else:
        raise TypeError(
            f"{argument} must be a tensor, a tuple or mapping of model inputs, or a DataLoader, "
            f"got {type(inputs).__name__}"
        )
    values: list[Any] = [*args, *kwargs.values()]
    nested = not all(isinstance(value, Tensor) for value in values)
    if nested:
        values = tree_leaves(values)
    for tensor in values:
        if isinstance(tensor, Tensor):
            if tensor.dim() and tensor.shape[0] == 0:
                raise ValueError(f"{argument} must not be empty, got shape {tuple(tensor.shape)}")
            if finite:
                checks.finite(argument, tensor)
    if targets is not None and not isinstance(targets, Tensor):
        raise TypeError(f"targets must be a tensor, got {type(targets).__name__}")
    if device is None:
        return Batch(args, kwargs, targets)

    def move(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    if nested:
        return Batch(tree_map(move, args), tree_map(move, kwargs), move(targets))
    moved = {name: move(value) for name, value in kwargs.items()}
    return Batch(tuple(map(move, args)), moved, move(targets))
