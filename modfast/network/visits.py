"""Seeing, and replacing, what is found at sites while a model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from modfast import checks
from modfast._renamed import warn_renamed
from modfast.network.inputs import tensors_in
from modfast.network.names import nearest, unwrapped
from modfast.network.sites import Key, Site, plain_name

Do = Callable[[Tensor], Tensor | None]


@dataclass
class Visit:
    """What is done at a site in one run, and how often it was reached."""

    site: Site
    do: Do
    argument: str = "site"
    n_calls: int = 0
    known: list[str] = field(default_factory=list)
    """Names there are, where the site's may be wrong."""
    error: Exception | None = None
    """Why a site that a pattern matched has no tensor."""

    def reached(self, value: Any) -> Any:
        """Called with each value of the place; gives what the model goes on with."""
        self.n_calls += 1
        if self.n_calls - 1 != (self.site.call or 0):
            return value
        try:
            key, old = _found(value, self.site, self.argument)
        except (TypeError, ValueError) as error:
            if not self.site.by_pattern:
                raise
            self.error = error
            return value
        try:
            new = self.do(old)
        except NoFeaturesError as error:
            if not self.site.by_pattern:
                raise
            self.error = error
            return value
        if new is None or new is old:
            return value
        return new if key is None else _replaced(value, key, new)

    def check(self) -> None:
        """Refuses a site that had no one value.

        Raises:
            TypeError: it has no tensor.
            ValueError: it was not reached, or several times without a number.
        """
        name, n, call = self.site.name, self.n_calls, self.site.call
        if self.error is not None:
            raise self.error
        if n == 0 and self.known:
            raise ValueError(
                f"{self.argument}={name!r}: no such module or function; {nearest(name, self.known)}"
            )
        if n == 0:
            raise ValueError(
                f"{self.argument}={name!r}: not reached, the model never called this module (a "
                "module whose weights or forward method another one uses directly is not called)"
            )
        if call is not None and call >= n:
            raise ValueError(f"{self.argument}={name!r}: called {n} times, from #0 to #{n - 1}")
        if call is None and n > 1:
            raise ValueError(
                f"{self.argument}={name!r}: called {n} times in one pass; "
                f"'{name}#0' to '{name}#{n - 1}' name its calls"
            )


class NoFeaturesError(TypeError):
    """A site's value can have no units."""


def check_features(value: Tensor, site: Site, argument: str = "site") -> None:
    """Refuses a site's value that can have no units.

    Raises:
        NoFeaturesError: it is not floating, or has no samples.
        TypeError: it is sparse or the like.
    """
    checks.dense(f"{argument}={site.name!r}", value)
    if not value.is_floating_point() or value.dim() < 2:
        raise NoFeaturesError(
            f"{argument}={site.name!r}: must be a floating tensor [n, ..., features], got "
            f"{value.dtype} of shape {tuple(value.shape)}"
        )


def checked(visits: Sequence[Visit]) -> list[Visit]:
    """Those that had one value, without those that a pattern matched and that had none.

    Raises:
        TypeError, ValueError: as `Visit.check`, of a site named exactly, or where none is left.
    """
    kept, errors = [], []
    for visit in visits:
        try:
            visit.check()
            kept.append(visit)
        except (TypeError, ValueError) as error:
            if not visit.site.by_pattern:
                raise
            errors.append(error)
    if errors and not kept:
        raise errors[0]
    return kept


class EachVisit(Visit):
    """What is done with each value of a place, whatever it is and however often there is one."""

    def reached(self, value: Any) -> Any:
        """As `Visit.reached`."""
        self.n_calls += 1
        found = self.do(value)
        return value if found is None else found


@contextmanager
def at_sites(model: nn.Module, visits: Sequence[Visit]) -> Iterator[None]:
    """Visits sites in every run within a `with` block, after the user's own hooks."""
    root = unwrapped(model)
    with ExitStack() as stack:
        for visit in visits:
            if visit.site.function is None:
                # Registered on the way into the stack: an interrupt leaves no hook behind.
                stack.enter_context(_Hook(root.get_submodule(visit.site.module), visit))
        functions = [visit for visit in visits if visit.site.function is not None]
        if functions:
            modules = dict(root.named_modules(remove_duplicate=False))
            stack.enter_context(_Functions(modules, functions))
        yield


