"""Times one module's GPU cases: python bench/gpu_worker.py MODULE DEVICE FILE.

A process of its own for each module, so that one that hangs or breaks the GPU's context leaves the
others alone. FILE gets one JSON object a line as soon as a case is done.
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from compare import compare


def main(module: str, device: str, path: Path) -> int:
    """0 if every case gave its answer and was timed."""
    failed = 0
    for make in importlib.import_module(module).gpu_cases(device):
        words = [str(x) for x in make.args if isinstance(x, str | int | torch.dtype)]
        entry: dict[str, Any] = {"case": " ".join([make.func.__name__, *words])}
        try:
            case = replace(make(), block=0.05)
            if device == "cpu":  # a rehearsal
                case = replace(case, block=0.002, rounds=3)
            entry |= {"case": case.name, "targets": case.targets}
            entry |= {"bytes": case.bytes, "ops": case.ops}
            timings = compare(case)
            entry["peers"] = {name: asdict(timing) for name, timing in timings.items()}
            times = ", ".join(f"{t.seconds * 1e6:,.1f} µs {name}" for name, t in timings.items())
            print(f"{case.name}: {times}", flush=True)
        except Exception:
            failed = 1
            entry["error"] = traceback.format_exc(limit=-3)
            print(f"{entry['case']}: {entry['error']}", flush=True)
        case = None
        with path.open("a") as record:
            record.write(json.dumps(entry) + "\n")
        if device == "cuda":
            torch.cuda.empty_cache()
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
