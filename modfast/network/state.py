"""What a forward pass may change, kept and put back."""

from __future__ import annotations

import copy
import ctypes
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from modfast.network.inputs import tensors_in


class Guard(TorchFunctionMode):
    """Keeps copies of those of some tensors that a forward pass is about to change.

    They are written back at the end of the `with` block.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()
        self.tensors = tensors
        self.places: set[int] | None = None
        self.copies: list[tuple[Tensor, Tensor]] = []
        self.has_written = False
        """Whether the forward pass changed any."""

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self.put_back()

    def put_back(self) -> None:
        """Undoes the changes."""
        with torch.no_grad():
            for tensor, before in reversed(self.copies):
                tensor.copy_(before)
        self.copies.clear()

    def before(self, name: str, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Is told of a call that may write, before it is made."""
        for tensor in targets_of(args, kwargs):
            if self.places is None:
                self.places = {place_of(x) for x in self.tensors}
            if place_of(tensor) in self.places:
                self.has_written = True
                self.copies.append((tensor.detach(), tensor.detach().clone()))

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if may_write(name, args, kwargs):
            with torch._C.DisableTorchFunction():
                self.before(name, args, kwargs)
        return func(*args, **kwargs)


# They hand out the memory itself, which may be written to unseen.
_MEMORY = frozenset({"numpy", "__array__", "data_ptr", "untyped_storage", "storage", "__dlpack__"})


