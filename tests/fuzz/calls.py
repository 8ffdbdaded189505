"""A valid call of every public function, class and method that takes arguments."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

import modfast

ROOMS = (
    *("information", "ablation", "clusters", "training", "features", "circuits", "effective"),
    *("tasks", "ops", "data", "models", "metrics"),
)
CONSTANTS = (tuple, dict, frozenset, type(modfast))


@dataclass
class Call:
    """One call, made anew each time."""

    name: str
    arguments: dict[str, Any]
    """By name; of a method also `self`. Arguments of `*args` are "*0", "*1", ..."""
    moves: frozenset[str] = frozenset()
    """Arguments that the call may change."""
    work: frozenset[str] = frozenset()
    """Arguments that say how much is to be done: a large number takes long by right."""
    errors: tuple[type[Exception], ...] = ()
    """What the function documents besides ValueError and TypeError."""
    nan: bool = False
    """Whether NaN in a result says something, by the function's documentation."""
    fixed: frozenset[str] = frozenset({"argument"})
    """Arguments that are left as they are: what messages call another."""
    aliases: tuple[str, ...] = ()
    """Other words by which messages name an argument."""

    @property
    def function(self) -> Callable[..., Any]:
        """What is called; of a method the plain function."""
        return PUBLIC[self.name]

    def __call__(self) -> Any:
        positional = [v for k, v in self.arguments.items() if k.startswith("*") or k == "self"]
        named = {k: v for k, v in self.arguments.items() if not k.startswith("*") and k != "self"}
        return self.function(*positional, **named)

    def parameters(self) -> list[str]:
        """All arguments but `self`, those among `**options` as well."""
        own = inspect.signature(self.function).parameters
        kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        known = [name for name, each in own.items() if each.kind not in kinds]
        return [
            name
            for name in dict.fromkeys([*known, *self.arguments])
            if name not in {"self"} | self.fixed
        ]


def public() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Everything public that can be called with arguments, by name, each once."""
    seen = set()
    places = [(f"modfast.{room}", f"{room}.") for room in ROOMS] + [("modfast", "")]
    for place, prefix in places:
        module = importlib.import_module(place)
        for name in module.__all__:
            thing = getattr(module, name)
            if isinstance(thing, CONSTANTS) or id(thing) in seen:
                continue
            seen.add(id(thing))
            if not isinstance(thing, type):
                yield prefix + name, thing
                continue
            # Results, tuples and the records of data are made by the package.
            results = (modfast.Result, tuple, modfast.data.Dataset, modfast.SplitNetwork)
            made = issubclass(thing, results)
            if not made:
                yield prefix + name, thing
            for method, function in inspect.getmembers(thing, callable):
                owner = getattr(function, "__qualname__", "").split(".")[0]
                if method.startswith("_") or owner != thing.__name__:
                    continue
                arguments = [*inspect.signature(function).parameters]
                if arguments not in ([], ["self"]):
                    yield f"{prefix}{name}.{method}", function


PUBLIC = {
    name: thing
    for name, thing in public()
    if not isinstance(thing, type(len)) and [*inspect.signature(thing).parameters]
}
"""Everything of the public interface that takes arguments."""
BUILDERS: dict[str, Callable[[], Call]] = {}


def entry(name: str, **more: Any) -> Callable[[Callable[[], dict[str, Any]]], Any]:
    """Says with which arguments something is called; `more` are fields of `Call`."""

    def add(arguments: Callable[[], dict[str, Any]]) -> Any:
        assert name not in BUILDERS, name

        def build() -> Call:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return Call(name, arguments(), **more)

        BUILDERS[name] = build
        return arguments

    return add


def entries(*names: str, **more: Any) -> Callable[[Callable[[], dict[str, Any]]], Any]:
    """The same arguments for several."""

    def add(arguments: Callable[[], dict[str, Any]]) -> Any:
        for name in names:
            entry(name, **more)(arguments)
        return arguments

    return add
