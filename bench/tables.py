"""What the numbers depend on, and the Markdown table of a suite's cases."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
HEAD = """\
| case | modfast, µs | floor, µs | of ceiling | peer | peer, µs | ratio (quartiles) | target |
|---|---|---|---|---|---|---|---|"""


def said(*command: str) -> str:
    """The first line that a command prints; "unknown" where it cannot run."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.partition("\n")[0] or "unknown"


def machine(gpu: bool) -> dict[str, Any]:
    """Processor and graphics card, and the versions that are not modfast's."""
    processor, cpuinfo = platform.processor(), Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        processor = names[0].split(":")[1].strip() if names else processor
    driver = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "processor": processor,
        "gpu": torch.cuda.get_device_name() if gpu else "none",
        "driver": said(*driver) if gpu else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
    }


def commit() -> str:
    """Of the clone that the suite stands in; "unknown" where it was installed."""
    if not (ROOT / ".git").exists():
        return "unknown"
    return said("git", "describe", "--always", "--dirty", "--exclude=*")


def in_words(facts: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in facts.items() if value != "none")


def table(cases: list[dict[str, Any]]) -> str:
    """Markdown, a line for each peer of modfast; floor and ceiling only where a case has them."""
    lines = [*HEAD.splitlines(), *(line for case in cases for line in _rows(case))]
    if not any("floor" in case for case in cases):
        cells = [line.split("|") for line in lines]
        lines = ["|".join([*each[:3], *each[5:]]) for each in cells]
    return "\n".join(lines) + "\n"


def _rows(case: dict[str, Any]) -> Iterator[str]:
    def target(name: str) -> str:
        if (least := case["targets"].get(name)) is None:
            return ""
        return f"{least:.2f} {'✓' if case['found'][name] >= least else '✗'}"

    (ours, own), *peers = case["peers"].items()
    ceiling = f"{case['floor'] * 1e6:,.1f} | **{case['share']:.2f}**" if "floor" in case else " | "
    head = f"| {case['case']} | {own['seconds'] * 1e6:,.1f} | {ceiling} {target('ceiling')}"
    for peer, t in peers or [(ours, own)]:
        yield (
            f"{head} | {peer} | {t['seconds'] * 1e6:,.1f} | **{t['ratio']:.2f}** "
            f"({t['low']:.2f} to {t['high']:.2f}) | {target(peer)} |"
        )