def may_write(name: str, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether a torch function of that name, so called, may change a tensor that it is given."""
    if name in _MEMORY:
        return True
    if name[-1:] == "_":
        return name[-2:] != "__" or name == "__setitem__" or name[:3] == "__i"
    # inplace may stand among positional arguments: hardtanh(x, 0, 6, True).
    for x in args:  # quicker than any()
        if x is True:
            return True
    return bool(kwargs) and ("out" in kwargs or bool(kwargs.get("inplace")))


def targets_of(args: Any, kwargs: Mapping[str, Any]) -> list[Tensor]:
    """What a call that may write may write to."""
    return tensors_in(kwargs["out"] if "out" in kwargs else args[0] if args else None)


def place_of(tensor: Tensor) -> int:
    """Which memory a tensor lies in; -1 where it has none of its own."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):
        return -1


class Kept:
    """Modules' attributes, containers in them, tensors that are no parameters, random states."""

    random: RandomState
    """Before a run, which sets it: data may be drawn at random between two."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.attributes = [(module.__dict__, module.__dict__.copy()) for module in modules]
        self.containers: list[tuple[Any, Any]] = []
        self.generators: list[tuple[torch.Generator, Tensor]] = []
        self.seen: set[int] = set()
        found: list[Tensor] = []
        # Parameters that processes share are put in place, and taken away, by what shards them.
        fsdp = sys.modules.get("torch.distributed.fsdp")
        is_sharded = fsdp is not None and any(isinstance(x, fsdp.FSDPModule) for x in modules)
        others = _OTHERS | {"_parameters"} if is_sharded else _OTHERS
        for _, before in self.attributes:
            for name in before.keys() - others:
                value = before[name]
                if value is None or type(value) in _PLAIN or (name in _OWN and not value):
                    continue
                self._keep(value, 2, found)
        self.parameters = [
            x for x in found if isinstance(x, nn.Parameter) and x.layout is torch.strided
        ]
        self.data = [parameter.data for parameter in self.parameters]
        self.tensors = [
            (x, version_of(x), x.detach().clone(), x.grad_fn is not None)
            for x in found
            if not isinstance(x, nn.Parameter)
        ]

    def _keep(self, value: Any, depth: int, found: list[Tensor]) -> None:
        """Takes up an attribute, and what is in it."""
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, torch.Generator):
            self.generators.append((value, value.get_state()))
        elif isinstance(value, _CONTAINERS):
            self.containers.append((value, copy.copy(value)))
            if depth:
                for item in list(value.values() if isinstance(value, dict) else value):
                    if type(item) not in _PLAIN and not isinstance(item, nn.Module):
                        self._keep(item, depth - 1, found)
        elif type(value).__module__.startswith("torch."):
            return  # what shards a module among processes, say, and does so from then on
        elif id(value) not in self.seen and not isinstance(value, nn.Module | Callable):
            # A configuration or state of the model's own, say.
            self.seen.add(id(value))
            attributes = getattr(value, "__dict__", None)
            if isinstance(attributes, dict):
                self.containers.append((attributes, attributes.copy()))

    @contextmanager
    def since(self, random: RandomState | None) -> Iterator[None]:
        """Puts everything back at the end of a block, at whose start a random state is set."""
        self.random = RandomState() if random is None else random
        whole = True
        try:
            if random is not None:
                random.restore()
            yield
            whole = False
        except AllSeenError:
            whole = False
            raise
        finally:
            self._restore(whole)

    def _restore(self, whole: bool) -> None:
        """Puts everything back that a run has changed.

        Tensors only where their version tells of it, but for a `whole` putting back: what stops
        a call of torch may come between its writing and its telling.
        """
        for now, before in self.attributes:
            if not _same(now, before):
                now.clear()
                now.update(before)
        for container, contents in self.containers:
            _refill(container, contents)
        with torch.no_grad():
            for i, (tensor, version, value, graph) in enumerate(self.tensors):
                if tensor.grad_fn is not None and not graph:
                    tensor.detach_()  # written to with gradients on
                if whole or version < 0 or tensor._version != version:
                    tensor.detach().copy_(value)
                    self.tensors[i] = tensor, version_of(tensor), value, graph
            for parameter, data in zip(self.parameters, self.data, strict=True):
                if parameter.data_ptr() != data.data_ptr():
                    parameter.data = data
        for generator, state in self.generators:
            generator.set_state(state)
        self.random.restore()


class AllSeenError(BaseException):
    """Ends a forward pass; no error to a model that goes on after an Exception of a submodule."""


_CONTAINERS = (list, dict, set, deque)
_PLAIN = frozenset({bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device})
_OWN = ("_parameters", "_buffers", "_modules")
# What else nn.Module has of its own, its hooks above all, no forward pass changes.
_OTHERS = frozenset(nn.Module().__dict__) - set(_OWN)


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written to; -1 of one made in inference mode, which does not count."""
    return -1 if tensor.is_inference() else tensor._version


def _same(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)  # which looks first whether items are the same objects
    except (RuntimeError, ValueError, TypeError):  # other tensors, say, which cannot be told equal
        return False


def _refill(container: Any, contents: Any) -> None:
    if isinstance(container, dict):
        if not _same(container, contents):
            container.clear()
            container.update(contents)
    elif not _same(container, contents):
        container.clear()
        (container.update if isinstance(container, set) else container.extend)(contents)


class RandomState:
    """The global random states as they are now: torch's, Python's and numpy's."""

    def __init__(self) -> None:
        self.torch, self.python = torch.get_rng_state(), random.getstate()
        self.numpy = np.random.get_state(legacy=False)  # noqa: NPY002
        self.numpy_words = _numpy_words()
        self.cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def restore(self) -> None:
        """Puts them back."""
        torch.set_rng_state(self.torch)
        random.setstate(self.python)
        # Numpy's is slow to set. Without a normal number in store, each draw takes from the words.
        words = self.numpy_words
        if not words or self.numpy["has_gauss"] or _numpy_words() != words:
            np.random.set_state(self.numpy)  # noqa: NPY002
        for i, state in enumerate(self.cuda):
            torch.cuda.set_rng_state(state, i)


def _numpy_words() -> bytes:
    """The words of numpy's global generator and its place among them; none where it is another."""
    generator = np.random.mtrand._rand._bit_generator
    if type(generator) is not np.random.MT19937:
        return b""
    return ctypes.string_at(generator.ctypes.state_address, 625 * 4)
