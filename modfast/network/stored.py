"""Values of a model's sites in files, which may be larger than the memory."""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import numpy as np
import torch
from torch import Tensor

from modfast import checks
from modfast.files import prepare, temporary_beside, writing
from modfast.network.interrupts import Interrupts

_MAGIC = b"\x93NUMPY\x01\x00"
_DIGITS = 20  # of a number of rows
# So that no memory is set aside for what nobody changes; Python names the flag only from 3.13 on.
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


class Stored:
    """Files `.npy` in a folder, one for each site, that grow by parts; see `storing`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, _Growing] = {}

    def add(self, site: str, value: Tensor) -> None:
        """Appends a value's rows to its site's file; the first value may be of any shape.

        Raises:
            TypeError: values without plain memory.
            ValueError: rows of another shape or dtype than those before.
            OSError: they cannot be written; it names the file.
        """
        if site not in self.files:
            self.files[site] = _Growing(self.folder / f"{quote(site, safe='')}.npy", site)
        self.files[site].add(value)

    def keep(self, sites: Sequence[str]) -> None:
        """Drops other sites, such as those of a pattern that had no value in some pass."""
        for site in self.files.keys() - set(sites):
            self.files.pop(site).remove()

    def tensor(self, site: str) -> Tensor:
        """A site's values, mapped into memory; what is done to them stays there.

        Raises:
            OSError: the file cannot be read.
        """
        return self.files[site].mapped()


@contextmanager
def storing(folder: Path) -> Iterator[Stored]:
    """Takes up values; at the end of the block they have their names.

    Whoever opens a file finds an old one or the whole new one. If the block raises, the old ones
    stay and nothing else does.

    Raises:
        OSError: the folder cannot be made; it is named.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with storing(folder) as stored:
        ...     for part in torch.arange(6.0).view(3, 2).split(2):
        ...         stored.add("fc:input", part)
        >>> [file.name for file in folder.iterdir()]
        ['fc%3Ainput.npy']
        >>> stored.tensor("fc:input").tolist() == np.load(folder / "fc%3Ainput.npy").tolist()
        True
    """
    stored = Stored(folder)
    with writing(folder):
        prepare(folder)
    with Interrupts():
        try:
            yield stored
            for file in stored.files.values():
                file.finish()
            for file in stored.files.values():
                file.rename()
        finally:
            for file in stored.files.values():
                file.remove()


class _Growing:
    """An array of unknown length in a file: a header, which is written last, and rows."""

    def __init__(self, path: Path, site: str) -> None:
        self.path, self.site, self.temporary = path, site, temporary_beside(path)
        self.file: BinaryIO | None = None
        self.dtype = torch.float32
        self.shape: tuple[int, ...] = ()

    def add(self, value: Tensor) -> None:
        checks.dense(f"sites={self.site!r}", value)
        shape = tuple(value.shape)
        if self.file is None:
            self.dtype, self.shape = value.dtype, shape
        elif (self.dtype, self.shape[1:]) != (value.dtype, shape[1:]):
            kinds = [(self.dtype, *self.shape[1:]), (value.dtype, *shape[1:])]
            told = [str(("n", *each)) + f" {str(kind)[6:]}" for kind, *each in kinds]
            raise ValueError(
                f"sites={self.site!r}: batches must give values of one shape and dtype, got "
                f"{' and '.join(told)}"
            )
        plain = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
        with writing(self.path):
            if self.file is None:
                self.file = open(self.temporary, "xb")  # noqa: SIM115
                self.file.write(self.header())
            else:
                self.shape = (self.shape[0] + shape[0], *self.shape[1:])
            self.file.write(plain.reshape(-1).view(torch.uint8).numpy().data)

    def header(self) -> bytes:
        """As NumPy's format 1.0 has it, as long for any number of rows."""
        text = (
            f"{{'descr': {_descr(self.dtype)!r}, 'fortran_order': False, 'shape': {self.shape}, }}"
        )
        text += " " * (_DIGITS - len(str(self.shape[0] if self.shape else "")))
        size = len(_MAGIC) + 2 + len(text) + 1
        text += " " * (-size % 64) + "\n"
        return _MAGIC + len(text).to_bytes(2, "little") + text.encode("latin1")

    def finish(self) -> None:
        if self.file is not None:
            with writing(self.path):
                self.file.seek(0)
                self.file.write(self.header())
                self.file.close()

    def rename(self) -> None:
        with writing(self.path):
            self.temporary.replace(self.path)

    def remove(self) -> None:
        with suppress(OSError):
            if self.file is not None:
                self.file.close()
        with suppress(OSError):
            self.temporary.unlink(missing_ok=True)

    def mapped(self) -> Tensor:
        n = math.prod(self.shape)
        with torch.inference_mode(False):
            if n == 0:
                return torch.empty(self.shape, dtype=self.dtype, device="cpu")
            flat = torch.frombuffer(
                _mapped(self.path), dtype=self.dtype, count=n, offset=len(self.header())
            )
            return flat.view(self.shape)


def _mapped(path: Path) -> mmap.mmap:
    """A whole file, of which changed pages become the process's own."""
    with open(path, "rb") as file:
        if not hasattr(mmap, "MAP_PRIVATE"):
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        return mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE | _NORESERVE, protection)


def _descr(dtype: torch.dtype) -> str:
    """NumPy's name of a dtype; where it has none, of unsigned integers of its size."""
    try:
        found: str = torch.empty(0, dtype=dtype, device="cpu").numpy().dtype.str
        return found
    except TypeError:
        return np.dtype(f"u{dtype.itemsize}").str
