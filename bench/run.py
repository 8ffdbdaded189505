"""Runs the benchmarks: checks each answer, times peers side by side, prints and keeps the ratios.

    python bench/run.py [WORD ...] [--modules NAME ...] [--threads N] [--keep NAME]

WORDs choose cases by name, --modules whole files of them (information is bench_information.py).
Every number is a ratio of two times taken in one run (see compare.py). --keep writes
bench/results/NAME.json and NAME.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import bench_ablation
import bench_circuits
import bench_clusterability
import bench_effective
import bench_estimators
import bench_features
import bench_fit
import bench_information
import bench_modularity
import bench_tasks
import torch
from compare import Timing, compare

import modfast
from modfast import _extension

MODULES = (
    bench_clusterability,
    bench_modularity,
    bench_fit,
    bench_information,
    bench_ablation,
    bench_features,
    bench_circuits,
    bench_effective,
    bench_estimators,
    bench_tasks,
)
RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    processor = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        processor = names[0].split(":")[1].strip() if names else processor
    git = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    return {
        "processor": processor,
        "threads": torch.get_num_threads(),
        "simd": _extension.library.build_info()["simd"] if _extension.library else "none",
        "torch": torch.__version__,
        "modfast": modfast.__version__,
        "commit": git.stdout.strip(),
    }


def row(name: str, timings: dict[str, Timing], targets: dict[str, float]) -> list[str]:
    """Lines of a Markdown table, one for each peer of modfast."""
    (_, ours), *others = timings.items()
    lines = []
    for peer, t in others:
        target = targets.get(peer)
        wanted = "" if target is None else f"{target:.2f}" + (" ✓" if t.ratio >= target else " ✗")
        lines.append(
            f"| {name} | {ours.seconds * 1e6:,.1f} | {peer} | {t.seconds * 1e6:,.1f} | "
            f"**{t.ratio:.2f}** ({t.low:.2f} to {t.high:.2f}) | {wanted} |"
        )
    return lines


def main() -> None:
    """Parses the command line and runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*")
    parser.add_argument("--threads", type=int)
    modules = {module.__name__.removeprefix("bench_"): module for module in MODULES}
    parser.add_argument("--modules", nargs="+", choices=modules, default=list(modules))
    parser.add_argument("--keep", metavar="NAME")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    facts = machine()
    print(", ".join(f"{key} {value}" for key, value in facts.items()), flush=True)
    head = ["| case | modfast, µs | peer | peer, µs | ratio (quartiles) | target |"]
    head.append("|---|---|---|---|---|---|")
    print("\n".join(head), flush=True)
    lines, record = list(head), []
    for name in arguments.modules:
        for case in modules[name].cases():
            if arguments.words and not any(word in case.name for word in arguments.words):
                continue
            timings = compare(case)
            new = row(case.name, timings, case.targets)
            print("\n".join(new), flush=True)
            lines += new
            peers = {name: asdict(timing) for name, timing in timings.items()}
            record.append({"case": case.name, "targets": case.targets, "peers": peers})
    if arguments.keep:
        RESULTS.mkdir(exist_ok=True)
        report = {"machine": facts, "cases": record}
        (RESULTS / f"{arguments.keep}.json").write_text(json.dumps(report, indent=1) + "\n")
        told = ", ".join(f"{key} {value}" for key, value in facts.items())
        (RESULTS / f"{arguments.keep}.md").write_text("\n".join([told, "", *lines]) + "\n")


if __name__ == "__main__":
    main()
