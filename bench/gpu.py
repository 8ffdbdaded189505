"""All that needs a GPU, in one command: build, tests, benchmarks, memory checks.

    python bench/gpu.py [--only STAGE ...] [--out DIR] [--seconds S] [--device cpu]

STAGES, the most telling first: build (for this GPU alone), kernels (their tests), ceilings, bench,
sanitizer, tests (all). One that fails or takes too long is recorded, and the next one runs. DIR
(bench/results) gets gpu.json and gpu.md after every stage and every file of benchmarks. With
--only, what an earlier run found for the same sources on the same machine is kept. --device cpu
rehearses it all, in small sizes. The exit status is 1 if a stage failed, 2 if only targets were
missed.

Needs nvcc, torch with CUDA, ninja, pytest, pytest-benchmark, and no network. Nothing is
installed: the build and all logs go to build/gpu (in a rehearsal to DIR/gpu).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_report import machine, missed, save
from gpu_run import Outcome, Run, say
from tables import ROOT, in_words

# Those of the suite with cases for a GPU, each run in a process of its own: one that hangs or
# breaks the GPU's context leaves the others alone.
MODULES = (
    "bench_clusterability",
    "bench_modularity",
    "bench_information_gpu",
    "bench_circuits_gpu",
    "bench_ablation_gpu",
)
# Seconds; for `bench` each module, for `sanitizer` each tool. Together more than a run has, but no
# two stages should need all of theirs.
LIMITS = {"build": 180, "kernels": 120, "ceilings": 45, "bench": 90, "sanitizer": 90, "tests": 300}
SOURCE = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "csrc", "modfast", "bench")
AWAY = ("pyproject.toml", "README.md", "csrc", "tests")  # some tests compile the kernels
# Tests skip where these are missing.
OPTIONAL = ("tqdm", "torchvision", "sklearn", "scipy", "plotly", "transformers")
# torch's own probing of the driver gives API errors that mean nothing.
TOOLS = {"memcheck": ["--report-api-errors", "no"], "racecheck": []}


def build(run: Run) -> Outcome:
    """From a copy, so that nothing of an earlier build gets in and the clone stays as it is."""
    shutil.rmtree(run.work)
    for folder, names in (("source", SOURCE), ("away", AWAY)):
        (run.work / folder).mkdir(parents=True)
        for name in names:
            old, new = ROOT / name, run.work / folder / name
            ignored = shutil.ignore_patterns("*.so", "__pycache__", "results")
            shutil.copytree(old, new, ignore=ignored) if old.is_dir() else shutil.copy(old, new)
    flags = {"FORCE_ONLY_CPU": "1"}
    if run.device == "cuda":
        here = "{}.{}".format(*torch.cuda.get_device_capability())
        architectures = os.environ.get("TORCH_CUDA_ARCH_LIST", here)
        flags = {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": architectures}
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--target"]
    command = [sys.executable, "-m", "pip", "install", *options]
    command += [str(run.work / "site"), str(run.work / "source")]
    if wrong := run.call("build", command, LIMITS["build"], **flags):
        return {"error": wrong}
    wrong = run.call("info", [sys.executable, "-m", "modfast", "info"], 60)
    info = (run.work / "info.log").read_text()
    wanted = [f"operators +loaded from {re.escape(str(run.work))}"]
    wanted += ["CUDA kernels +loaded"] if run.device == "cuda" else []
    if not wrong and not all(re.search(pattern, info) for pattern in wanted):
        wrong = "what runs is not the build, or lacks its kernels"
    if not wrong:
        (run.work / "built").write_text(run.report["machine"]["sources"])
    return {"error": wrong, "info": info.splitlines()}


def kernels(run: Run) -> Outcome:
    return run.pytest("kernels", ["-k", run.device, "tests/ops"], LIMITS["kernels"])


def tests(run: Run) -> Outcome:
    """All that a GPU may change: not the tests that run its kernels on the host."""
    spread = ["-n", "8", "-p", "no:benchmark"] if importlib.util.find_spec("xdist") else []
    outcome = run.pytest("tests", ["-m", "not simt", *spread], LIMITS["tests"])
    outcome["not installed"] = [x for x in OPTIONAL if importlib.util.find_spec(x) is None]
    say(f"  not installed, so tests of it are skipped: {outcome['not installed'] or 'nothing'}")
    for why, count in outcome["skipped"].items():
        say(f"  skipped {count}: {why}")
    return outcome


def ceilings(run: Run) -> Outcome:
    wrong, cases = run.suite("ceilings", [], LIMITS["ceilings"])
    rates = {
        unit: case[unit] / min(timing["seconds"] for timing in case["peers"].values())
        for case in cases
        for unit in ("bytes", "ops")
        if case[unit]
    }
    return {"error": wrong, "rates": rates, "cases": cases}


def bench(run: Run) -> Outcome:
    """Each module after the ceilings, measured again: what it is held to is of the same minute."""
    begun, errors, cases = time.monotonic(), list[str](), list[dict[str, Any]]()
    known = [case["case"] for case in run.report["stages"].get("ceilings", {}).get("cases", [])]
    for module in MODULES:
        wrong, found = run.suite(module, [f"{module}.py"], LIMITS["bench"])
        errors += [wrong] if wrong else []
        cases += [case for case in found if case["case"] not in known]
        so_far = {"error": f"ended after {module}", "cases": cases}
        run.report["stages"]["bench"] = {"seconds": time.monotonic() - begun, **so_far}
        save(run.report, run.out)
    return {"error": "\n".join(errors), "cases": cases}


def sanitizer(run: Run) -> Outcome:
    """The tests of the kernels; of all kernels that run there, only modfast's are watched."""
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    folders = [f"{home}/{name}" for home in homes if home for name in ("bin", "compute-sanitizer")]
    places = [os.environ["PATH"], *folders]
    program = shutil.which("compute-sanitizer", path=os.pathsep.join(places))
    if program is None:
        return {"error": "compute-sanitizer was found neither on PATH nor in the CUDA toolkit"}
    outcome: Outcome = {}
    for tool, options in TOOLS.items():
        options = ["--tool", tool, *options, "--kernel-name", "kns=modfast"]
        options += ["--target-processes", "application-only", "--error-exitcode", "99"]
        chosen = ["-k", run.device, "tests/ops"]
        # An allocation for each tensor: memcheck sees nothing of how torch divides its own.
        env = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        outcome[tool] = run.pytest(tool, chosen, LIMITS["sanitizer"], program, *options, **env)
        log = run.work / f"{tool}.log"
        said = re.findall("^={9}(?: .*[^=])?$", log.read_text() if log.exists() else "", re.M)
        outcome[tool]["report"] = said if len(said) <= 60 else [*said[:59], said[-1]]
        say(f"  {said[-1] if said else f'{tool} said nothing'}")
    errors = [each["error"] for each in outcome.values() if each["error"]]
    return {"error": "\n".join(errors), **outcome}


