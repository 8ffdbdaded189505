"""Runs a model as it is, leaves it as it was, and hands out what is found at sites."""

from __future__ import annotations

import copy
import dis
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.overrides import TorchFunctionMode

from modfast import checks
from modfast.network.inputs import Batch
from modfast.sites import modules_of

Run = Callable[..., Any]

_ATTENTION = (nn.TransformerEncoderLayer, nn.TransformerEncoder, nn.MultiheadAttention)


@contextmanager
def running(model: nn.Module, training: bool = False, argument: str = "inputs") -> Iterator[Run]:
    """Gives a function that runs the model on a batch, and puts everything back at the end.

    The model's own forward pass, with all hooks, in eval mode (or training mode), under the
    caller's autocast. Compiled parts run eagerly and encoder layers without their fast path, as
    only then hooks are called. Each run starts from the same random state and gets its own copies
    of what is no tensor. Put back are the modules' attributes and the containers in them, hooks,
    training flags, buffers, parameters and inputs that a forward pass writes to, and the random
    state. Inference mode is left.

    A batch that the model cannot take is refused by a ValueError that names the caller's `argument`
    and has the model's own error as its cause.
    """
    checks.module("model", model)
    modules = modules_of(model)
    for module in modules:
        if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
            raise ValueError(f"model must be initialized, got {module}: run it once before")
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())  # which leaving inference mode turns off
        flags = [(module, module.training) for module in modules if module.training != training]
        stack.callback(_set_flags, flags)
        _set_flags([(module, training) for module, _ in flags])
        kept = _Kept(modules)
        stack.callback(kept.restore)
        stack.enter_context(_eager(modules))
        taken: Batch | None = None

        def run(
            batch: Batch,
            read: Callable[[Any], Any] = lambda output: output,
            mode: AbstractContextManager[Any] | None = None,
        ) -> Any:
            nonlocal taken
            args, kwargs = batch.arguments()
            kept.may_differ = True
            try:
                with Guard(batch) if mode is None else mode:
                    found = model(*args, **kwargs)
                    taken = batch
                    return read(found)
            except _REFUSALS as error:
                if batch is taken or not _is_refusal(error):
                    raise
                what = (str(error).strip() or repr(error)).splitlines()[0]
                raise ValueError(
                    f"{argument} must fit the model, whose forward pass failed: {what}"
                ) from error
            finally:
                kept.restore()

        yield run


_REFUSALS = (RuntimeError, IndexError, TypeError, ValueError, AssertionError)
_RAISE = dis.opmap["RAISE_VARARGS"]


def _is_refusal(error: Exception) -> bool:
    """Whether torch, or Python itself, could not do what a model told it to.

    What the model's own code, or a hook's, raises by a `raise` is no business of ours.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or type(error) not in _REFUSALS:
        return False
    frame = trace.tb_frame
    is_torchs = frame.f_globals.get("__name__", "").partition(".")[0] == "torch"
    return is_torchs or frame.f_code.co_code[trace.tb_lasti] != _RAISE


def _set_flags(flags: Sequence[tuple[nn.Module, bool]]) -> None:
    for module, training in flags:
        # nn.Module's own way takes ten times as long.
        object.__setattr__(module, "training", training)


@contextmanager
def exact_arithmetic(device_type: str) -> Iterator[None]:
    """Without autocast, in a `with` block: what is measured is measured in its own dtype."""
    if not torch.is_autocast_enabled(device_type):
        yield
        return
    with torch.autocast(device_type, enabled=False):
        yield


class Guard(TorchFunctionMode):
    """Keeps copies of a batch's tensors and of parameters that a forward pass is about to change.

    They are written back at the end of the `with` block.
    """

    def __init__(self, batch: Batch) -> None:
        super().__init__()
        self.own = {id(x) for x in batch.tensors()}
        self.places: set[int] | None = None
        self.batch = batch
        self.copies: list[tuple[Tensor, Tensor]] = []

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self.put_back()

    def put_back(self) -> None:
        """Undoes the changes."""
        with torch.no_grad():
            for tensor, before in self.copies:
                tensor.copy_(before)
        self.copies.clear()

    def before(self, name: str, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Is told of a call that may write, before it is made."""
        target = kwargs.get("out", args[0] if args else None)
        for tensor in target if isinstance(target, (tuple, list)) else (target,):
            if isinstance(tensor, Tensor) and self._is_own(tensor):
                self.copies.append((tensor.detach(), tensor.detach().clone()))

    def _is_own(self, tensor: Tensor) -> bool:
        if isinstance(tensor, nn.Parameter) or id(tensor) in self.own:
            return True
        if self.places is None:
            self.places = {place_of(x) for x in self.batch.tensors()}
        return place_of(tensor) in self.places

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if may_write(name, args, kwargs):
            with torch._C.DisableTorchFunction():
                self.before(name, args, kwargs)
        return func(*args, **kwargs)


