"""Each defect, planted in a copy of the package, makes tests of the gate fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from planted.defects import PYTHON, Defect

import modfast

ROOT = Path(__file__).parents[2]
PACKAGE = Path(modfast.__file__).parent

pytestmark = pytest.mark.slow


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with a copy of the package, its libraries by links."""
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(PACKAGE, tmp_path / "modfast", ignore=ignored)
    for library in PACKAGE.glob("*.so"):
        (tmp_path / "modfast" / library.name).symlink_to(library)
    if not (PACKAGE / "bench").exists():  # in a clone the suite lies beside the package
        shutil.copytree(ROOT / "bench", tmp_path / "modfast" / "bench", ignore=ignored)
    return tmp_path


def run_tests(copy: Path, tests: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Runs tests, up to the first that fails, with the package that lies in `copy`."""
    unset = {name for name in os.environ if name.startswith(("PYTEST_", "COV_"))}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    options = ["-x", "-q", "-p", "no:cacheprovider", "-k", "not simt and not cuda"]
    options += ["-c", str(ROOT / "pyproject.toml"), f"--rootdir={ROOT}"]
    return subprocess.run(
        # Python looks for packages in its working folder first.
        [sys.executable, "-m", "pytest", *options, *(str(ROOT / test) for test in tests)],
        cwd=copy,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_without_a_defect_they_pass(copy: Path) -> None:
    found = run_tests(copy, tuple(dict.fromkeys(test for each in PYTHON for test in each.tests)))
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("defect", PYTHON, ids=lambda defect: defect.name)
def test_each_defect_is_caught(copy: Path, defect: Defect) -> None:
    defect.plant(copy)
    found = run_tests(copy, defect.tests)
    # 1: tests were run, and failed; more: they could not be run.
    assert found.returncode == 1, found.stdout + found.stderr
