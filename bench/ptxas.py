"""Compiles the CUDA kernels with warnings as errors; keeps what each needs on each architecture.

    python bench/ptxas.py [--check] [--log LOG]

Writes bench/results/ptxas.json: registers of a thread, bytes of spills, stack and static shared
memory, as ptxas tells them. --check compares with the file instead. Nothing may spill. Needs nvcc,
torch and what pyproject.toml names for a build, but no GPU; or the log of such a build, for all
architectures, with NVCC_APPEND_FLAGS as --flags prints them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "bench" / "results" / "ptxas.json"
FLAGS = "-Xptxas -v -Werror all-warnings"
FIELDS = ("registers", "spills", "stack", "shared")
Rows = dict[str, dict[str, int]]  # "kernel on architecture": FIELDS

# A function that a kernel calls is told of after the kernel, and its stack and spills count there.
SAID = re.compile(
    r"Compiling entry function '(?P<kernel>.+)' for '(?P<arch>sm_\w+)'"
    r"|(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes"
    r"|Used (?P<registers>\d+) registers(?:.* (?P<shared>\d+) bytes smem)?"
)


def build() -> str:
    """What the compilers say in a build by setup.py, the one place of flags and architectures."""
    steering = ("DEBUG", "FORCE_ONLY_CPU", "NVCC_PREPEND_FLAGS", "TORCH_CUDA_ARCH_LIST")
    env = {name: value for name, value in os.environ.items() if name not in steering}
    env |= {"FORCE_CUDA": "1", "NVCC_APPEND_FLAGS": FLAGS}
    with tempfile.TemporaryDirectory() as folder:
        built = subprocess.run(
            [sys.executable, "setup.py", "build_ext", "-b", folder, "-t", folder],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    if built.returncode:
        # Repeated at the end, below the traceback that setup.py ends with.
        errors = re.findall(r"^.*\berror\b.*\n", built.stdout, re.M)
        log = re.sub(r"^(ptxas info| +\d+ bytes stack).*\n", "", built.stdout, flags=re.M)
        sys.exit("".join([log, *errors]).rstrip())
    return built.stdout


def nvcc_version(log: str) -> str:
    """Version of the nvcc that setup.py chose."""
    nvcc = re.search(r"\S*/nvcc(?= )", log)
    assert nvcc is not None, log
    told = subprocess.run([nvcc[0], "--version"], capture_output=True, text=True, check=True)
    return told.stdout.split(", V")[1].split()[0]


def read(log: str) -> Rows:
    """What each kernel needs, by what the compilers said."""
    names = subprocess.run(
        ["c++filt", "--no-params"], input=log, capture_output=True, text=True, check=True
    )
    rows: Rows = {}
    for said in SAID.finditer(names.stdout.replace("modfast::", "").replace(" >", ">")):
        if said["kernel"]:
            # The most of all, where several files have the kernel: their order is not fixed.
            name = f"{said['kernel']} on {said['arch']}"
            row = rows.setdefault(name, dict.fromkeys(FIELDS, 0))
            continue
        new = {field: int(number or 0) for field, number in said.groupdict().items()}
        new["spills"] = new["stores"] + new["loads"]
        row.update({field: max(row[field], new[field]) for field in FIELDS})
    assert rows, log
    return dict(sorted(rows.items()))


def differences(now: dict[str, Any], kept: dict[str, Any]) -> list[str]:
    """How tables differ; another compiler may choose other numbers."""
    new, old = now["kernels"], kept["kernels"]
    found = [f"{name} is not in the table" for name in new.keys() - old.keys()]
    found += [f"{name} is in the table only" for name in old.keys() - new.keys()]
    if now["nvcc"] != kept["nvcc"]:
        print(f"numbers are not compared: nvcc is {now['nvcc']}, the table's is {kept['nvcc']}")
        return sorted(found)
    for name in new.keys() & old.keys():
        changed = [
            f"{f} {new[name][f]} (was {old[name][f]})"
            for f in FIELDS
            if new[name][f] != old[name][f]
        ]
        found += [f"{name} has other {', '.join(changed)}"] if changed else []
    return sorted(found)


def show(rows: Rows) -> None:
    """Prints the most that each kernel needs on any architecture."""
    most: Rows = {}
    for name, row in rows.items():
        before = most.setdefault(name.split(" on ")[0], row)
        most[name.split(" on ")[0]] = {f: max(row[f], before[f]) for f in FIELDS}
    width = max(map(len, most))
    print(f"{'':{width}}", *(f"{field:>9}" for field in FIELDS))
    for kernel, row in most.items():
        print(f"{kernel:{width}}", *(f"{row[field]:9}" for field in FIELDS))


def save(table: dict[str, Any]) -> None:
    """Writes the table, a line for each kernel and architecture, so that a diff names both."""
    text = re.sub(r"\{[^{}]*\}", lambda m: " ".join(m[0].split()), json.dumps(table, indent=1))
    unfinished = TABLE.with_suffix(".tmp")
    unfinished.write_text(text + "\n")
    unfinished.replace(TABLE)


def main() -> None:
    """Ends with a message if a kernel spills or, with --check, the table is not right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the table that is kept")
    parser.add_argument("--log", type=Path, help="what a build has said, which is not made again")
    parser.add_argument("--flags", action="store_true", help="print nvcc's, and do nothing")
    given = parser.parse_args()
    if given.flags:
        print(FLAGS)
        return
    log = given.log.read_text() if given.log else build()
    rows = read(log)
    table = {"nvcc": nvcc_version(log), "kernels": rows}
    show(rows)
    sys.stdout.flush()
    spills = [f"{name} spills {row['spills']} bytes" for name, row in rows.items() if row["spills"]]
    if spills:
        sys.exit("\n".join(spills))
    if not given.check:
        save(table)
    elif found := differences(table, json.loads(TABLE.read_text())):
        sys.exit("\n".join([*found, "If that is meant: python bench/ptxas.py writes the table."]))


if __name__ == "__main__":
    main()
