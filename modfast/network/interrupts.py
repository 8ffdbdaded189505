"""Ctrl-C, which may come between any two steps, is put off while something is put back."""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from types import FrameType
from typing import Any, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# Behind them lie conversions to enums, which take ten times as long.
_get: Callable[[int], Any] = getattr(signal.getsignal, "__wrapped__", signal.getsignal)
_set: Callable[[int, Any], Any] = getattr(signal.signal, "__wrapped__", signal.signal)
_NUMBER = int(signal.SIGINT)
_SETTLING = frozenset({"__enter__", "__exit__", "enter_context", "__del__"})
_AT_THE_END = frozenset({"weakref", "torch._dynamo.utils"})  # of an object: its dictionaries' doing


class Decorator(Protocol):
    """Gives a function of the same signature."""

    def __call__(self, function: Callable[P, T], /) -> Callable[P, T]:  # noqa: D102
        ...


class Interrupts:
    """Within a `with` block no Ctrl-C falls between a change and its putting back.

    Whatever is changed and put back by `__enter__` and `__exit__` of context managers, torch's own
    among them, is so wholly or not at all. A Ctrl-C that comes meanwhile is told after it, by
    `deliver` or at the end of the block; a second one at once. Python runs its signal handlers in
    the main thread alone, so this has an effect only there, and only where Ctrl-C has a handler.

    Example:
        >>> import signal
        >>> class Slow:
        ...     done = False
        ...     def __enter__(self): pass
        ...     def __exit__(self, *_):
        ...         signal.raise_signal(signal.SIGINT)
        ...         self.done = True
        >>> slow = Slow()
        >>> try:
        ...     with Interrupts(), slow:
        ...         pass
        ... except KeyboardInterrupt:
        ...     slow.done
        True
    """

    current: Interrupts | None = None
    """The outermost one in force."""

    def __init__(self) -> None:
        self.before: Any = None
        self.pending = False

    def __enter__(self) -> None:
        before = _get(_NUMBER)
        if callable(before) and not isinstance(getattr(before, "__self__", None), Interrupts):
            self.before = before
            try:
                _set(_NUMBER, self.handle)
                Interrupts.current = self
            except ValueError:  # in another thread than the main one
                self.before = None

    def __exit__(self, *_: object) -> None:
        if self.before is None:
            return
        Interrupts.current = None
        if _get(_NUMBER) == self.handle:  # else a model set another
            _set(_NUMBER, self.before)
        self.tell()

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal's handler meanwhile."""
        if not self.pending and _is_settling(frame):
            self.pending = True
        else:
            self.pending = False
            self.before(number, frame)

    def tell(self) -> None:
        """Raises what was put off."""
        if self.pending:
            self.pending = False
            self.before(_NUMBER, sys._getframe(1))


def deliver() -> None:
    """Raises a Ctrl-C that was put off; to be called where nothing is half done.

    Raises:
        KeyboardInterrupt: there was one, or what the caller's own handler makes of it.
    """
    if Interrupts.current is not None:
        Interrupts.current.tell()


def _is_settling(frame: FrameType | None) -> bool:
    """Whether a context manager is being entered or left, somewhere below this package.

    Or something done at an object's end, where exceptions are lost.
    """
    found = False
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if frame.f_code.co_name in _SETTLING or module in _AT_THE_END:
            found = True
        if found and module.startswith("modfast."):
            return True
        frame = frame.f_back
    return False


def under(*contexts: Callable[[], AbstractContextManager[Any]]) -> Decorator:
    """Runs a function within contexts of torch's, which no interrupt leaves in force."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            with Interrupts(), ExitStack() as stack:
                for make in contexts:
                    stack.enter_context(make())
                return function(*args, **kwargs)

        return call

    return decorate
