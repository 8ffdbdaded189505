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


def save_result(path: str | os.PathLike[str], result: Any) -> None:
    """Writes a dataclass of tensors, plain values and mappings of such, whole or not at all."""
    values = {field.name: getattr(result, field.name) for field in fields(result)}
    plain = {name: dict(x) if isinstance(x, Mapping) else x for name, x in values.items()}
    state = {"format": _FORMAT, "kind": type(result).__name__, "values": plain}
    with replacing(Path(path)) as temporary:
        torch.save(state, temporary)


def load_result(path: str | os.PathLike[str], kind: type[Result]) -> Result:
    """What `save_result` wrote of a dataclass, its tensors on the CPU; no code of the file runs.

    Raises:
        OSError: there is no such file.
        ValueError: the file holds something else.

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
    wanted = f"{os.fspath(path)!r} holds no {kind.__name__} that modfast saved (format {_FORMAT})"
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # which one, hangs on the file's first bytes
        raise ValueError(wanted) from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise ValueError(wanted)
    if state.get("kind") != kind.__name__:
        raise ValueError(f"{wanted}: its kind is {state.get('kind')!r}")
    try:
        return kind(**state["values"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{wanted}: {error}") from error
