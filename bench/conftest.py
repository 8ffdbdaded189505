"""The suite's options, its fixture `compare`, and what its reports tell of the machine.

    pytest bench [--benchmark-json=FILE.json] [--threads N] [--no-targets] [-m short] [-k WORDS]

A case checks its answer, is timed beside its peers (timing.py), and then held to its targets:
ratios of two times taken in one run. FILE.json gets everything, FILE.md the table. Also
--benchmark-disable (answers only), --benchmark-autosave and --benchmark-compare; `pytest bench -h`
tells all. MODFAST_MNIST_ROOT names the folder of MNIST, which some cases need.
"""

from __future__ import annotations

import os
from argparse import BooleanOptionalAction
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from tables import commit, in_words, machine, table
from timing import CASES, RATES, Compare, clock

import modfast
from modfast import _extension


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("modfast")
    group.addoption(
        "--targets", action=BooleanOptionalAction, default=True, help="fail where one is missed"
    )
    group.addoption("--threads", type=int, metavar="N", help="(default: torch's own choice)")
    group.addoption("--gpu", choices=("cuda", "cpu"), help="cpu rehearses its cases, small")
    group.addoption("--rounds", type=int, metavar="N", help="(default: each case's own)")
    group.addoption("--block", type=float, metavar="S", help="(default: each case's own)")
    group.addoption("--lines", type=Path, metavar="FILE", help="add each case to it, when done")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.threads:
        torch.set_num_threads(config.option.threads)
    cuda = torch.cuda.is_available() and _extension.cuda_loaded
    config.option.gpu = config.option.gpu or ("cuda" if cuda else None)
    config.stash[RATES], config.stash[CASES] = {}, []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What the machine can do comes first: others are measured against it."""
    items.sort(key=lambda item: item.path.name != "bench_ceilings.py")
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=clock))


def pytest_make_parametrize_id(val: object) -> str | None:
    if isinstance(val, torch.dtype):
        return str(val)[6:]
    if isinstance(val, tuple) and all(isinstance(each, str) for each in val):
        return "+".join(val) or "none"
    return None


def facts(config: pytest.Config) -> dict[str, Any]:
    library = _extension.library
    return machine(config.option.gpu == "cuda") | {
        "threads": torch.get_num_threads(),
        "simd": library.build_info()["simd"] if library else "none",
        "modfast": modfast.__version__,
    }


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Ours alone: the plugin's tell the machine's name and a page of its processor's flags."""
    machine_info.clear()
    machine_info.update(facts(config))


def pytest_benchmark_update_commit_info(commit_info: dict[str, Any]) -> None:
    """Of modfast, whatever folder pytest was started in."""
    commit_info.clear()
    commit_info["id"] = commit()


def report(config: pytest.Config) -> str:
    told = in_words(facts(config) | {"commit": commit()})
    return f"{told}\n\n{table(config.stash[CASES])}"


def pytest_benchmark_update_json(config: pytest.Config) -> None:
    path = Path(config.option.benchmark_json or "")
    if path.suffix == ".json":
        path.with_suffix(".md").write_text(report(config), encoding="utf-8")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.stash[CASES]:
        terminalreporter.write_line("\n" + report(config))


@pytest.fixture
def compare(benchmark: BenchmarkFixture, pytestconfig: pytest.Config) -> Compare:
    return Compare(benchmark, pytestconfig)


@pytest.fixture
def gpu(pytestconfig: pytest.Config) -> Iterator[str]:
    """The device of cases for a GPU, "cpu" in a rehearsal, where their sizes are small."""
    if pytestconfig.option.gpu is None:
        pytest.skip("no GPU, or modfast's CUDA library is not built (--gpu=cpu rehearses)")
    yield pytestconfig.option.gpu
    if pytestconfig.option.gpu == "cuda":
        torch.cuda.empty_cache()


@pytest.fixture(params=["cpu", "gpu"])
def device(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue("gpu") if request.param == "gpu" else "cpu"


@pytest.fixture(scope="session")
def mnist_root() -> str:
    root = os.environ.get("MODFAST_MNIST_ROOT")
    if not root:
        pytest.skip("MODFAST_MNIST_ROOT names no folder with MNIST")
    return root


@pytest.fixture(scope="session")
def mnist(mnist_root: str) -> modfast.data.Dataset:
    return modfast.data.load("mnist", root=mnist_root)
