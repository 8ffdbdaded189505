"""The checker itself: every kind of bug, planted, is found at its line; correct kernels pass."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest
from simt import harness

SELFTEST = Path(__file__).parent / "selftest"


def kernels(source: str) -> dict[str, dict[int, str]]:
    """For each kernel of a source: the lines that a report may name, and what it must say there."""
    found: dict[str, dict[int, str]] = {}
    for number, line in enumerate((SELFTEST / source).read_text().splitlines(), start=1):
        if kernel := re.search(r"__global__ void (\w+)\(", line):
            found[kernel[1]] = {}
        if bug := re.search(r"// BUG: (.+)", line):
            found[list(found)[-1]][number] = bug[1]
    return found


BUGS = kernels("bugs.cu")
CORRECT = kernels("correct.cu")


@pytest.fixture(scope="module")
def cases(kept: Path) -> ctypes.CDLL:
    if why := harness.missing():
        pytest.skip(why)
    flags = [*harness.HOOKED, f"-I{harness.CSRC}"]
    units = dict.fromkeys(sorted(SELFTEST.glob("*.c*")), flags)
    library = harness.load(harness.build("selftest", units, kept))
    library.run_case.restype = ctypes.c_char_p
    return library


def run(cases: ctypes.CDLL, name: str, seed: int) -> str:
    cases.simt_configure(5, seed)
    report: str = cases.run_case(name.encode()).decode()
    return report


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", [name for name, bugs in BUGS.items() if bugs])
def test_bug_is_found_at_its_line(cases: ctypes.CDLL, name: str, seed: int) -> None:
    report = run(cases, name, seed)
    assert f"{name}(" in report, "the kernel is not named"
    assert re.search(r"thread \(\d+,\d+,\d+\) of block \(\d+,\d+,\d+\)", report), report
    for line, told in BUGS[name].items():
        if re.search(rf"\bbugs\.cu:{line}\b", report) and re.search(told, report):
            return
    pytest.fail(f"expected one of {BUGS[name]}, got: {report}")


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", CORRECT)
def test_correct_kernel_passes(cases: ctypes.CDLL, name: str, seed: int) -> None:
    assert run(cases, name, seed) == ""


def test_result_that_depends_on_the_order(cases: ctypes.CDLL) -> None:
    report = run(cases, "sum_in_any_order", 0)
    assert "depends on the order in which threads run: element 0 of an array of 4 bytes" in report
    assert "sum_in_any_order(" in report


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("odd_block", "multiple of 32 threads"),
        ("empty_grid", "a grid has 1 to"),
        ("shared_not_asked_for", "more shared memory than the kernel asked for"),
        ("too_much_shared", "too much shared memory"),
        ("fill_past_the_end", "out of bounds: the host's write of 20 bytes"),
        ("copy_of_uninitialized", "uninitialized memory: the host's read"),
    ],
)
def test_launch_that_a_gpu_refuses(cases: ctypes.CDLL, name: str, why: str) -> None:
    assert why in run(cases, name, 0)


def test_needed_barriers_are_told_from_others(cases: ctypes.CDLL) -> None:
    run(cases, "one_barrier_too_many", 0)
    told = harness.barriers(cases)
    for number, line in enumerate((SELFTEST / "correct.cu").read_text().splitlines(), start=1):
        if "// need" in line:
            assert told[f"{SELFTEST / 'correct.cu'}:{number}"] == line.endswith("needed")
