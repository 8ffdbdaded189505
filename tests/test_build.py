"""What setup.py builds: CUDA kernels for the GPUs that are here, more only where asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

SETUP = Path(__file__).parents[1] / "setup.py"
pytestmark = pytest.mark.skipif(not SETUP.exists(), reason="setup.py does not lie beside the tests")

STEERING = ("FORCE_CUDA", "FORCE_ONLY_CPU", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME", "CUDA_PATH")
EVERYTHING = "8.0;9.0;10.0+PTX"


@pytest.fixture
def toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What setup.py looks at in a toolkit of CUDA 13.0, under a torch of CUDA 13; no GPU."""
    for name in STEERING:
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "cuda"
    (home / "include").mkdir(parents=True)
    (home / "bin").mkdir()
    (home / "include" / "cuda_runtime.h").touch()
    (home / "include" / "cuda.h").write_text("#define CUDA_VERSION 13000\n")
    (home / "bin" / "nvcc").write_text("#!/bin/sh\necho compute_80; echo compute_90\n")
    (home / "bin" / "nvcc").chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(home))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return home


def choose() -> Any:
    """What setup.py's own function says; nothing is built."""
    names: dict[str, Any] = {"__file__": str(SETUP)}
    exec(SETUP.read_text().partition("\nchosen = ")[0], names)
    return names["choose_cuda"]()


def add_gpus(monkeypatch: pytest.MonkeyPatch, *capabilities: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: capabilities[i])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")


def test_without_a_gpu_no_cuda_is_built(toolkit: Path) -> None:
    reason = f"torch {torch.__version__} saw no GPU (FORCE_CUDA=1 builds them even so)"
    assert choose() == reason


@pytest.mark.parametrize(
    ("name", "value", "architectures"),
    [("FORCE_CUDA", "1", EVERYTHING), ("TORCH_CUDA_ARCH_LIST", "9.0", "9.0")],
)
@pytest.mark.parametrize("gpus", [[], [(8, 0)]])
def test_what_is_asked_for_is_built(
    toolkit: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, architectures: str, gpus
) -> None:
    monkeypatch.setenv(name, value)
    if gpus:
        add_gpus(monkeypatch, *gpus)
    home, version, chosen, reason = choose()
    assert (home, version, chosen) == (toolkit, "13.0", architectures)
    assert reason.startswith(name)


@pytest.mark.parametrize(
    ("gpus", "architectures"),
    [
        ([(9, 0)], "9.0"),
        ([(9, 0), (8, 0), (9, 0)], "8.0;9.0"),
        ([(7, 5), (8, 0)], "8.0"),
        ([(13, 0)], EVERYTHING),  # newer than the toolkit: PTX serves it
    ],
)
def test_it_is_built_for_the_gpus_here(
    toolkit: Path, monkeypatch: pytest.MonkeyPatch, gpus, architectures: str
) -> None:
    add_gpus(monkeypatch, *gpus)
    assert choose()[2] == architectures


def test_why_there_can_be_no_cuda(toolkit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_gpus(monkeypatch, (7, 5))
    assert choose() == "Some GPU is older than the kernels' first, 8.0"
    add_gpus(monkeypatch, (9, 0))
    monkeypatch.setattr(torch.version, "cuda", "99.0")
    assert choose() == "no whole CUDA 99 toolkit was found (set CUDA_HOME to one)"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert choose() == f"torch {torch.__version__} is built without CUDA"
    monkeypatch.setenv("FORCE_ONLY_CPU", "1")
    assert choose() == "FORCE_ONLY_CPU is set"
