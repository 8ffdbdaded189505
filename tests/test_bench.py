"""The benchmark suite runs, checks its answers, and tells what it measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from modfast import cli

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")


def bench(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """As a user calls it, in a process of its own, from any folder."""
    command = [sys.executable, "-m", "modfast", "bench", "--all", *options]
    # Under pytest-xdist the plugin would time nothing.
    env = {name: x for name, x in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env)


@pytest.mark.slow
def test_answers_alone(tmp_path: Path) -> None:
    done = bench(
        tmp_path, "--benchmark-disable", "-k", "test_kernels[64] or test_step[cpu-64-adam]"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


@pytest.mark.slow
def test_ratios_and_machine(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    tiny = ("--rounds=3", "--block=0.001", "--threads=1", f"--benchmark-json={path}")
    done = bench(tmp_path, "-k", "test_both[64]", *tiny)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(path.read_text())
    assert report["machine_info"]["threads"] == 1
    assert report["commit_info"]["id"]
    (found,) = report["benchmarks"]
    case = found["extra_info"]
    assert found["group"] == case["case"] == "clusterability, forward + backward, 64 x 64"
    assert found["stats"]["rounds"] == 3
    assert list(case["peers"]) == ["modfast", "torch, cached float mask", "notebook, mask rebuilt"]
    # A round tells the time of one call, not that of a block of them.
    assert case["peers"]["modfast"]["seconds"] == pytest.approx(found["stats"]["median"])
    for peer in case["peers"].values():
        assert 0 < peer["low"] <= peer["ratio"] <= peer["high"]
    table = path.with_suffix(".md").read_text(encoding="utf-8")
    assert table in done.stdout
    assert "threads 1" in table.splitlines()[0]
    assert sum(line.startswith(f"| {case['case']} | ") for line in table.splitlines()) == 2


@pytest.mark.slow
def test_missed_targets(tmp_path: Path) -> None:
    """A rehearsal is nowhere near a GPU's: what is missed is said, and fails where asked to."""
    tiny = ("-k", "test_digitize[False-float32] or ceilings", "--gpu=cpu", "--block=0.001")
    found = bench(tmp_path, *tiny, "--rounds=3", "--targets")
    assert found.returncode == 1
    assert "ceiling: " in found.stdout
    assert ", wanted 0.80" in found.stdout
    assert "0.80 ✗" in found.stdout


def test_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["bench"]) == 2
    error = capsys.readouterr().err
    assert "bench needs pytest and pytest_benchmark: pip install 'modfast[bench]'" in error
