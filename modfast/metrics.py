"""What a network's logits are judged by: any function of them, and the two that the field uses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from modfast import checks
from modfast.network.inputs import Batch
from modfast.network.logits import IGNORED, last_token

__all__ = ["logit_difference", "probability"]

Function: TypeAlias = Callable[..., Tensor]
"""`(logits, batch) -> [n]`; one that takes logits alone, or gives one number, does as well."""
Classes: TypeAlias = int | Sequence[int] | Tensor


def logit_difference(a: Classes, b: Classes) -> Function:
    """A metric: the logit of class a minus that of class b, for each sample.

    Of logits `[n, ..., c]` with positions, those at the positions whose targets are not -100 count,
    their mean if there are several; without targets for each position, the last token that the
    attention mask leaves in.

    Args:
        a: a class, or `[n]` with one for each sample of all inputs.
        b: the same.

    Returns:
        A function of logits and their batch that gives `[n]`, for `metric=`.

    Raises:
        TypeError: not integers. The function raises
        ValueError: classes out of range, or of another number of samples.

    Source: Wang et al., "Interpretability in the Wild", 2023.

    Example:
        >>> import torch, modfast
        >>> modfast.metrics.logit_difference(0, 2)(torch.tensor([[3.0, 0.0, 1.0]]))
        tensor([2.])
    """
    first, second = _classes("a", a), _classes("b", b)

    def logit_difference(logits: Tensor, batch: Batch | None = None) -> Tensor:
        return _at_answers(
            logits, batch, lambda x: _chosen("a", x, first, batch) - _chosen("b", x, second, batch)
        )

    return logit_difference


def probability(targets: Classes | None = None) -> Function:
    """A metric: the probability of the target class, for each sample.

    At the positions that `logit_difference` takes.

    Args:
        targets: a class, or `[n]` with one for each sample of all inputs; by default those of the
            inputs, also one for each position.

    Returns:
        A function of logits and their batch that gives `[n]`, for `metric=`.

    Raises:
        TypeError: not integers. The function raises
        ValueError: classes out of range, or of another number of samples; no targets.

    Example:
        >>> import torch, modfast
        >>> modfast.metrics.probability(1)(torch.tensor([[0.0, 0.0]]))
        tensor([0.5000])
    """
    classes = None if targets is None else _classes("targets", targets)

    def probability(logits: Tensor, batch: Batch | None = None) -> Tensor:
        def value(x: Tensor) -> Tensor:
            p = (x if x.dtype == torch.float64 else x.float()).softmax(-1)
            if classes is not None:
                return _chosen("targets", p, classes, batch)
            y = None if batch is None else batch.targets
            if y is None:
                raise ValueError("targets must be given, to the metric or with the inputs")
            if y.numel() != p[..., 0].numel():
                raise ValueError(f"targets must be {list(p.shape[:-1])}, got {list(y.shape)}")
            y = y.reshape(p.shape[:-1])
            return p.gather(-1, y.clamp(min=0)[..., None])[..., 0]

        return _at_answers(logits, batch, value)

    return probability


def _classes(argument: str, value: Any) -> Tensor:
    found = checks.integers(argument, value)
    if found.dim() > 1 or not found.numel():
        raise ValueError(f"{argument} must be a class, or one for each sample, got {value!r:.60}")
    return found.long()


def _chosen(argument: str, values: Tensor, classes: Tensor, batch: Batch | None) -> Tensor:
    """Each sample's value `[n, ...]` of its class, of `[n, ..., c]`."""
    if classes.dim():
        first = 0 if batch is None else batch.first
        if len(classes) < first + len(values):
            raise ValueError(
                f"{argument} must have one class per sample, got {len(classes)} for "
                f"{first + len(values)} samples"
            )
        classes = classes[first : first + len(values)]
    low, high = int(classes.min()), int(classes.max())
    if low < 0 or high >= values.shape[-1]:
        raise ValueError(
            f"{argument} must be from 0 to {values.shape[-1] - 1}, got {low if low < 0 else high}"
        )
    index = classes.to(values.device).reshape(-1, *[1] * (values.dim() - 1))
    return values.gather(-1, index.expand(*values.shape[:-1], 1))[..., 0]


def _at_answers(logits: Tensor, batch: Batch | None, value: Callable[[Tensor], Tensor]) -> Tensor:
    """`[n]` of a function from `[n, ..., c]` to `[n, ...]`, at the positions that count."""
    if logits.dim() == 2:
        return value(logits)
    targets = None if batch is None else batch.targets
    if targets is not None and targets.shape == logits.shape[:-1]:
        counts = (targets != IGNORED).flatten(1)
        found = value(logits).flatten(1)
        return (found * counts).sum(1) / counts.sum(1)
    if logits.dim() != 3:
        raise ValueError(f"logits must be [n, c] or [n, t, c], got shape {tuple(logits.shape)}")
    mask = None if batch is None else batch.logits_mask
    return value(last_token(logits, mask)[:, None])[:, 0]


def read_functions(metric: Any) -> dict[str, Function]:
    """The functions among what a caller gives as `metric=`, by name: one, or a mapping of such.

    Raises:
        TypeError: no function.
    """
    named = metric if isinstance(metric, Mapping) else {name_of(metric): metric}
    for name, function in named.items():
        if not isinstance(name, str) or not callable(function):
            raise TypeError(
                "metric must be a function (logits, batch) -> [n], or a mapping of names to such, "
                f"got {checks.shown(metric)}"
            )
    return dict(named)


def name_of(function: Any) -> str:
    """What a result calls a metric."""
    name = getattr(function, "__name__", "metric")
    return "metric" if name == "<lambda>" else name


def samplewise(function: Function, logits: Tensor, batch: Batch) -> Tensor:
    """A metric's values `[n]`, or `[]` where it gives one number for all of a batch; with gradient.

    Raises:
        TypeError: it returns no real numbers as a tensor.
        ValueError: another number of them than samples, or some that are not finite.
    """
    if logits.dtype not in (torch.float32, torch.float64):  # what is measured is so exactly
        logits = logits.float()
    found = function(logits, batch) if takes_batch(function) else function(logits)
    if not isinstance(found, Tensor) or found.is_complex():
        what = found.dtype if isinstance(found, Tensor) else type(found).__name__
        raise TypeError(f"metric must return real numbers as a tensor, got {what}")
    n = batch.n_samples
    if found.numel() == 1 and (found.dim() == 0 or n > 1):
        found = found.reshape(())
    elif found.shape != (n,):
        raise ValueError(
            f"metric must return one number, or one per sample, [{n}], got {list(found.shape)}"
        )
    checks.finite("metric", found.detach())
    return found


def mean_over_samples(function: Function, logits: Tensor, batch: Batch) -> Tensor:
    """The mean of a metric's values, or its one number: a float64 scalar, with gradient.

    Raises:
        TypeError, ValueError: as `samplewise`.
    """
    return samplewise(function, logits, batch).double().mean()


def takes_batch(function: Function) -> bool:
    """Whether a metric takes the batch as well: by that name, or as what it must be given second.

    Example:
        >>> takes_batch(lambda logits: logits), takes_batch(lambda logits, batch=None: logits)
        (False, True)
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # built in, without a signature
        return False
    if any(each.name == "batch" for each in parameters):
        return True
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(x.kind in plain and x.default is inspect.Parameter.empty for x in parameters) > 1
