"""The compiled library: what it says of itself, and life without it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import modfast
from modfast import _extension

needs_library = pytest.mark.skipif(not modfast.has_ops(), reason="modfast's library is not built")


@needs_library
def test_build_info() -> None:
    assert _extension.library is not None
    info = _extension.library.build_info()
    assert info["version"] == modfast.__version__
    assert info["simd"] == info["simd_supported"][-1]
    assert set(info["simd_supported"]) <= set(info["simd_built"])
    assert info["torch_target"] == "2.11"


@needs_library
def test_unknown_simd_levels_are_refused() -> None:
    assert _extension.library is not None
    with pytest.raises(ValueError, match=r"level must be one of \['baseline'.*got 'mmx'"):
        _extension.library.set_simd_level("mmx")
    with pytest.raises(TypeError, match=r"level must be a string, got 2"):
        _extension.library.set_simd_level(2)


@pytest.mark.skipif(not _extension.cuda_loaded, reason="modfast's CUDA library is not loaded")
@pytest.mark.parametrize(
    "name", ["cluster_penalty", "cluster_penalty_backward", "clustered_sgd_", "clustered_adam_"]
)
def test_cuda_operators_are_registered(name: str) -> None:
    # Where there is no GPU, this is what can be said of them.
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"modfast::{name}", "CUDA")


@pytest.fixture
def bare_package(tmp_path: Path) -> Path:
    """A copy of the package without its compiled libraries."""
    package = Path(modfast.__file__).parent
    shutil.copytree(
        package, tmp_path / "modfast", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    return tmp_path


SCRIPT = """
import torch, modfast
print(modfast.__file__, modfast.has_ops())
weight = torch.arange(16.0).reshape(4, 4).requires_grad_()
value = modfast.clusterability(weight, modfast.Clusters.equal(4, 4, 2))
value.backward()
model = modfast.models.MLP([4, 4, 4, 2])
for base in ("sgd", "adam"):
    optimizer = modfast.Modularity(model.parameters(), 0.1, 2, base=base)
    model(torch.ones(3, 4)).sum().backward()
    optimizer.step()
print(value.item(), weight.grad.sum().item(), optimizer.values.item())
"""


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )


@pytest.mark.slow
def test_without_the_library_everything_works_with_one_warning(bare_package: Path) -> None:
    # Neither beside the copy nor in an installation elsewhere on the path.
    blocked = (
        "import sys\n"
        "from importlib import machinery\n"
        "find = machinery.PathFinder.find_spec\n"
        "def refuse(name, path=None, target=None):\n"
        "    return None if name == 'modfast._C' else find(name, path, target)\n"
        "machinery.PathFinder.find_spec = refuse\n"
    )
    bare = run(blocked + SCRIPT, bare_package)
    assert str(bare_package) in bare.stdout
    assert "False" in bare.stdout.splitlines()[0]
    assert bare.stderr.count("modfast runs without its compiled kernels") == 1
    assert bare.stderr.count("RuntimeWarning") == 1
    if modfast.has_ops():
        whole = run(SCRIPT, Path(modfast.__file__).parents[1])
        torch_values = [float(x) for x in bare.stdout.splitlines()[1].split()]
        kernel_values = [float(x) for x in whole.stdout.splitlines()[1].split()]
        assert torch_values[:2] == pytest.approx(kernel_values[:2], rel=1e-6)


@needs_library
@pytest.mark.slow
def test_a_clone_finds_the_installed_library(bare_package: Path) -> None:
    # `python -m modfast` in a clone imports the clone; its library lies with the installation.
    installed = str(Path(modfast.__file__).parents[1])
    code = f"import sys; sys.path.append({installed!r})\n" + SCRIPT
    found = run(code, bare_package)
    assert found.stdout.startswith(str(bare_package))
    assert "True" in found.stdout.splitlines()[0]
    assert found.stderr == ""
