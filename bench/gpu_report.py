"""What gpu.py writes: the machine, targets met and missed, gpu.json and gpu.md."""

from __future__ import annotations

import hashlib
import json
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

import tables
from tables import ROOT

CEILINGS = {"bytes": "copy, {:,.0f} GB/s read and written", "ops": "int8 product, {:,.0f} Gop/s"}


def machine(device: str) -> dict[str, str]:
    """What the results depend on."""
    digest = hashlib.sha256()
    for path in sorted(ROOT.glob("*.*")) + sorted(
        path for name in ("csrc", "modfast", "tests", "bench") for path in (ROOT / name).rglob("*")
    ):
        if path.suffix in (".py", ".toml", ".h", ".cpp", ".cu", ".cuh"):
            digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    facts = tables.machine(device == "cuda")
    if device == "cpu":
        facts["gpu"] = "none: rehearsed on the CPU"
    return facts | {"commit": tables.commit(), "sources": digest.hexdigest()[:12]}


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


def missed(report: dict[str, Any]) -> list[str]:
    cases = report["stages"].get("bench", {}).get("cases", [])
    return [target for case in cases for target in case["missed"]]


def save(report: dict[str, Any], out: Path) -> None:
    """Whole files, or those that were there before."""
    texts = {"gpu.json": json.dumps(report, indent=1) + "\n", "gpu.md": markdown(report)}
    for name, text in texts.items():
        (out / f".{name}.part").write_text(text)
        (out / f".{name}.part").replace(out / name)


def markdown(report: dict[str, Any]) -> str:
    stages = report["stages"]
    lines = [tables.in_words(report["machine"]), ""]
    lines += ["| stage | outcome | tests | seconds |", "|---|---|---|---|"]
    for name, stage in stages.items():
        outcome = "failed: " + stage["error"].partition("\n")[0] if stage["error"] else "ok"
        parts = [part for part in (stage, *stage.values()) if isinstance(part, dict)]
        counts = [p["counts"].items() for p in parts if "counts" in p]
        tests = "; ".join(", ".join(f"{n} {key}" for key, n in each) for each in counts)
        lines.append(f"| {name} | {outcome} | {tests} | {stage['seconds']:.0f} |")
    rates = stages.get("ceilings", {}).get("rates", {})
    told = [CEILINGS[unit].format(rate / 1e9) for unit, rate in rates.items()]
    lines += ["", f"Ceilings: {'; '.join(told) or 'not measured'}.", ""]
    return "\n".join(lines) + "\n" + tables.table(stages.get("bench", {}).get("cases", []))
