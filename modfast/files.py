"""Files that are whole or not there: tensors by safetensors, all else as JSON in the same file."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import math
import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_FORMAT = 4
_UNCHECKED = 3  # the same without a checksum
_OLD_FORMAT = 2  # by torch.save, read with weights_only
_ZIP = b"PK\x03\x04"  # how what torch.save writes begins
_DIGEST = 16
_MARK = re.compile(rb'"modfast_checksum":"([0-9a-f]{%d})"' % (2 * _DIGEST))
_NO_CHECKSUM = "0" * 2 * _DIGEST
_NUMBERS = itertools.count()  # of temporary files of this process


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it at the end of the block.

    Whoever opens `path` finds the old file or the whole new one. If the block raises, the old one
    stays. The folder is made if need be, and what killed processes of this machine left in it is
    removed.

    Raises:
        OSError: no such file can be written; the message names `path`.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with replacing(folder / "a.txt") as temporary:
        ...     _ = temporary.write_text("whole")
        >>> [file.name for file in folder.iterdir()]
        ['a.txt']
    """
    temporary = temporary_beside(path)
    try:
        with writing(path):
            prepare(path.parent)
            yield temporary
            temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def temporary_beside(path: Path) -> Path:
    """A name that no other file has, from which `prepare` tells whose it is."""
    return path.with_name(f".{path.name}.{_here()}.{os.getpid()}.{next(_NUMBERS)}.tmp")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Has errors name `path`, and say that it cannot be written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        told = re.search(r"os error (\d+)", str(error))
        number = getattr(error, "errno", None) or (int(told[1]) if told else errno.EIO)
        raise OSError(number, f"cannot be written ({error})", os.fspath(path)) from error


def prepare(folder: Path) -> None:
    """Makes a folder if need be, and removes what killed processes of this machine left in it."""
    folder.mkdir(parents=True, exist_ok=True)
    _remove_left(folder)


def _here() -> str:
    return re.sub(r"\W", "-", platform.node())


def _remove_left(folder: Path) -> None:
    """Removes temporary files of processes that no longer live."""
    if os.name != "posix":  # elsewhere a process cannot be asked
        return
    for file in folder.glob(f".*.{_here()}.*.*.tmp"):
        process = file.name.split(".")[-3]
        if process.isdecimal():
            try:
                os.kill(int(process), 0)  # which sends nothing
            except (ProcessLookupError, OverflowError):
                with suppress(OSError):
                    file.unlink()
            except PermissionError:
                continue  # it lives, and is another user's


def save_values(path: str | os.PathLike[str], kind: str, values: Mapping[str, Any]) -> None:
    """Writes tensors, plain values, and lists, tuples and mappings of such, whole or not at all.

    The file is one of safetensors, whose tensors any reader of these finds under names such as
    "mask.fc1.weight". How they belong together, and all else, is JSON in its metadata.

    A checksum of the whole file is in it.

    Raises:
        TypeError: a value of another kind.
        OSError: the file cannot be written, as where the disk is full; it names the path.
    """
    tensors: dict[str, Tensor] = {}
    told = {name: _encoded(value, name, tensors) for name, value in values.items()}
    text = json.dumps({"format": _FORMAT, "kind": kind, "values": told}, allow_nan=False)
    with replacing(Path(path)) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        told = {"modfast": text, "modfast_checksum": _NO_CHECKSUM}
        save_file(_packed(tensors), temporary, told)
        with open(temporary, "r+b") as file:
            checksum, at = _checksum(file)
            file.seek(at)
            file.write(checksum.encode())
        temporary.chmod(mode)  # what others may read; safetensors keeps the file to its owner


