"""Builds modfast's compiled libraries; everything else is in pyproject.toml.

modfast._C     CPU operators and the pybind11 module: always built.
modfast._cuda  CUDA operators: built where torch has CUDA and a whole toolkit of its major version
               is found, trying the conventional place before giving up; no GPU is needed.

Environment: FORCE_CUDA=1 makes a missing toolkit an error, FORCE_ONLY_CPU=1 skips CUDA,
TORCH_CUDA_ARCH_LIST chooses architectures, DEBUG=1 builds without optimization.
MODFAST_SANITIZE=address,undefined (or thread) builds the CPU operators under these sanitizers of
the compiler, whose libraries must then be preloaded: .ci/sanitize does.
"""

import os
import re
import shutil
import sys
from pathlib import Path

import pybind11
import torch
from setuptools import setup

ROOT = Path(__file__).parent
# The oldest torch that the libraries run on: 2.11.0 (bytes: major, minor, patch, ...).
TORCH_TARGET = ("2.11", "0x020b000000000000")


def flag(name: str) -> bool:
    return os.environ.get(name, "0") not in ("", "0")


def toolkit_version(home: Path) -> tuple[int, int] | None:
    """(major, minor) of a whole CUDA toolkit at `home`; None where it is not one."""
    if not (home / "include" / "cuda_runtime.h").exists() or not (home / "bin" / "nvcc").exists():
        return None
    header = (home / "include" / "cuda.h").read_text(errors="ignore")
    found = re.search(r"#define CUDA_VERSION (\d+)", header)
    return (int(found[1]) // 1000, int(found[1]) % 1000 // 10) if found else None


def find_toolkit() -> tuple[Path, tuple[int, int]] | str:
    """The CUDA toolkit to build with, or why there is none."""
    if flag("FORCE_ONLY_CPU"):
        return "FORCE_ONLY_CPU is set"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    candidates = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    if nvcc := shutil.which("nvcc"):
        candidates.append(str(Path(nvcc).resolve().parents[1]))
    candidates.append("/usr/local/cuda")
    wanted = int(torch.version.cuda.split(".")[0])
    for home in dict.fromkeys(Path(c) for c in candidates if c):
        version = toolkit_version(home)
        if version is not None and version[0] == wanted:
            return home, version
    return f"no whole CUDA {wanted} toolkit was found (set CUDA_HOME to one)"


toolkit = find_toolkit()
if isinstance(toolkit, str):
    if flag("FORCE_CUDA"):
        sys.exit(f"modfast: FORCE_CUDA is set, but {toolkit}")
    print(f"modfast: building without CUDA kernels: {toolkit}")
    architectures, cuda_version = "", ""
else:
    home, version = toolkit
    # torch's helper guesses both wrongly on a machine with nvcc and no GPU.
    os.environ["CUDA_HOME"] = str(home)
    default = "8.0;9.0;10.0+PTX" if version >= (12, 8) else "8.0;9.0+PTX"
    architectures = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", default)
    cuda_version = ".".join(map(str, version))

# Imported late: it reads CUDA_HOME at import.
from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension  # noqa: E402

package_version = re.search(
    r'^__version__ = "(.+)"', (ROOT / "modfast" / "__init__.py").read_text(), re.M
)
assert package_version is not None


def text_macro(value: str) -> str:
    return f'"{value}"'


MACROS = [
    ("TORCH_TARGET_VERSION", TORCH_TARGET[1]),
    ("MODFAST_VERSION", text_macro(package_version[1])),
    ("MODFAST_TORCH_TARGET", text_macro(TORCH_TARGET[0])),
    ("MODFAST_TORCH_BUILT", text_macro(torch.__version__)),
    ("MODFAST_CUDA_ARCHITECTURES", text_macro(architectures)),
    ("MODFAST_CUDA_TOOLKIT", text_macro(cuda_version)),
]
SANITIZE = os.environ.get("MODFAST_SANITIZE", "")
OPTIMIZE = ["-O0", "-g"] if flag("DEBUG") else ["-O3", "-g0"]
if SANITIZE:
    OPTIMIZE = [
        *("-O1", "-g1", f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all"),
        *("-fno-omit-frame-pointer", "-D_GLIBCXX_ASSERTIONS"),
    ]
CXX = [
    *OPTIMIZE,
    "-fvisibility=hidden",
    # `omp simd` without an OpenMP runtime: threads are torch's.
    "-fopenmp-simd",
    # sqrt must not set errno, or loops with it cannot be vectorized.
    "-fno-math-errno",
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",  # in torch's headers
    *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),  # in GCC's intrinsics
    "-Wno-unknown-pragmas",
    "-Wno-psabi",  # wide vectors are only passed to what is inlined
]
NVCC = [
    *(["-G", *OPTIMIZE] if flag("DEBUG") else ["-O3"]),
    "-DUSE_CUDA",
    "-lineinfo",
    "-Xcompiler=-fvisibility=hidden",
]


def sources(*patterns: str) -> list[str]:
    return sorted(str(p.relative_to(ROOT)) for pattern in patterns for p in ROOT.glob(pattern))


headers = sources("csrc/**/*.h", "csrc/**/*.cuh")
extensions = [
    CppExtension(
        "modfast._C",
        sources("csrc/*.cpp", "csrc/cpu/*.cpp"),
        # Before torch's bundled copy, which refuses TORCH_TARGET_VERSION in older releases.
        include_dirs=[pybind11.get_include()],
        define_macros=MACROS,
        extra_compile_args={"cxx": CXX},
        extra_link_args=[f"-fsanitize={SANITIZE}"] if SANITIZE else [],
        depends=headers,
    )
]
if architectures:
    extensions.append(
        CUDAExtension(
            "modfast._cuda",
            sources("csrc/cuda/*.cu"),
            define_macros=MACROS,
            extra_compile_args={"cxx": CXX, "nvcc": NVCC},
            depends=headers,
        )
    )
for extension in extensions:
    # Operators use torch's stable ABI only: nothing of its Python bindings is linked.
    extension.libraries.remove("torch_python")

setup(ext_modules=extensions, cmdclass={"build_ext": BuildExtension})
