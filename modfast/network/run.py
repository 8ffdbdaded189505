"""Runs a model as it is, and leaves it as it was."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from modfast import checks
from modfast.network.inputs import Batch
from modfast.network.interrupts import deliver
from modfast.network.names import modules_of
from modfast.network.state import Guard, Kept, RandomState, place_of
from modfast.network.turns import RANDOM, Switch, alone

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

    Threads take turns: one has the model, or another that shares modules with it, until the end;
    and runs follow each other, as random states are the process's. An interrupt gets out, but not
    before everything is put back.

    A batch that the model cannot take is refused by a ValueError that names the caller's `argument`
    and has the model's own error as its cause.
    """
    checks.module("model", model)
    modules = modules_of(model)
    for module in modules:
        if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
            raise ValueError(f"model must be initialized, got {module}: run it once before")
    with alone(modules), ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())  # which leaving inference mode turns off
        # What sets it within, as torch's optimizers do, may not put it back where interrupted.
        stack.enter_context(torch.set_grad_enabled(torch.is_grad_enabled()))
        flags = [(module, module.training) for module in modules if module.training != training]
        stack.callback(_set_flags, flags)
        _set_flags([(module, training) for module, _ in flags])
        kept = Kept(modules)
        stack.enter_context(_eager(modules))
        yield Run(model, kept, argument)


class Run:
    """Runs a model; see `running`."""

    def __init__(self, model: nn.Module, kept: Kept, argument: str) -> None:
        self.model, self.kept, self.argument = model, kept, argument
        self.taken: Batch | None = None

    def __call__(
        self,
        batch: Batch,
        read: Callable[[Any], Any] = lambda output: output,
        mode: AbstractContextManager[Any] | None = None,
        random: RandomState | None = None,
    ) -> Any:
        """What `read` makes of the model's output, while modes and hooks are still in force.

        A batch that is run again is given the `random` state of its first run.
        """
        deliver()
        args, kwargs = batch.arguments()
        try:
            with RANDOM, self.kept.since(random), self.guard(batch) if mode is None else mode:
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

    @property
    def random(self) -> RandomState:
        """The random state before the last run."""
        return self.kept.random

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
        return [tensor for tensor, *_ in self.kept.tensors]


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
def _eager(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Nothing compiled, whose hooks are fixed, and no fast path of encoder layers, which has none.

    Both switches are the process's, so they are touched only where they matter.
    """
    with ExitStack() as stack:
        if any(isinstance(module, _ATTENTION) for module in modules):
            stack.enter_context(_NO_FAST_PATH)
        if "torch._dynamo" in sys.modules:
            stack.enter_context(_NOT_COMPILED)
        yield


def _leave_fast_path() -> Callable[[], object]:
    back = partial(
        torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled()
    )
    torch.backends.mha.set_fastpath_enabled(False)
    return back


def _run_eagerly() -> Callable[[], object]:
    stance = torch.compiler.set_stance("force_eager")  # which does it at once
    return partial(stance.__exit__, None, None, None)


_NO_FAST_PATH, _NOT_COMPILED = Switch(_leave_fast_path), Switch(_run_eagerly)
