"""What gpu.py writes: the machine, targets met and missed, gpu.json and gpu.md."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import subprocess
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
CEILINGS = {"bytes": "copy, {:,.0f} GB/s read and written", "ops": "int8 product, {:,.0f} Gop/s"}
HEAD = """
| case | modfast, µs | floor, µs | of ceiling | peer | peer, µs | ratio (quartiles) | target |
|---|---|---|---|---|---|---|---|"""


def machine(device: str) -> dict[str, str]:
    """What the results depend on."""
    digest = hashlib.sha256()
    for path in sorted(ROOT.glob("*.*")) + sorted(
        path for name in ("csrc", "modfast", "tests", "bench") for path in (ROOT / name).rglob("*")
    ):
        if path.suffix in (".py", ".toml", ".h", ".cpp", ".cu", ".cuh"):
            digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return {
        "gpu": torch.cuda.get_device_name() if device == "cuda" else "none: rehearsed on the CPU",
        "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "python": platform.python_version(),
        "commit": _said("git", "describe", "--always", "--dirty", "--exclude=*"),
        "sources": digest.hexdigest()[:12],
    }


def _said(*command: str) -> str:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.partition("\n")[0] or "unknown"


def read_tests(xml: Path, device: str) -> dict[str, Any]:
    """Counts of a JUnit file, which tests failed, and why others were skipped."""
    tests: dict[str, list[Any]] = {"passed": [], "failed": [], "skipped": []}
    for test in ElementTree.parse(xml).iter("testcase") if xml.exists() else ():
        if (skip := test.find("skipped")) is not None:
            tests["skipped"].append(skip.get("message"))
        else:
            failed = any(test.find(tag) is not None for tag in ("failure", "error"))
            name = f"{test.get('classname')}.{test.get('name')}"
            tests["failed" if failed else "passed"].append(name)
    counts = {outcome: len(cases) for outcome, cases in tests.items()}
    # Tests on a device have its name among their parameters.
    on_device = [name for name in tests["passed"] if re.search(rf"[\[-]{device}[\]-]", name)]
    counts[f"passed on {device}"] = len(on_device)
    skipped = dict(Counter(tests["skipped"]).most_common())
    return {"counts": counts, "failed": tests["failed"], "skipped": skipped}


def judge(case: dict[str, Any], rates: dict[str, float]) -> None:
    """Adds floor and share of the ceiling, what was found for each target, and whether it is met.

    A share that could not be measured counts as 0.
    """
    if "peers" not in case:
        return
    found = {peer: timing["ratio"] for peer, timing in case["peers"].items()}
    for unit, rate in rates.items():
        if case[unit]:
            case["floor"] = case[unit] / rate
            found["ceiling"] = case["floor"] / next(iter(case["peers"].values()))["seconds"]
            case["share"] = found["ceiling"]
    case["found"] = {name: found.get(name, 0.0) for name in case["targets"]}
    case["met"] = {name: case["found"][name] >= least for name, least in case["targets"].items()}


def missed(report: dict[str, Any]) -> list[str]:
    return [
        f"{case['case']}: {name}: {case['found'][name]:.2f}, wanted {case['targets'][name]:.2f}"
        for case in report["stages"].get("bench", {}).get("cases", [])
        for name, met in case.get("met", {}).items()
        if not met
    ]


def save(report: dict[str, Any], out: Path) -> None:
    """Whole files, or those that were there before."""
    texts = {"gpu.json": json.dumps(report, indent=1) + "\n", "gpu.md": markdown(report)}
    for name, text in texts.items():
        (out / f".{name}.part").write_text(text)
        (out / f".{name}.part").replace(out / name)


def markdown(report: dict[str, Any]) -> str:
    stages = report["stages"]
    lines = [", ".join(f"{key} {value}" for key, value in report["machine"].items()), ""]
    lines += ["| stage | outcome | tests | seconds |", "|---|---|---|---|"]
    for name, stage in stages.items():
        outcome = "failed: " + stage["error"].partition("\n")[0] if stage["error"] else "ok"
        parts = [part for part in (stage, *stage.values()) if isinstance(part, dict)]
        counts = [p["counts"].items() for p in parts if "counts" in p]
        tests = "; ".join(", ".join(f"{n} {key}" for key, n in each) for each in counts)
        lines.append(f"| {name} | {outcome} | {tests} | {stage['seconds']:.0f} |")
    rates = stages.get("ceilings", {}).get("rates", {})
    told = [CEILINGS[unit].format(rate / 1e9) for unit, rate in rates.items()]
    lines += ["", f"Ceilings: {'; '.join(told) or 'not measured'}.", *HEAD.splitlines()]
    for case in stages.get("bench", {}).get("cases", []):
        lines += _rows(case)
    return "\n".join(lines) + "\n"


def _rows(case: dict[str, Any]) -> list[str]:
    if "peers" not in case:
        return [f"| {case['case']} | failed | | | | | | |"]

    def target(name: str) -> str:
        least = case["targets"].get(name)
        return "" if least is None else f"{least:.2f} {'✓' if case['met'][name] else '✗'}"

    (_, ours), *peers = case["peers"].items()
    ceiling = f"{case['floor'] * 1e6:,.1f} | **{case['share']:.2f}**" if "floor" in case else " | "
    head = f"| {case['case']} | {ours['seconds'] * 1e6:,.1f} | {ceiling} {target('ceiling')}"
    return [
        f"{head} | {peer} | {t['seconds'] * 1e6:,.1f} | **{t['ratio']:.2f}** "
        f"({t['low']:.2f} to {t['high']:.2f}) | {target(peer)} |"
        for peer, t in peers
    ]