# What takes longest comes last, and should not cost anything else its time.
STAGES: dict[str, Callable[[Run], Outcome]] = {
    stage.__name__: stage for stage in (build, kernels, ceilings, bench, sanitizer, tests)
}


def run_stage(name: str, run: Run) -> Outcome:
    built, begun = run.work / "built", time.monotonic()
    fresh = built.exists() and built.read_text() == run.report["machine"]["sources"]
    if name == "build" or fresh:
        try:
            outcome = STAGES[name](run)
        except Exception as error:
            outcome = {"error": f"{type(error).__name__}: {error}"}
    else:
        outcome = {"error": "there is no build of these sources (stage build makes it)"}
    return {"seconds": time.monotonic() - begun, **outcome}


def main() -> None:
    """Parses the command line and runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--out", type=Path, help="(default: bench/results)")
    parser.add_argument("--seconds", type=float, default=520, help="(default: %(default)s)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    arguments = parser.parse_args()
    device, out = arguments.device, arguments.out or ROOT / "bench" / "results"
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            f"gpu.py needs an NVIDIA GPU, and torch {torch.__version__} finds none "
            "(--device cpu --out DIR rehearses without one)."
        )
    if device == "cpu" and arguments.out is None:
        parser.error("--device cpu needs --out DIR: a rehearsal is no result")
    work = (ROOT / "build" if device == "cuda" else out.resolve()) / "gpu"
    for folder in (out, work / "away"):
        folder.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"machine": machine(device), "stages": {}}
    say(in_words(report["machine"]))
    if len(arguments.only) < len(STAGES) and (out / "gpu.json").exists():
        old = json.loads((out / "gpu.json").read_text())
        report = old if old["machine"] == report["machine"] else report
    run = Run(device, work, out, arguments.seconds, report)
    for name in (name for name in STAGES if name in arguments.only):
        say(name)
        report["stages"][name] = outcome = run_stage(name, run)
        say(f"{name}: {'FAILED: ' + outcome['error'] if outcome['error'] else 'ok'}")
        save(report, out)
    print((out / "gpu.md").read_text())
    if targets := missed(report):
        print("Targets missed:", *targets, sep="\n  ", flush=True)
    if failed := [name for name, stage in report["stages"].items() if stage["error"]]:
        sys.exit(f"Failed: {', '.join(failed)}")
    sys.exit(2 if targets else 0)


if __name__ == "__main__":
    main()
