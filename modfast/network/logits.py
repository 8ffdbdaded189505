"""The logits in what a model returned, and which of their rows count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from modfast import checks
from modfast.network.inputs import Batch

Output: TypeAlias = Callable[[Any], Tensor] | str | int | None

IGNORED = -100
"""Targets of this value count nowhere."""


def last_token(output: Any, mask: Tensor | None = None) -> Tensor:
    """For `output=`: the logits at each sample's last position that the attention mask leaves in.

    Args:
        output: what a model returned: logits `[n, t, c]`, or something that has such.
        mask: `[n, t]`, 0 for positions left out; the functions that take `output=` hand over the
            attention mask among the inputs. Without one, the last position of all.

    Returns:
        Logits `[n, c]`.

    Raises:
        TypeError: no logits.
        ValueError: logits of another shape.

    Example:
        >>> import torch, modfast
        >>> logits = torch.arange(6.0).reshape(1, 3, 2)
        >>> modfast.last_token(logits, torch.tensor([[1, 1, 0]]))
        tensor([[2., 3.]])
    """
    logits = _picked(output, None, None)
    checks.dense("output", logits)
    if logits.dim() != 3 or 0 in logits.shape:
        raise ValueError(f"output must have logits [n, t, c], got shape {tuple(logits.shape)}")
    if mask is not None:
        checks.dense("mask", mask)
    if mask is None or mask.shape != logits.shape[:2]:
        return logits[:, -1]
    t = mask.shape[1]
    last = (mask.bool() * torch.arange(1, t + 1, device=mask.device)).argmax(1)
    return logits[torch.arange(len(mask), device=mask.device), last]


def pick(output: Any, chosen: Output, batch: Batch | None = None) -> Tensor:
    """The logits in what a model returned.

    By default the output itself, or the `logits` of a mapping or dataclass; else what a function or
    a key picks.

    Raises:
        TypeError: what is found is no dense tensor.
        ValueError: no such key.
    """
    found = _picked(output, chosen, batch)
    checks.dense("the model's logits", found)
    if 0 in found.shape:
        raise ValueError(f"the model's logits must not be empty, got shape {tuple(found.shape)}")
    return found


def _picked(output: Any, chosen: Output, batch: Batch | None) -> Tensor:
    if isinstance(output, Tensor) and chosen is None:
        return output
    if chosen is last_token:
        return last_token(output, None if batch is None else batch.logits_mask)
    if callable(chosen):
        found: Any = chosen(output)
        if not isinstance(found, Tensor):
            raise TypeError(
                f"the model returned a {type(found).__name__}, not a tensor; output= must return "
                "the logits"
            )
        return found
    key: Any = "logits" if chosen is None else chosen
    try:
        found = (
            output[key] if isinstance(output, (Mapping, tuple, list)) else getattr(output, str(key))
        )
    except (KeyError, IndexError, AttributeError, TypeError):
        if chosen is not None:
            raise ValueError(
                f"output={chosen!r}: the {type(output).__name__} that the model returned has no "
                "such item"
            ) from None
        found = None
    if not isinstance(found, Tensor):
        raise TypeError(
            f"the model returned a {type(output).__name__}, not a tensor; output= must pick the "
            "logits"
        )
    return found


def check_output(output: Output) -> None:
    """Refuses what can pick no logits.

    Raises:
        TypeError: neither a function nor a key.
    """
    if not (output is None or callable(output) or isinstance(output, (str, int))) or output is True:
        raise TypeError(f"output must be a function or a key, got {output!r}")


@dataclass(frozen=True)
class Rows:
    """The logits of a run, a row for each sample or position that counts."""

    logits: Tensor
    """`[n, c]`."""
    kept: Tensor | None
    """Which of the run's rows they are; None for all."""
    targets: Tensor | None

    def of(self, values: Tensor) -> Tensor:
        """The same rows of other values `[..., c]`: `[n, c]`."""
        rows = values if values.dim() == 2 else values.reshape(-1, values.shape[-1])
        return rows if self.kept is None else rows[self.kept]

    def of_each(self, values: Tensor) -> Tensor:
        """The same rows of several `[a, n, ..., c]`: `[a, n, c]`."""
        rows = values.reshape(len(values), -1, values.shape[-1])
        return rows if self.kept is None else rows[:, self.kept]


def read_rows(logits: Tensor, batch: Batch, argument: str | None = None) -> Rows:
    """The rows of logits `[n, ..., c]` that count, with their targets.

    Positions that the attention mask leaves out do not, nor do targets of -100. Of data, `argument`
    is the caller's name for them.

    Raises:
        TypeError: targets that are no integers.
        ValueError: as many targets as rows are wanted; classes out of range; no rows that count.
    """
    flat = logits if logits.dim() == 2 else logits.reshape(-1, logits.shape[-1])
    mask, y, kept = batch.logits_mask, batch.targets, None
    if mask is not None and logits.dim() > 2 and mask.shape == logits.shape[:2]:
        wide = mask.reshape(*mask.shape, *[1] * (logits.dim() - 3)).expand(logits.shape[:-1])
        kept = wide.reshape(-1)
    if y is not None:
        if y.dim() != 1 and y.shape not in (logits.shape[:-1], (*logits.shape[:-1], 1)):
            raise ValueError(
                f"{argument or 'targets'} must have one target per sample, "
                f"{list(logits.shape[:-1])}, got shape {list(y.shape)}"
            )
        y = check_classes(argument or "targets", y, len(flat), flat.shape[1])
        if bool((y == IGNORED).any()):
            kept = y != IGNORED if kept is None else kept & (y != IGNORED)
    if kept is not None:
        kept = None if bool(kept.all()) else kept.nonzero()[:, 0]
    if kept is None:
        return Rows(flat, None, y)
    if len(kept) == 0:
        raise ValueError(
            f"{argument or 'inputs'} must have positions that count, got none in a batch"
        )
    return Rows(flat[kept], kept, None if y is None else y[kept])


def log_softmax(logits: Tensor) -> Tensor:
    """Log-probabilities, in float32 at least."""
    exact = logits.dtype in (torch.float32, torch.float64)
    return (logits if exact else logits.float()).log_softmax(-1)


def check_classes(argument: str, targets: Tensor, n: int, n_classes: int) -> Tensor:
    """Targets as int64 `[n]`, -100 among them where a row counts nowhere.

    Raises:
        TypeError: no integers.
        ValueError: another number, classes out of range.
    """
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise TypeError(f"{argument} must have integer classes, got {targets.dtype}")
    y = targets.reshape(-1).long()
    if len(y) != n:
        raise ValueError(
            f"{argument} must have one target per sample, got {n} samples and {len(y)} targets"
        )
    low, high = (int(each) for each in y.aminmax())
    if high >= n_classes or low < 0:
        wrong = y[((y < 0) & (y != IGNORED)) | (y >= n_classes)]
        if len(wrong):
            raise ValueError(
                f"{argument} must have classes from 0 to {n_classes - 1}, as many as the model has "
                f"outputs, got {int(wrong[0])}"
            )
    return y
