"""Old names of arguments, which work for one release and warn."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

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


def warn_renamed(old: str, new: str, stacklevel: int = 2) -> None:
    """Says that `old` is now `new`, at the place that called the caller."""
    warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=stacklevel + 1)
