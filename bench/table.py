"""Prints a table of the README from kept results: python bench/table.py NAME."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    """One row for each case."""
    report = json.loads((Path(__file__).parent / "results" / f"{sys.argv[1]}.json").read_text())
    machine = report["machine"]
    print(
        f"Times of others over modfast's, medians of one run on {machine['threads']} threads of a "
        f"shared machine ({machine['simd']}, torch {machine['torch'].split('+')[0]}):\n"
    )
    print("| | times as fast as |")
    print("|---|---|")
    for case in report["cases"]:
        if "alone" not in case["case"]:
            peers = list(case["peers"].items())[1:]
            told = [f"{peer}: {timing['ratio']:,.{digits(timing)}f}" for peer, timing in peers]
            print(f"| {case['case']} | {'; '.join(told)} |")


def digits(timing: dict[str, float]) -> int:
    """Decimals worth telling of a ratio."""
    return 0 if timing["ratio"] >= 100 else 1


if __name__ == "__main__":
    main()
