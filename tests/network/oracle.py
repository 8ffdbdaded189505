"""Plain hooks: what a site holds, what follows when it holds something else, and what has changed.

Nothing here uses modfast.
"""

from __future__ import annotations

import copy
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Change = Callable[[Tensor], Tensor]
MEASURES = ("entropy_difference", "kl_ablated_original", "kl_original_ablated")

_SITE = re.compile(
    r"(?P<module>[^:\[#/]*)(/(?P<function>\w+))?(?P<input>:input)?(\[(?P<item>[^\]]+)\])?"
    r"(#(?P<call>\d+))?"
)


@dataclass(frozen=True)
class Place:
    """A site's name, read."""

    module: str
    function: str | None
    is_input: bool
    item: int | str | None
    call: int

    @classmethod
    def read(cls, site: str) -> Place:
        found = _SITE.fullmatch(site)
        assert found is not None, site
        item = found["item"]
        if item is not None:
            item = int(item) if item.isdecimal() else item.strip("'\"")
        call = int(found["call"] or 0)
        return cls(found["module"], found["function"], bool(found["input"]), item, call)


def run(
    model: nn.Module,
    inputs: Any,
    sites: Mapping[str, Change] | None = None,
    output: Callable[[Any], Tensor] | str | None = None,
    copies: bool = True,
) -> Tensor:
    """The model's logits, as it gives them, with the values of some sites passed through functions.

    In eval mode, on copies of the inputs or on these; the global random state is left as it was.
    """
    before = [(module, module.training) for module in model.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        stack.callback(lambda: [setattr(module, "training", flag) for module, flag in before])
        torch.backends.mha.set_fastpath_enabled(False)
        model.eval()
        for site, change in (sites or {}).items():
            stack.enter_context(_at(model, Place.read(site), change))
        return logits_of(call(model, copy.deepcopy(inputs) if copies else inputs), output)


def call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def logits_of(found: Any, output: Callable[[Any], Tensor] | str | None) -> Tensor:
    if isinstance(output, str):
        return found[output]
    if output is not None:
        return output(found)
    return found if isinstance(found, Tensor) else found.logits


@contextmanager
def _at(model: nn.Module, place: Place, change: Change) -> Iterator[None]:
    """Passes the value at a place through a function, after all that the user's hooks do to it."""
    calls = Counter[str]()

    def is_it() -> bool:
        calls["seen"] += 1
        return calls["seen"] - 1 == place.call

    def after(module: nn.Module, args: Any, found: Any) -> Any:
        return put(found, place.item, change) if is_it() else None

    def ahead(module: nn.Module, args: Any, kwargs: Any) -> Any:
        if not is_it():
            return None
        if isinstance(place.item, str) or (place.item is None and not args):
            key = next(iter(kwargs)) if place.item is None else place.item
            return args, put(kwargs, key, change)
        return put(args, place.item or 0, change), kwargs

    owner = getattr(model, "_orig_mod", model).get_submodule(place.module)
    with ExitStack() as stack:
        if place.function is not None:
            stack.enter_context(_Functions(model, owner, place, change))
        elif place.is_input:
            handle = owner.register_forward_pre_hook(ahead, with_kwargs=True)
            stack.callback(handle.remove)
        else:
            stack.callback(owner.register_forward_hook(after).remove)
        yield
        assert place.function is not None or calls["seen"] > place.call, f"{place}: not called"


class _Functions(TorchFunctionMode):
    """Sees the calls of torch functions that a module's own forward makes."""

    def __init__(self, model: nn.Module, owner: nn.Module, place: Place, change: Change) -> None:
        super().__init__()
        self.place, self.change, self.owner, self.seen = place, change, owner, 0
        self.running: list[nn.Module] = []
        self.handles: list[Any] = []
        for each in model.modules():
            enter = each.register_forward_pre_hook(lambda m, a: self.running.append(m))
            leave = each.register_forward_hook(lambda m, a, o: self.running.pop() and None)
            self.handles += [enter, leave]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if self.running and self.running[-1] is self.owner and func.__name__ == self.place.function:
            self.seen += 1
            if self.seen - 1 == self.place.call:
                return put(found, self.place.item, self.change)
        return found

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        for handle in self.handles:
            handle.remove()
        assert self.seen > self.place.call, f"{self.place}: not called"


def put(found: Any, item: int | str | None, change: Change) -> Any:
    """A value with one item, or its first tensor where none is named, passed through a function."""
    if isinstance(found, Tensor):
        return change(found)
    if isinstance(found, (tuple, list)):
        i = item or 0
        return type(found)([*found[:i], change(found[i]), *found[i + 1 :]])
    key = next(iter(found)) if item is None else item
    new = copy.copy(found)
    new[key] = change(found[key])
    return new


@torch.no_grad()
def activations(model: nn.Module, inputs: Any, site: str) -> Tensor:
    """What a site holds, as a copy."""
    seen: list[Tensor] = []

    def look(value: Tensor) -> Tensor:
        seen.append(value.detach().clone())
        return value

    run(model, inputs, {site: look}, lambda found: found)
    return seen[0]


@torch.no_grad()
def replaced(
    model: nn.Module, inputs: Any, site: str, change: Change, output: Any = None
) -> Tensor:
    """The logits with the site's value passed through a function, which gets a copy."""
    return run(model, inputs, {site: lambda value: change(value.clone())}, output)


def units_set(units: Any, dim: int, to: float | Tensor = 0.0) -> Change:
    """A change that sets some units of a value to a number, or to one for each."""

    def change(value: Tensor) -> Tensor:
        value.movedim(dim, -1)[..., units] = torch.as_tensor(to, dtype=value.dtype)
        return value

    return change


def without(direction: Tensor, dim: int) -> Change:
    """A change that takes the part along a direction out of a value."""

    def change(value: Tensor) -> Tensor:
        rows = value.movedim(dim, -1)
        unit = (direction / direction.norm()).to(value.dtype)
        return (rows - (rows @ unit)[..., None] * unit).movedim(-1, dim)

    return change


def counted(inputs: Any, logits: Tensor, targets: Tensor | None = None) -> Tensor:
    """Which positions of the logits `[n, ..., c]` count: those that no mask leaves out.

    Those with targets of -100 count neither, where targets are given.
    """
    kept = torch.ones(logits.shape[:-1], dtype=torch.bool)
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    if mask is not None and mask.shape == kept.shape and "decoder_input_ids" not in inputs:
        kept &= mask.bool()
    if targets is not None:
        kept &= targets != -100
    return kept


def terms(before: Tensor, after: Tensor) -> dict[str, Tensor]:
    """For each position H(p) - H(q), KL(q | p), KL(p | q) in float64, p before and q after."""
    log_p, log_q = before.double().log_softmax(-1), after.double().log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    return {
        "entropy_difference": (q * log_q - p * log_p).sum(-1),
        "kl_ablated_original": (q * (log_q - log_p)).sum(-1),
        "kl_original_ablated": (p * (log_p - log_q)).sum(-1),
    }


def losses(logits: Tensor, targets: Tensor) -> Tensor:
    """-log of the target's probability in float64 for each position; 0 where that is -100."""
    flat = logits.double().log_softmax(-1)
    found = -flat.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    return found.where(targets >= 0, 0.0)


def sums(inputs: Any, before: Tensor, after: Tensor, targets: Tensor | None) -> dict[str, Tensor]:
    """The terms, the loss and the accuracy over all positions that count, as scalars."""
    kept = counted(inputs, before, targets)
    found = {name: each[kept].sum() for name, each in terms(before, after).items()}
    if targets is not None:
        found["loss"] = losses(after, targets)[kept].sum()
        found["accuracy"] = (after.argmax(-1) == targets)[kept].double().mean()
    return found


def gradients(model: nn.Module, inputs: Any, site: str, output: Any, of: Change) -> Tensor:
    """The gradient of a function of the logits with respect to the value of a site."""
    held: list[Tensor] = []

    def look(value: Tensor) -> Tensor:
        held.append(value if value.requires_grad else value.detach().requires_grad_())
        return held[0].clone()  # what follows may work in place

    with torch.enable_grad():
        logits = run(model, inputs, {site: look}, output)
        return torch.autograd.grad(of(logits), held[0])[0]


class Weights(TorchFunctionMode):
    """Passes the weight that one layer computes with through a function, and keeps what came.

    `more`, of the input and the weight, is added to what the layer's linear call gives.
    """

    PLACES: ClassVar = {"linear": 1, "conv1d": 1, "conv2d": 1, "addmm": 2}

    def __init__(
        self,
        model: nn.Module,
        layer: str,
        change: Change = lambda weight: weight,
        more: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.owner = getattr(model, "_orig_mod", model).get_submodule(layer)
        self.change, self.inside, self.seen = change, 0, list[Tensor]()
        self.more, self.given = more, list[Tensor]()

    def __enter__(self) -> Weights:
        self.handles = [
            self.owner.register_forward_pre_hook(lambda m, a: self._count(1)),
            self.owner.register_forward_hook(lambda m, a, o: self._count(-1), always_call=True),
        ]
        super().__enter__()
        return self

    def _count(self, step: int) -> None:
        self.inside += step

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        at = self.PLACES.get(func.__name__)
        if self.inside and at is not None:
            self.seen.append(args[at])
            self.given.append(args[at - 1])
            args = (*args[:at], self.change(args[at]), *args[at + 1 :])
            if self.more is not None:
                return func(*args, **(kwargs or {})) + self.more(args[at - 1], args[at])
        return func(*args, **(kwargs or {}))

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        for handle in self.handles:
            handle.remove()
