"""What all kernels of csrc/cuda must keep to, and what a whole session has shown of them."""

from __future__ import annotations

import re

import pytest
from simt import harness

SOURCES = sorted(path for path in (harness.CSRC / "cuda").glob("*") if path.is_file())


@pytest.mark.skipif(not SOURCES, reason="csrc does not lie beside the tests")
def test_only_launch_cuh_launches() -> None:
    pattern = re.compile(r"<<<|cudaLaunch(Cooperative)?Kernel")
    found = [s.name for s in SOURCES if pattern.search(s.read_text())]
    assert found == ["launch.cuh"]


@pytest.mark.skipif(not SOURCES, reason="csrc does not lie beside the tests")
def test_one_barrier_a_line() -> None:
    # Barriers are told apart by their lines.
    for source in SOURCES:
        for line in source.read_text().splitlines():
            assert line.count("__sync") <= 1, f"{source.name}: {line}"


def test_every_operator_with_a_cuda_kernel_runs_here(simt: harness.Machine) -> None:
    registered = re.findall(r'm\.impl\("(\w+)"', "".join(s.read_text() for s in SOURCES))
    assert sorted(simt.operators) == sorted(registered)


@pytest.mark.whole_session
def test_every_line_is_run(simt: harness.Machine) -> None:
    lines = simt.lines()
    assert {s.name for s in SOURCES} - {path.name for path in lines} == {"device.h"}
    missed = {path.name: file.missed for path, file in lines.items() if file.missed}
    assert not missed, f"lines that no test runs: {missed}"


@pytest.mark.whole_session
def test_every_barrier_is_needed(simt: harness.Machine) -> None:
    """Each kernel has been run without each of its barriers, which must have gone wrong."""
    shown = {place for place, needed in simt.barriers().items() if needed}
    assert harness.barriers_in_sources() == shown