def may_write(name: str, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether a torch function of that name, so called, may change a tensor that it is given."""
    if name[-1:] == "_":
        return name[-2:] != "__" or name == "__setitem__" or name[:3] == "__i"
    # inplace may stand among positional arguments: hardtanh(x, 0, 6, True).
    for x in args:
        if x is True:
            return True
    return bool(kwargs) and ("out" in kwargs or bool(kwargs.get("inplace")))


def place_of(tensor: Tensor) -> int:
    """Which memory a tensor lies in; -1 where it has none of its own."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):
        return -1


@contextmanager
def _eager(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Nothing compiled, whose hooks are fixed, and no fast path of encoder layers, which has none.

    Both switches are the process's, so they are touched only where they matter.
    """
    with ExitStack() as stack:
        if any(isinstance(module, _ATTENTION) for module in modules):
            stack.callback(
                torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled()
            )
            torch.backends.mha.set_fastpath_enabled(False)
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


class _Kept:
    """Modules' attributes, containers in them, tensors that are no parameters, random states."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.attributes = [(module.__dict__, module.__dict__.copy()) for module in modules]
        self.containers: list[tuple[Any, Any]] = []
        tensors: list[Tensor] = []
        for _, before in self.attributes:
            # Hooks and such of nn.Module itself are empty almost always, and let be.
            for container in filter(None, map(before.get, _OWN_CONTAINERS)):
                self.containers += _contents(container, 2)
            for buffer in before.get("_buffers", {}).values():
                if buffer is not None:
                    tensors.append(buffer)
            for name in before.keys() - _OWN:
                value = before[name]
                if isinstance(value, _CONTAINERS):
                    self.containers += _contents(value, 2)
                elif isinstance(value, Tensor):
                    tensors.append(value)
        self.tensors = [(x, version_of(x), x.detach().clone()) for x in tensors]
        self.random = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        self.may_differ = False
        """Whether a pass has begun since all was put back."""

    def restore(self) -> None:
        """Puts everything back that changed."""
        if not self.may_differ:
            return
        for now, before in self.attributes:
            if not _same(now, before):
                now.clear()
                now.update(before)
        for container, contents in self.containers:
            _refill(container, contents)
        with torch.no_grad():
            for i, (tensor, version, value) in enumerate(self.tensors):
                if version < 0 or tensor._version != version:
                    tensor.detach().copy_(value)
                    self.tensors[i] = tensor, version_of(tensor), value
        if not torch.equal(torch.get_rng_state(), self.random):
            torch.set_rng_state(self.random)
        for i, state in enumerate(self.cuda):
            torch.cuda.set_rng_state(state, i)
        self.may_differ = False


_CONTAINERS = (list, dict, set, deque)
_OWN = frozenset(nn.Module().__dict__)
_OWN_CONTAINERS = tuple(
    name for name, value in nn.Module().__dict__.items() if isinstance(value, _CONTAINERS)
)


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written to; -1 of one made in inference mode, which does not count."""
    return -1 if tensor.is_inference() else tensor._version


def _contents(container: Any, depth: int) -> Iterator[tuple[Any, Any]]:
    yield container, copy.copy(container)
    if depth:
        for item in container.values() if isinstance(container, dict) else container:
            if isinstance(item, _CONTAINERS):
                yield from _contents(item, depth - 1)


def _same(a: Mapping[Any, Any], b: Mapping[Any, Any]) -> bool:
    # In the same order, too: that is quick to tell.
    return len(a) == len(b) and all(map(is_, a.values(), b.values())) and [*a] == [*b]


def _refill(container: Any, contents: Any) -> None:
    if isinstance(container, dict):
        if not _same(container, contents):
            container.clear()
            container.update(contents)
    elif len(container) != len(contents) or any(
        x is not y for x, y in zip(container, contents, strict=True)
    ):
        container.clear()
        (container.update if isinstance(container, set) else container.extend)(contents)
