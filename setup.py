"""Builds modfast's compiled libraries; everything else is in pyproject.toml.

modfast._C     CPU operators and the module of build facts: always built.
modfast._cuda  CUDA operators: built for the GPUs that torch sees here, with a whole toolkit of its
               major version. Where there is no GPU, they are built only when asked for.

Both keep to Python's limited API and torch's stable one: one wheel serves every Python from 3.10
and every torch from 2.11 on.

Environment: FORCE_CUDA=1 builds CUDA operators without a GPU too, for all architectures that wheels
serve, and makes a missing toolkit an error; TORCH_CUDA_ARCH_LIST chooses architectures, which also
asks for CUDA; FORCE_ONLY_CPU=1 skips it; DEBUG=1 builds without optimization.
MODFAST_SANITIZE=address,undefined (or thread) builds the CPU operators under these sanitizers of
the compiler, whose libraries must then be preloaded: .ci/sanitize does.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch
from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

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


def gpus_here() -> list[str] | str:
    """What the GPUs here can run ("9.0"), or why there is nothing to build for."""
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} saw no GPU (FORCE_CUDA=1 builds them even so)"
    found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    able = [f"{major}.{minor}" for major, minor in sorted(found) if major >= 8]
    return able or f"{torch.cuda.get_device_name()} is older than the kernels' first, 8.0"


def choose_cuda() -> tuple[Path, str, str, str] | str:
    """Toolkit, its version, architectures and the reason for them; or why there is no CUDA."""
    if flag("FORCE_ONLY_CPU"):
        return "FORCE_ONLY_CPU is set"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    given = os.environ.get("TORCH_CUDA_ARCH_LIST")
    gpus = [] if given or flag("FORCE_CUDA") else gpus_here()
    if isinstance(gpus, str):
        return gpus
    toolkit = find_toolkit()
    if isinstance(toolkit, str):
        return toolkit
    home, version = toolkit
    told = home, ".".join(map(str, version))
    if given:
        return *told, given, "TORCH_CUDA_ARCH_LIST asks for them"
    everything = "8.0;9.0;10.0+PTX" if version >= (12, 8) else "8.0;9.0+PTX"
    if flag("FORCE_CUDA"):
        return *told, everything, "FORCE_CUDA is set"
    listing = [home / "bin" / "nvcc", "--list-gpu-arch"]
    known = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split()
    if all(f"compute_{gpu.replace('.', '')}" in known for gpu in gpus):
        return *told, ";".join(gpus), "the GPUs here"
    return *told, everything, f"the toolkit knows not all of the GPUs here ({', '.join(gpus)})"


chosen = choose_cuda()
if isinstance(chosen, str):
    if flag("FORCE_CUDA"):
        sys.exit(f"modfast: FORCE_CUDA is set, but {chosen}")
    cuda_version, architectures, reason = "", "", chosen
    print(f"modfast: building without CUDA kernels: {reason}")
else:
    home, cuda_version, architectures, reason = chosen
    print(f"modfast: building CUDA kernels for {architectures} by {home}: {reason}")
    # torch's helper guesses both wrongly on a machine with nvcc and no GPU.
    os.environ["CUDA_HOME"] = str(home)
    os.environ["TORCH_CUDA_ARCH_LIST"] = architectures

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
    ("MODFAST_CUDA_BECAUSE", text_macro(reason)),
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
    # With it, and without line information (which NVCC_APPEND_FLAGS=-lineinfo brings back for a
    # profiler), the library has a tenth of the size, 5 MB.
    "-Xfatbin=-compress-all",
    "-Xcompiler=-fvisibility=hidden",
]


def sources(*patterns: str) -> list[str]:
    return sorted(str(p.relative_to(ROOT)) for pattern in patterns for p in ROOT.glob(pattern))


# Free-threaded Pythons have no limited API.
LIMITED = not sysconfig.get_config_var("Py_GIL_DISABLED")
headers = sources("csrc/**/*.h", "csrc/**/*.cuh")
extensions = [
    CppExtension(
        "modfast._C",
        sources("csrc/*.cpp", "csrc/cpu/*.cpp"),
        define_macros=MACROS,
        extra_compile_args={"cxx": CXX},
        extra_link_args=[f"-fsanitize={SANITIZE}"] if SANITIZE else [],
        depends=headers,
        py_limited_api=LIMITED,
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
            py_limited_api=LIMITED,
        )
    )
for extension in extensions:
    # Operators use torch's stable ABI only: nothing of its Python bindings is linked.
    extension.libraries = [name for name in extension.libraries if name != "torch_python"]


class BuildPython(build_py):
    """Of bench/ only the suite is shipped, and not the programs beside it."""

    def find_package_modules(self, package: str, folder: str) -> list[tuple[str, str, str]]:
        programs = ("edge_scores", "gpu", "mnist_seeds", "ptxas")
        found = super().find_package_modules(package, folder)
        return [m for m in found if package != "modfast.bench" or not m[1].startswith(programs)]


setup(
    packages=[*find_packages(include=["modfast*"]), "modfast.bench"],
    package_dir={"modfast.bench": "bench"},
    ext_modules=extensions,
    cmdclass={"build_ext": BuildExtension, "build_py": BuildPython},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if LIMITED else {},
)
