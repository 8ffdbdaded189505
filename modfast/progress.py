"""Progress bars, where they help."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from modfast import checks

Item = TypeVar("Item")


def bar(items: Iterable[Item], description: str, shown: bool, delay: float = 0.0) -> Iterable[Item]:
    """`items` with a progress bar, where standard error is a terminal and tqdm is installed.

    It appears after `delay` seconds.
    """
    if not checks.flag("progress", shown):
        return items
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return items
    # disable=None: shown only where standard error is a terminal.
    found: Iterable[Item] = tqdm(items, desc=description, disable=None, delay=delay)
    return found
