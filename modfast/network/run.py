"""Runs a model as it is, leaves it as it was, and hands out what is found at sites."""

from __future__ import annotations

import copy
import dis
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.overrides import TorchFunctionMode

from modfast import checks
from modfast.network.inputs import Batch, tensors_in
from modfast.sites import modules_of

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
        stack.enter_context(_eager(modules))
        yield Run(model, kept, argument)


@dataclass
class Run:
    """Runs a model; see `running`."""

    model: nn.Module
    kept: _Kept
    argument: str = "inputs"
    taken: Batch | None = None
    """The last batch that the model has taken."""

    def __call__(
        self,
        batch: Batch,
        read: Callable[[Any], Any] = lambda output: output,
        mode: AbstractContextManager[Any] | None = None,
    ) -> Any:
        """What `read` makes of the model's output, while modes and hooks are still in force."""
        args, kwargs = batch.arguments()
        try:
            with self.guard(batch) if mode is None else mode:
                found = self.model(*args, **kwargs)
                self.taken = batch
                return read(found)
        except _REFUSALS as error:
            if batch is self.taken or not _is_refusal(error):
                raise
            what = (str(error).strip() or repr(error)).splitlines()[0]
            raise ValueError(
                f"{self.argument} must fit the model, whose forward pass failed: {what}"
            ) from error
        finally:
            self.kept.restore()

    def guard(self, batch: Batch) -> Guard:
        """What keeps a batch and the parameters from being changed."""
        return Guard([*batch.tensors(), *self.kept.parameters])

    def own(self, tensor: Tensor) -> Tensor:
        """A tensor, or a copy where it lies in memory that is put back after a run."""
        if self.kept.tensors and place_of(tensor) in {place_of(x) for x in self.tensors}:
            return tensor.clone()
        return tensor

    @property
    def tensors(self) -> list[Tensor]:
        """What lies in the model and is no parameter."""
        return [tensor for tensor, _, _ in self.kept.tensors]


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
        if isinstance(module, torch.jit.ScriptModule):  # whose flag is no attribute of Python's
            module.training = training
        else:  # nn.Module's own way takes ten times as long
            object.__setattr__(module, "training", training)


def require_differentiable(model: nn.Module) -> None:
    """Refuses a model that autograd cannot work with.

    Raises:
        ValueError: parameters made in inference mode.
    """
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise ValueError(
            "model must have parameters made outside of torch.inference_mode(), as gradients are "
            "taken; load its state into one that has"
        )


@contextmanager
def exact_arithmetic(device_type: str) -> Iterator[None]:
    """Without autocast, in a `with` block: what is measured is measured in its own dtype."""
    if not torch.is_autocast_enabled(device_type):
        yield
        return
    with torch.autocast(device_type, enabled=False):
        yield


class Guard(TorchFunctionMode):
    """Keeps copies of those of some tensors that a forward pass is about to change.

    They are written back at the end of the `with` block.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()
        self.tensors = tensors
        self.places: set[int] | None = None
        self.copies: list[tuple[Tensor, Tensor]] = []

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
    return "out" in kwargs or bool(kwargs.get("inplace")) or any(x is True for x in args)


def targets_of(args: Any, kwargs: Mapping[str, Any]) -> list[Tensor]:
    """What a call that may write may write to."""
    return tensors_in(kwargs["out"] if "out" in kwargs else args[0] if args else None)


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
                if value is None or type(value) in _PLAIN or (not value and name in _OWN):
                    continue
                self._keep(value, 2, found)
        self.parameters = [x for x in found if isinstance(x, nn.Parameter)]
        self.data = [parameter.data for parameter in self.parameters]
        self.tensors = [
            (x, version_of(x), x.detach().clone()) for x in found if not isinstance(x, nn.Parameter)
        ]
        self.random = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002
        self.cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

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

    def restore(self) -> None:
        """Puts everything back that a run has changed."""
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
            for parameter, data in zip(self.parameters, self.data, strict=True):
                if parameter.data_ptr() != data.data_ptr():
                    parameter.data = data
        for generator, state in self.generators:
            generator.set_state(state)
        torch_state, python_state, numpy_state = self.random
        if not torch.equal(torch.get_rng_state(), torch_state):
            torch.set_rng_state(torch_state)
        if random.getstate() != python_state:
            random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        for i, state in enumerate(self.cuda):
            torch.cuda.set_rng_state(state, i)


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
