"""Build facts and run-time switches of modfast's compiled library."""

from typing import TypedDict

class BuildInfo(TypedDict):
    """What `build_info` returns."""

    version: str
    compiler: str
    simd_built: list[str]
    simd_supported: list[str]
    simd: str
    threads: str
    cuda_because: str
    cuda_architectures: str
    cuda_toolkit: str
    torch_target: str
    torch_built: str

def build_info() -> BuildInfo:
    """How this library was built, and which SIMD level it uses."""

def set_simd_level(level: str, /) -> None:
    """Chooses the SIMD level of the CPU kernels: "baseline", "avx2" or "avx512".

    Raises:
        TypeError: a level that is no string.
        ValueError: a level that this processor or build lacks.
    """
