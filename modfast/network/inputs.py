"""What a model is run on: one batch, a stream of them, or samples with targets. The one reader."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from modfast import checks
from modfast.network.names import nearest

Inputs: TypeAlias = Tensor | tuple[Any, ...] | Mapping[str, Any] | Iterable[Any]
Targets: TypeAlias = Tensor | str | None

LABELS = "labels"
"""The targets among keyword inputs, where no other name is given."""
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


@dataclass(frozen=True)
class Batch:
    """Arguments of one forward pass, and the targets if there are any."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    targets: Tensor | None = None
    first: int = 0
    """The number of its first sample among those of all batches."""

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """For one run: the same tensors, and copies of all else that a model may change."""
        return tuple(map(own, self.args)), {name: own(x) for name, x in self.kwargs.items()}

    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments."""
        return tensors_in((self.args, self.kwargs))

    @property
    def n_samples(self) -> int:
        """Rows of the first tensor.

        Raises:
            TypeError: there is none.
        """
        n = len(self)
        if not n:
            raise TypeError("inputs must hold a tensor with a row for each sample")
        return n

    def __len__(self) -> int:
        """The same; 0 without one."""
        return next((len(tensor) for tensor in self.tensors() if tensor.dim()), 0)

    def mask(self, decoder: bool = False) -> Tensor | None:
        """Which positions count, bool `[n, t]`: the attention mask; of a decoder its own."""
        found = self.kwargs.get(self._of("attention_mask", decoder))
        if not isinstance(found, Tensor) or found.dim() != 2:
            return None
        return found.bool()

    @property
    def logits_mask(self) -> Tensor | None:
        """The mask of the positions that logits are of."""
        return self.mask(decoder=True)

    def tokens(self, decoder: bool = False) -> Tensor | None:
        """Tokens `[n, t]`: `input_ids`, of a decoder its own, or the first integers of that shape.

        Masks are none.
        """
        name = self._of("input_ids", decoder)
        if name not in self.kwargs and name != "input_ids":
            return None
        named = {name: x for name, x in self.kwargs.items() if "mask" not in name}
        of_name = [self.kwargs[name]] if name in self.kwargs else [*self.args, *named.values()]
        for x in tensors_in(of_name):
            if x.dim() == 2 and not (
                x.is_floating_point() or x.is_complex() or x.dtype == torch.bool
            ):
                return x
        return None

    def _of(self, name: str, decoder: bool) -> str:
        """The name of a decoder's own input; without an encoder, decoders have no others."""
        apart = decoder and any(each.startswith("decoder_") for each in self.kwargs)
        return f"decoder_{name}" if apart else name

    def rows(self, chosen: Tensor | slice) -> Batch:
        """The same of some samples."""
        args, kwargs, targets = mapped(lambda x: x[chosen], (self.args, self.kwargs, self.targets))
        return replace(self, args=args, kwargs=kwargs, targets=targets)


def own(value: Any) -> Any:
    """A value as one run gets it: tensors themselves, and a copy of what is none."""
    if isinstance(value, Tensor) or type(value) in _PLAIN:
        return value
    if type(value) in (tuple, list):
        return type(value)(map(own, value))
    if type(value) is dict:
        return {key: own(item) for key, item in value.items()}
    # A cache, say. What cannot be copied, such as a generator, is passed on.
    try:
        return copy.deepcopy(value)
    except (TypeError, RuntimeError, NotImplementedError):
        return value


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists, mappings and slices, in order."""
    found: list[Tensor] = []
    _collect(value, found)
    return found


def _collect(value: Any, found: list[Tensor]) -> None:
    if isinstance(value, Tensor):
        found.append(value)
    elif isinstance(value, (tuple, list)):
        for item in value:
            _collect(item, found)
    elif isinstance(value, Mapping):
        for item in value.values():
            _collect(item, found)
    elif isinstance(value, slice):
        _collect((value.start, value.stop, value.step), found)


def mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Nested tuples, lists and mappings with a function of each tensor in its place."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple):
        items = [mapped(function, item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return [mapped(function, item) for item in value]
    if isinstance(value, Mapping):
        return {key: mapped(function, item) for key, item in value.items()}
    return value


def is_stream(inputs: object) -> bool:
    """Whether these are many batches, such as a DataLoader's, and not one."""
    return not isinstance(inputs, (Tensor, tuple, Mapping)) and isinstance(inputs, Iterable)


