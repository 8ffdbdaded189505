"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")
_FORMAT = 2


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it at the end of the block.

    Whoever opens `path` finds the old file or the whole new one. If the block raises, the old one
    stays. The folder is made if need be.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with replacing(folder / "a.txt") as temporary:
        ...     _ = temporary.write_text("whole")
        >>> [file.name for file in folder.iterdir()]
        ['a.txt']
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_values(path: str | os.PathLike[str], kind: str, values: Mapping[str, Any]) -> None:
    """Writes tensors, plain values and mappings of such by name, whole or not at all."""
    plain = {
        name: dict(x) if isinstance(x, Mapping) and not isinstance(x, dict) else x
        for name, x in values.items()
    }
    with replacing(Path(path)) as temporary:
        torch.save({"format": _FORMAT, "kind": kind, "values": plain}, temporary)


def load_values(path: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    """What `save_values` wrote of a kind, tensors on the CPU; no code of the file runs.

    Raises:
        OSError: there is no such file.
        ValueError: the file holds something else.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "kept.pt"
        >>> save_values(path, "share", {"share": 0.5})
        >>> load_values(path, "share")
        {'share': 0.5}
    """
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # which one, hangs on the file's first bytes
        raise ValueError(_holds_no(path, kind)) from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise ValueError(_holds_no(path, kind))
    if state.get("kind") != kind:
        raise ValueError(f"{_holds_no(path, kind)}: its kind is {state.get('kind')!r}")
    values = state.get("values")
    if not isinstance(values, dict):
        raise ValueError(_holds_no(path, kind))
    return values


def _holds_no(path: str | os.PathLike[str], kind: str) -> str:
    return f"{os.fspath(path)!r} holds no {kind} that modfast saved (format {_FORMAT})"


def save_result(path: str | os.PathLike[str], result: Any) -> None:
    """Writes a dataclass of what `save_values` takes."""
    values = {field.name: getattr(result, field.name) for field in fields(result)}
    save_values(path, type(result).__name__, values)


def load_result(path: str | os.PathLike[str], kind: type[Result]) -> Result:
    """What `save_result` wrote of a dataclass.

    Raises:
        OSError, ValueError: as `load_values`; fields that the dataclass has not, or refuses.

    Example:
        >>> import dataclasses, tempfile
        >>> @dataclasses.dataclass
        ... class Kept:
        ...     share: float
        >>> path = Path(tempfile.mkdtemp()) / "kept.pt"
        >>> save_result(path, Kept(0.5))
        >>> load_result(path, Kept)
        Kept(share=0.5)
    """
    values = load_values(path, kind.__name__)
    try:
        return kind(**values)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{_holds_no(path, kind.__name__)}: {error}") from error
