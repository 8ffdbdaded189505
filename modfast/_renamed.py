"""Old names of arguments, and old kinds of results, which work for one release and warn."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")

RENAMED: dict[str, dict[str, str]] = {}
"""By function, the new name of each old argument."""


def renamed(**new: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Lets a function take arguments under the names that they had before.

    Each old name gives a DeprecationWarning that says the new one. TypeError where both are given.

    Example:
        >>> import warnings
        >>> @renamed(path="backend")
        ... def run(backend=None):
        ...     return backend
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     run(path="fused")
        'fused'
        >>> print(caught[0].message)
        run(path=...) is now run(backend=...)
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        name = function.__qualname__.removesuffix(".__init__")
        RENAMED[name] = new

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            if not new.keys().isdisjoint(kwargs):
                for old in new.keys() & kwargs.keys():
                    if new[old] in kwargs:
                        raise TypeError(f"{name} got both {new[old]} and {old}, its old name")
                    warn_renamed(f"{name}({old}=...)", f"{name}({new[old]}=...)", stacklevel=3)
                    kwargs[new[old]] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate


def reordered(*old: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Lets a function take its arguments after the first in the order that they had before.

    That order is told by a second argument that is a name. It gives a DeprecationWarning.

    Example:
        >>> import warnings
        >>> @reordered("layer", "data")
        ... def run(model, data, layer):
        ...     return data, layer
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     run(None, "fc2", 3)
        (3, 'fc2')
        >>> print(caught[0].message)
        run(model, layer, data) is now run(model, data, layer)
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        name = function.__qualname__
        first, *others = list(inspect.signature(function).parameters)
        new = ", ".join((first, *others[: len(old)]))

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            if 1 < len(args) <= len(old) + 1 and isinstance(args[1], str):
                before = ", ".join((first, *old))
                warn_renamed(f"{name}({before})", f"{name}({new})", stacklevel=2)
                given: dict[str, Any] = dict(zip(old, args[1:], strict=False))
                return function(args[0], **given, **kwargs)  # type: ignore[arg-type]
            return function(*args, **kwargs)

        return call

    return decorate


def named(*options: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Lets a function take by position what is now keyword-only, its last arguments until then.

    It gives a DeprecationWarning that says their names.

    Example:
        >>> import warnings
        >>> @named("seed")
        ... def run(steps=1, *, seed=None):
        ...     return steps, seed
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     run(5, 3)
        (5, 3)
        >>> print(caught[0].message)
        run with seed by position is now run(seed=...)
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        name = function.__qualname__
        kinds = [each.kind for each in inspect.signature(function).parameters.values()]
        n = kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            late = dict(zip(options, args[n:], strict=False))
            if not late or len(args) > n + len(options) or not late.keys().isdisjoint(kwargs):
                return function(*args, **kwargs)  # which refuses what is too much
            old = f"{name} with {', '.join(late)} by position"
            warn_renamed(old, f"{name}({', '.join(f'{each}=...' for each in late)})", stacklevel=2)
            return function(*args[:n], **kwargs, **late)  # type: ignore[arg-type]

        return call

    return decorate


def warn_renamed(old: str, new: str, stacklevel: int = 2) -> None:
    """Says that `old` is now `new`, at the place that called the caller."""
    warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=stacklevel + 1)


class WasTensor:
    """A result in whose place there was a tensor, its `mi`: it still serves as that one.

    Each such use gives a DeprecationWarning. It is no instance of `torch.Tensor`.

    Example:
        >>> import torch, warnings
        >>> class Found(WasTensor):
        ...     mi = torch.eye(2)
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     Found().sum(), torch.trace(Found()), Found()[0, 0] + 1
        (tensor(2.), tensor(2.), tensor(2.))
        >>> print(caught[0].message)
        Found as a tensor is now Found.mi
    """

    mi: Tensor

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(Tensor, name):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(_as_tensor(self), name)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = {name: _as_tensor(each) for name, each in (kwargs or {}).items()}
        return function(*_as_tensor(args), **given)


def _as_tensor(value: Any) -> Any:
    """`value` with the tensor of each `WasTensor` in it in its place."""
    if isinstance(value, WasTensor):
        name = type(value).__name__
        warn_renamed(f"{name} as a tensor", f"{name}.mi", stacklevel=3)
        return value.mi
    return type(value)(map(_as_tensor, value)) if isinstance(value, (tuple, list)) else value


def _special(name: str) -> Callable[..., Any]:
    def method(self: WasTensor, *args: Any, **kwargs: Any) -> Any:
        return getattr(_as_tensor(self), name)(*_as_tensor(args), **kwargs)

    return method


# Python looks these up in the class.
_READ = ("array", "getitem", "len", "iter", "float", "int", "neg", "abs", "lt", "le", "gt", "ge")
_REFLECTED = ("add", "sub", "mul", "truediv", "matmul", "pow")
for _name in (*_READ, *_REFLECTED, *(f"r{each}" for each in _REFLECTED)):
    setattr(WasTensor, f"__{_name}__", _special(f"__{_name}__"))