def load_values(path: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    """What `save_values` wrote of a kind, tensors on the CPU; no code of the file runs.

    Raises:
        OSError: there is no such file.
        ValueError: the file holds something else, or is not as it was written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "kept.safetensors"
        >>> save_values(path, "share", {"share": 0.5})
        >>> load_values(path, "share")
        {'share': 0.5}
    """
    with open(path, "rb") as file:
        is_old = file.read(len(_ZIP)) == _ZIP
    try:
        state = _read_old(path) if is_old else _read(path)
    except Exception as error:  # which one, depends on the file's bytes
        raise ValueError(f"{holds_no(path, kind)}: {error or type(error).__name__}") from error
    if state["kind"] != kind:
        raise ValueError(f"{holds_no(path, kind)}: its kind is {state['kind']!r}")
    values: dict[str, Any] = state["values"]
    return values


def holds_no(path: str | os.PathLike[str], kind: str) -> str:
    """The beginning of each message about a file's content."""
    formats = f"format {_OLD_FORMAT} to {_FORMAT}"
    return f"{os.fspath(path)!r} holds no {kind} that modfast saved ({formats})"


def _checksum(file: BinaryIO) -> tuple[str, int]:
    """That of a file but for its own 32 digits, and where these are; -1 where there are none."""
    file.seek(0)
    size = file.read(8)
    header = file.read(min(int.from_bytes(size, "little"), os.fstat(file.fileno()).st_size))
    mark = _MARK.search(header)
    at = -1 if mark is None else mark.start(1)
    found = hashlib.blake2b(size, digest_size=_DIGEST)
    found.update(header if mark is None else header[:at] + header[at + 2 * _DIGEST :])
    while part := file.read(2**20):
        found.update(part)
    return found.hexdigest(), at if mark is None else at + len(size)


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    with open(path, "rb") as whole:
        checksum, at = _checksum(whole)
        whole.seek(max(at, 0))
        is_as_written = at >= 0 and whole.read(len(checksum)) == checksum.encode()
    with safe_open(path, framework="pt") as file:
        state = json.loads(file.metadata()["modfast"])
        # Copies: what is read is a view of the file, which may change.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        if "modfast_checksum" in file.metadata() and not is_as_written:
            raise ValueError("its checksum is not that of its content")
    if state["format"] != (_FORMAT if is_as_written else _UNCHECKED):
        raise ValueError(f"its format is {state['format']!r}")
    values = {name: _decoded(value, tensors) for name, value in state["values"].items()}
    return {"kind": state["kind"], "values": values}


def _read_old(path: str | os.PathLike[str]) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if state["format"] != _OLD_FORMAT or not isinstance(state["values"], dict):
        raise ValueError(f"its format is {state['format']!r}")
    return state


def _encoded(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON takes it; what JSON has no form for is an object with one key, its kind."""
    if isinstance(value, Tensor):
        while name in tensors:
            name += "'"
        tensors[name] = value
        return {"tensor": name}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if isinstance(value, (list, tuple)):
        items = [_encoded(each, f"{name}.{i}", tensors) for i, each in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, Mapping):
        pairs = []
        for key, each in value.items():
            word = ".".join(map(str, key)) if isinstance(key, tuple) else key
            pairs.append([_encoded(key, name, {}), _encoded(each, f"{name}.{word}", tensors)])
        return {"mapping": pairs}
    raise TypeError(
        f"{name} must be a tensor, a plain value or a collection of such to be saved, "
        f"got {type(value).__name__}"
    )


def _decoded(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decoded(each, tensors) for each in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "float":
        return float(content)
    if kind == "tuple":
        return tuple(_decoded(content, tensors))
    if kind == "mapping":
        return {_decoded(key, tensors): _decoded(each, tensors) for key, each in content}
    raise ValueError(kind)


def _packed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, each contiguous and alone in its memory, as safetensors wants."""
    packed, seen = {}, set()
    for name, value in tensors.items():
        found = value.detach().cpu().contiguous()
        memory = found.untyped_storage()
        if memory.nbytes() != found.nbytes or memory.data_ptr() in seen:
            found = found.clone()
        seen.add(found.untyped_storage().data_ptr())
        packed[name] = found
    return packed