class _Hook:
    """A forward hook or pre-hook that visits a site, while a `with` block lasts."""

    def __init__(self, module: nn.Module, visit: Visit) -> None:
        self.module, self.visit = module, visit

    def __enter__(self) -> None:
        if self.visit.site.of_input:
            self.handle = self.module.register_forward_pre_hook(self._before, with_kwargs=True)
        else:
            self.handle = self.module.register_forward_hook(
                self._after, prepend=self.visit.site.raw
            )

    def __exit__(self, *_: object) -> None:
        self.handle.remove()

    def _after(self, module: nn.Module, args: Any, output: Any) -> Any:
        return self.visit.reached(output)

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        key = self.visit.site.key
        if isinstance(key, int) and key < len(args):
            return (*args[:key], self.visit.reached(args[key]), *args[key + 1 :]), kwargs
        name = list(kwargs)[key - len(args)] if isinstance(key, int) and kwargs else key
        if name not in kwargs:
            raise ValueError(
                f"{self.visit.argument}={self.visit.site.name!r}: no such input; there are "
                f"{[*range(len(args)), *kwargs]}"
            )
        return args, {**kwargs, name: self.visit.reached(kwargs[name])}


class Running:
    """Which module's forward runs, while a `with` block lasts."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.names = {module: name for name, module in reversed([*modules.items()])}
        self.stack = [""]
        self.n_calls: dict[str, int] = {}
        """How often each was called."""
        self.hooks = ExitStack()

    def __enter__(self) -> Running:
        for module, name in self.names.items():
            if name and not isinstance(module, torch.jit.ScriptModule):  # which takes no hooks
                enter = module.register_forward_pre_hook(lambda m, args: self._enter(m))
                self.hooks.callback(enter.remove)
                leave = module.register_forward_hook(
                    lambda m, args, output: self._leave(), always_call=True
                )
                self.hooks.callback(leave.remove)
        return self

    def __exit__(self, *exception: Any) -> None:
        self.hooks.close()

    def _enter(self, module: nn.Module) -> None:
        name = self.names[module]
        self.stack.append(name)
        self.n_calls[name] = self.n_calls.get(name, 0) + 1

    def _leave(self) -> None:
        self.stack.pop()


class _Functions(TorchFunctionMode):
    """Sees torch functions that some modules call directly."""

    def __init__(self, modules: Mapping[str, nn.Module], visits: Sequence[Visit]) -> None:
        super().__init__()
        self.running = Running(modules)
        self.visits = visits
        self.seen = dict.fromkeys(filter(None, modules))

    def __enter__(self) -> _Functions:
        self.running.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self.running.__exit__()
        for visit in self.visits:
            visit.known = list(self.seen)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        name = plain_name(func)
        if tensors_in(output):
            self.seen[f"{self.running.stack[-1]}/{name}#0"] = None
        for visit in self.visits:
            site = visit.site
            if site.function == name and (site.key == -1 or site.module == self.running.stack[-1]):
                if site.key == -1 and visit.n_calls == site.call:
                    new = f"{self.running.stack[-1]}/{name}#"
                    warn_renamed(f"site={site.name!r}", f"site='{new}...'", stacklevel=1)
                output = visit.reached(output)
        return output


def _found(value: Any, site: Site, argument: str) -> tuple[Key | None, Tensor]:
    """The site's tensor in a place's value, and which item it is; None where it is all."""
    if site.item is None and isinstance(value, Tensor):
        return None, value
    key = _only_floating(value, site, argument) if site.item is None else site.item
    try:
        if isinstance(value, Mapping):
            found = value[key]
        elif isinstance(key, str):
            found = getattr(value, key)
        else:
            found = value[key]
    except (KeyError, IndexError, AttributeError, TypeError):
        raise ValueError(
            f"{argument}={site.name!r}: the {type(value).__name__} there has no item {key!r}; "
            f"there are {list(_items(value))}"
        ) from None
    if not isinstance(found, Tensor):
        raise TypeError(
            f"{argument}={site.name!r}: must be a tensor, got {type(found).__name__}; the items "
            f"are {list(_items(value))}"
        )
    return key, found


def _items(value: Any) -> dict[Key, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return dict(enumerate(value)) if isinstance(value, (tuple, list)) else {}


def _only_floating(value: Any, site: Site, argument: str) -> Key:
    """The first item, if it is the only floating tensor."""
    items = _items(value)
    kinds = {key: _is_floating(item) for key, item in items.items()}
    if sum(kinds.values()) == 1 and next(iter(kinds.values())):
        return next(iter(kinds))
    floating = [key for key, yes in kinds.items() if yes]
    hint = f"; name one of its items: {[f'{site.name}[{key!r}]' for key in floating]}"
    raise TypeError(
        f"{argument}={site.name!r}: returned a {type(value).__name__}, not a tensor"
        f"{hint if floating else ''}"
    )


def _is_floating(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point()
    return isinstance(value, (tuple, list)) and any(map(_is_floating, value))


def _replaced(value: Any, key: Any, new: Tensor) -> Any:
    if isinstance(value, tuple):
        names = list(getattr(value, "_fields", ()))
        at = names.index(key) if isinstance(key, str) else key
        items = [new if i == at else item for i, item in enumerate(value)]
        return type(value)(*items) if names else tuple(items)
    changed = copy(value)
    if isinstance(value, (Mapping, list)):
        changed[key] = new
    else:
        object.__setattr__(changed, key, new)
    return changed
