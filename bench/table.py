"""Prints a table of the README from kept results: python bench/table.py NAME."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    """One row for each comparison with another implementation."""
    report = json.loads((Path(__file__).parent / "results" / f"{sys.argv[1]}.json").read_text())
    machine = report["machine"]
    print(
        f"Times of others over modfast's, medians of one run on {machine['threads']} threads of a "
        f"shared machine ({machine['simd']}, torch {machine['torch'].split('+')[0]}):\n"
    )
    print("| | against | ratio |")
    print("|---|---|---|")
    for case in report["cases"]:
        for peer, timing in list(case["peers"].items())[1:]:
            if "alone" not in case["case"]:
                print(f"| {case['case']} | {peer} | {timing['ratio']:.1f} |")


if __name__ == "__main__":
    main()
