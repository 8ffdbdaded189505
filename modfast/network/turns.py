"""Threads take turns: at a model, at random states, and at switches of the whole process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from modfast.network.interrupts import Interrupts, deliver

RANDOM = threading.RLock()
"""Held while random states are those of a run: they are the process's."""

_OWNERS: dict[int, int] = {}  # by a module's id, the thread that has it
_FREED = threading.Condition()


@contextmanager
def alone(modules: Sequence[nn.Module]) -> Iterator[None]:
    """No other thread has any of these modules within a `with` block, whose turn comes later.

    A thread may enter again. Ctrl-C does not fall between a change and its putting back, either
    (`Interrupts`).
    """
    with Interrupts(), _Turn(modules):
        yield


class _Turn:
    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.ids = [id(module) for module in modules]

    def __enter__(self) -> None:
        own = threading.get_ident()
        with _FREED:
            while not all(_OWNERS.get(each, own) == own for each in self.ids):
                _FREED.wait(0.1)
                deliver()
            self.ids = [each for each in self.ids if each not in _OWNERS]
            _OWNERS.update(dict.fromkeys(self.ids, own))

    def __exit__(self, *_: object) -> None:
        with _FREED:
            for each in self.ids:
                del _OWNERS[each]
            _FREED.notify_all()


class Switch:
    """A switch of the process, turned by the first `with` block of any thread, back by the last."""

    def __init__(self, turn: Callable[[], Callable[[], object]]) -> None:
        self.turn, self.n = turn, 0
        self.back: Callable[[], object] = lambda: None
        self.lock = threading.Lock()

    def __enter__(self) -> None:
        with self.lock:
            if self.n == 0:
                self.back = self.turn()
            self.n += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.n -= 1
            if self.n == 0:
                self.back()
