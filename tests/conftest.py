"""Fixtures that every test may ask for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from simt import harness

from modfast import _extension


def pytest_configure(config: pytest.Config) -> None:
    """Processes of pytest-xdist share the cores, so each takes one."""
    if hasattr(config, "workerinput"):
        torch.set_num_threads(1)


def _sees_all_kernels(config: pytest.Config) -> bool:
    """Whether one process runs all tests of CUDA kernels on the host."""
    option = config.option
    chosen = option.keyword or option.markexpr not in ("", "simt") or config.getoption("lf", False)
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return whole and not chosen and not hasattr(config, "workerinput")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks tests by what they need; those of what a session has shown of the kernels come last."""
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        fixtures = getattr(item, "fixturenames", ())
        if params.get("device") == "simt" or "simt" in fixtures or item.path.parent.name == "simt":
            item.add_marker("simt")
        if "mnist_root" in fixtures:
            item.add_marker("mnist")
    last = [item for item in items if item.get_closest_marker("whole_session")]
    items[:] = [item for item in items if item not in last] + last
    if not _sees_all_kernels(config):
        for item in last:
            item.add_marker(pytest.mark.skip(reason="needs one session of all tests of kernels"))


@pytest.fixture
def cuda() -> torch.device:
    """The GPU; skips, saying so, where there is none."""
    if not (torch.cuda.is_available() and _extension.cuda_loaded):
        pytest.skip("no GPU, or modfast's CUDA library is not built")
    return torch.device("cuda")


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device in turn; tests/ops adds CUDA kernels on the host."""
    return request.getfixturevalue("cuda") if request.param == "cuda" else torch.device("cpu")


@pytest.fixture(scope="session")
def kept(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what takes long to build, kept between sessions where pytest keeps a cache."""
    cache = getattr(pytestconfig, "cache", None)  # none with -p no:cacheprovider
    return cache.mkdir("simt") if cache is not None else tmp_path_factory.mktemp("simt")


@pytest.fixture(scope="session")
def simt(kept: Path) -> harness.Machine:
    """The CUDA kernels, built for the host under the checker of tests/simt."""
    if why := harness.missing():
        pytest.skip(why)
    if _extension.library is None:
        pytest.skip("modfast's library is not built")
    return harness.Machine(harness.build_operators(kept))


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def simd(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each SIMD level in turn; those that this processor lacks are skipped."""
    library = _extension.library
    if library is None:
        pytest.skip("modfast's library is not built")
    info = library.build_info()
    if request.param not in info["simd_supported"]:
        pytest.skip(f"this processor or build has no {request.param}")
    library.set_simd_level(request.param)
    yield request.param
    library.set_simd_level(info["simd"])


@pytest.fixture
def torchvision() -> None:
    """Skips where torchvision is missing, or was built for another torch (a RuntimeError)."""
    try:
        import torchvision.datasets  # noqa: F401
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision cannot be imported here: {error}")


@pytest.fixture
def mnist_root(torchvision: None) -> Path:
    """The folder that holds MNIST for torchvision, named by MODFAST_MNIST_ROOT."""
    root = os.environ.get("MODFAST_MNIST_ROOT")
    if not root:
        pytest.skip("MODFAST_MNIST_ROOT names no folder with MNIST")
    return Path(root)


@pytest.fixture(params=[1, 2])
def n_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """One thread, and two."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
