"""Progress bars, where they help."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

Item = TypeVar("Item")


def bar(items: Iterable[Item], description: str, shown: bool, delay: float = 0.0) -> Iterable[Item]:
    """`items` with a progress bar, where standard error is a terminal and tqdm is installed.

    It appears after `delay` seconds.
    """
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return items
    # disable=None: shown only where standard error is a terminal.
    disable = None if shown else True
    found: Iterable[Item] = tqdm(items, desc=description, disable=disable, delay=delay)
    return found
