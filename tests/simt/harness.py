"""Builds the kernels of csrc/cuda for the host, under the checker, and runs operators on them.

README.md beside this file tells what is checked, and how to write a kernel for both.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"

COMMON = ["-std=c++20", "-g", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
COMMON += [f"-I{HERE / 'include'}"]
# thread, bounds and alignment only insert calls, to machine/hooks.cpp; no library of the compiler
# is linked. More optimization would merge accesses before the checker sees them.
HOOKED = [
    *COMMON,
    "-O1",
    "-fsanitize=thread",
    "-fsanitize=bounds,alignment",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    "-Wno-unknown-pragmas",
]
TORCH_FOLDER = Path(torch.__file__).parent
TORCH = [
    "-Dmodfast=modfast_simt",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
    "-Wno-unused-parameter",
    f"-I{CSRC}",
    f"-isystem{TORCH_FOLDER / 'include'}",
    f"-isystem{TORCH_FOLDER / 'include/torch/csrc/api/include'}",
]


def compiler() -> str | None:
    """The C++ compiler, if there is one; its hooks are those of GCC."""
    return shutil.which(os.environ.get("CXX", "g++"))


def missing() -> str | None:
    """What is not here that a build needs; None if all is."""
    if compiler() is None or not CSRC.exists():
        return "no g++, or csrc does not lie beside the tests"
    return None


def build(name: str, units: dict[Path, list[str]], folder: Path) -> Path:
    """A library of `units` (source -> flags) and the machine; made anew when a source changes."""
    machine = {source: [*COMMON, "-O2"] for source in sorted((HERE / "machine").glob("*.cpp"))}
    units = {**machine, **units}
    key = hashlib.sha256(f"{compiler()} {torch.__version__} {units}".encode())
    for source in sorted([*CSRC.rglob("*.*"), *HERE.rglob("*.[chi]*")]):
        key.update(source.read_bytes())
    made = folder / f"{name}-{key.hexdigest()[:16]}"
    if not made.exists():
        for old in folder.glob(f"{name}-*"):
            shutil.rmtree(old)
        work = Path(tempfile.mkdtemp(dir=folder, prefix=f"{name}-"))
        # Where the line counters go is fixed when compiling: objects are named as they will lie.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda unit: compile_unit(*unit, work), units.items()))
        libraries = [f"-L{TORCH_FOLDER / 'lib'}", "-ltorch_cpu", "-lc10", "-ldl"]
        linked = ["-shared", "--coverage", "-Wl,-z,defs", "-o", work / "kernels.so"]
        run([compiler(), *linked, *objects, *libraries])
        work.rename(made)
    return made / "kernels.so"


def compile_unit(source: Path, flags: list[str], folder: Path) -> Path:
    """The object file of one source."""
    made = folder / f"{source.stem}.o"
    run([compiler(), *flags, "-x", "c++", "-c", source, "-o", made])
    return made


def run(command: list[object]) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stderr}"
    return done.stdout


def build_operators(folder: Path) -> Path:
    """The operators of csrc/cuda, as modfast_simt:: on the CPU."""
    hooked = [*HOOKED, *TORCH, "--coverage", "-include", "operators.h"]
    units = dict.fromkeys(sorted((CSRC / "cuda").glob("*.cu")), hooked)
    return build("operators", {**units, CSRC / "schema.cpp": [*COMMON, *TORCH]}, folder)


def load(library: Path) -> ctypes.CDLL:
    """The library's functions; its operators, if it has some, register themselves."""
    api = ctypes.CDLL(str(library))
    api.simt_barriers.restype = ctypes.c_char_p
    api.simt_configure.argtypes = [ctypes.c_int, ctypes.c_uint64]
    return api


def barriers(api: ctypes.CDLL) -> dict[str, bool]:
    """For each barrier that was passed ("file:line"): is it shown that it is needed?"""
    found: dict[str, bool] = {}
    for line in api.simt_barriers().decode().splitlines():
        needed, place = line.split(" ", 1)
        place = str(Path(place).resolve())
        found[place] = found.get(place, False) or needed == "1"
    return found


@dataclass(frozen=True)
class Lines:
    """How often the lines of a source file were run."""

    counts: dict[int, int]

    @property
    def missed(self) -> list[int]:
        return sorted(line for line, count in self.counts.items() if count == 0)


class Machine:
    """The operators of csrc/cuda in this process, and what their runs have shown so far."""

    def __init__(self, library: Path):
        self.library = library
        self._counters = Path(tempfile.mkdtemp())
        atexit.register(shutil.rmtree, self._counters, ignore_errors=True)
        # Read when counters are written: not into the shared build.
        os.environ["GCOV_PREFIX"] = str(self._counters)
        self._api = load(library)
        names = torch._C._dispatch_get_all_op_names()
        mine = [name.split("::")[1] for name in names if name.startswith("modfast_simt::")]
        self.operators = [
            name
            for name in mine
            if torch._C._dispatch_has_kernel_for_dispatch_key(f"modfast_simt::{name}", "CPU")
        ]

    def configure(self, schedules: int = 5, seed: int = 0) -> None:
        """In how many orders each kernel runs from now on, and which."""
        self._api.simt_configure(schedules, seed)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Meanwhile, modfast's operators on CPU tensors are the CUDA ones, run here."""
        override = torch.library.Library("modfast", "IMPL")
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Warning only once for all operators")
                for name in self.operators:
                    kernel = getattr(torch.ops.modfast_simt, name).default
                    override.impl(name, kernel, "CPU")
            yield
        finally:
            override._destroy()

    def barriers(self) -> dict[str, bool]:
        """For each barrier that was passed ("file:line"): is it shown that it is needed?"""
        return barriers(self._api)

    def lines(self) -> dict[Path, Lines]:
        """What ran of each source in csrc/cuda."""
        self._api.simt_write_counters()
        counts: dict[Path, dict[int, int]] = {}
        for data in self._counters.rglob("*.gcda"):
            shutil.copy(self.library.with_name(data.with_suffix(".gcno").name), data.parent)
            report = json.loads(run(["gcov", "--json-format", "--stdout", data]))
            for file in report["files"]:
                path = Path(file["file"]).resolve()
                if path.parent == CSRC / "cuda":
                    own = counts.setdefault(path, {})
                    for line in file["lines"]:
                        number = line["line_number"]
                        own[number] = own.get(number, 0) + line["count"]
        return {path: Lines(own) for path, own in sorted(counts.items())}


def barriers_in_sources() -> set[str]:
    """Every plain barrier of csrc/cuda, as "file:line"."""
    return {
        f"{source}:{number}"
        for source in sorted((CSRC / "cuda").glob("*.cu*"))
        for number, line in enumerate(source.read_text().splitlines(), start=1)
        if re.search(r"__sync(threads|warp)\(", line.split("//")[0])
    }