def read_batches(
    model: nn.Module,
    inputs: Inputs,
    targets: Targets = None,
    finite: bool = True,
    argument: str = "inputs",
) -> Iterator[Batch]:
    """Checked batches; those of a stream on the model's device.

    Args:
        model: what they are for.
        inputs: one batch: a tensor, a tuple of positional arguments or a mapping of keyword
            arguments (also a BatchEncoding or ModelOutput); or a stream of such, or of pairs
            (inputs, targets).
        targets: a tensor for the one batch; or the name of the targets in a mapping, which by
            default are its `labels`. These do not go to the model, unless it must have them.
        finite: refuse NaN and infinite values (-inf passes in masks and biases).
        argument: the caller's name for the inputs.

    Raises:
        TypeError: inputs of another kind.
        ValueError: inputs that are not finite, or empty; no batches; targets beside a stream.
    """
    if not is_stream(inputs):
        yield _batch(model, inputs, targets, finite, argument)
        return
    if isinstance(targets, Tensor):
        raise ValueError(
            f"targets must come with the batches, as pairs, where {argument} is a stream"
        )
    device = device_of(model)
    first, of = 0, f"a batch of {argument}"
    empty = True
    for item in inputs:
        empty = False
        found: Any = item
        own_targets: Any = targets
        if isinstance(item, (tuple, list)) and len(item) == 2 and not hasattr(item, "_fields"):
            found, own_targets = item
            if own_targets is not None and not isinstance(own_targets, Tensor):
                raise TypeError(
                    f"{of} must be inputs, or a pair (inputs, targets), got {_kinds(item)}"
                )
            if own_targets is not None:
                checks.dense(of, own_targets)
        found = tuple(found) if isinstance(found, list) else found
        batch = _batch(model, found, own_targets, finite, of)
        if device is not None:
            moved = mapped(lambda x: x.to(device), (batch.args, batch.kwargs, batch.targets))
            batch = Batch(*moved)
        yield replace(batch, first=first)
        first += len(batch)
    if empty:
        raise ValueError(f"{argument} must not be empty, got no batches")


def one_batch(model: nn.Module, inputs: Inputs, targets: Targets, why: str) -> Batch:
    """The batch of inputs that are no stream.

    Raises:
        TypeError, ValueError: as `read_batches`; a stream.
    """
    if is_stream(inputs):
        raise TypeError(f"inputs must be one batch, got a stream: {why}")
    (batch,) = read_batches(model, inputs, targets)
    return batch


def device_of(model: nn.Module) -> torch.device | None:
    """Of a model's first parameter; None without any."""
    parameter = next(model.parameters(), None)
    return None if parameter is None else parameter.device


def _batch(model: nn.Module, inputs: Any, targets: Targets, finite: bool, argument: str) -> Batch:
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(inputs, Tensor):
        args = (inputs,)
    elif isinstance(inputs, tuple):
        args = inputs
    elif isinstance(inputs, Mapping):
        kwargs = dict(inputs)
        targets = _taken_out(model, kwargs, targets)
    else:
        raise TypeError(
            f"{argument} must be a tensor, a tuple or mapping of model inputs, or a DataLoader, "
            f"got {type(inputs).__name__}"
        )
    if isinstance(targets, str):
        raise ValueError(f"targets={targets!r} must name one of {argument}, which is no mapping")
    if targets is not None:
        checks.dense("targets", targets)
    first = True
    for tensor in tensors_in((args, kwargs)):
        checks.dense(argument, tensor)
        if tensor.dim() and 0 in tensor.shape:
            raise ValueError(f"{argument} must not be empty, got shape {tuple(tensor.shape)}")
        if finite and tensor.is_floating_point():
            # -inf leaves positions out of attention.
            checks.finite(
                argument, tensor if first else tensor.clamp(min=torch.finfo(tensor.dtype).min)
            )
        first = False
    batch = Batch(args, kwargs, targets)
    if torch.is_inference_mode_enabled() or any(x.is_inference() for x in batch.tensors()):
        with torch.inference_mode(False):
            batch = Batch(
                *mapped(lambda x: x.clone() if x.is_inference() else x, (args, kwargs, targets))
            )
    return batch


def _taken_out(model: nn.Module, kwargs: dict[str, Any], targets: Targets) -> Tensor | None:
    """The targets among keyword inputs, which they leave unless the model must have them."""
    name = targets if isinstance(targets, str) else LABELS
    if isinstance(targets, str) and name not in kwargs:
        raise ValueError(f"targets={name!r} must name one of the inputs; {nearest(name, kwargs)}")
    found = kwargs.get(name)
    if (isinstance(found, Tensor) and not found.is_floating_point()) or isinstance(targets, str):
        if not _must_have(model, name):
            del kwargs[name]
    else:
        found = None
    return targets if isinstance(targets, Tensor) else found


def _must_have(model: nn.Module, name: str) -> bool:
    try:
        parameter = inspect.signature(model.forward).parameters.get(name)
    except (TypeError, ValueError):
        return False
    return parameter is not None and parameter.default is inspect.Parameter.empty


def _kinds(values: Sequence[Any]) -> str:
    return " and ".join(type(value).__name__ for value in values)
