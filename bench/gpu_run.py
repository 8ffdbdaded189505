"""How gpu.py runs its commands: on the build, with a time limit, progress shown and a log kept."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_report import read_tests

START = time.monotonic()
Outcome = dict[str, Any]


def say(text: str) -> None:
    print(f"[{time.monotonic() - START:5.0f} s] {text}", flush=True)


@dataclass
class Run:
    """One run of this program."""

    device: str
    work: Path
    out: Path
    seconds: float
    report: dict[str, Any]

    def call(
        self, name: str, command: list[str], limit: float, show: str = "$^", **env: str
    ) -> str:
        """Runs a command on the build, away from the clone; says what went wrong, "" for nothing.

        Lines that match `show` are printed, all go to a log.
        """
        limit = min(limit, START + self.seconds - time.monotonic())
        if limit <= 0:
            return f"{name}: no time was left"
        for key, folder in (("PYTHONPATH", "site"), ("PATH", "site/bin")):
            env[key] = os.pathsep.join(
                filter(None, [str(self.work / folder), os.environ.get(key, "")])
            )
        process = subprocess.Popen(
            command,
            cwd=self.work / "away",
            env={**os.environ, "PYTHONUNBUFFERED": "1", **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            process_group=0,  # so that a time limit ends all that it started
        )
        lines: list[str] = []

        def follow() -> None:
            assert process.stdout is not None
            with (self.work / f"{name}.log").open("w") as log:
                for line in process.stdout:
                    log.write(line)
                    lines.append(line.rstrip())
                    if re.search(show, lines[-1]):
                        say(f"  {lines[-1]}")

        reader = threading.Thread(target=follow, daemon=True)
        reader.start()
        wrong = ""
        try:
            if status := process.wait(limit):
                wrong = f"{name}: exit status {status}"
        except subprocess.TimeoutExpired:
            wrong = f"{name}: stopped after {limit:.0f} s"
        finally:
            # pytest then still writes what it has found, and others say where they were.
            for kind, patience in ((signal.SIGINT, 10), (signal.SIGKILL, 5)):
                if process.poll() is None:
                    os.killpg(process.pid, kind)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(patience)
        reader.join(10)
        return "\n".join([wrong, *lines[-12:]]) if wrong else ""

    def pytest(
        self, name: str, arguments: list[str], limit: float, *before: str, **env: str
    ) -> Outcome:
        """Runs tests, under the command `before` if there is one."""
        xml = self.work / f"{name}.xml"
        xml.unlink(missing_ok=True)
        options = ["-v", "-o", "faulthandler_timeout=60", f"--junitxml={xml}"]
        command = [*before, sys.executable, "-m", "pytest", *options, *arguments]
        wrong = self.call(name, command, limit, r" (FAILED|ERROR) +\[|^=+ .* in [\d.]+s", **env)
        outcome = read_tests(xml, self.device)
        if not wrong and not outcome["counts"][f"passed on {self.device}"]:
            wrong = f"{name}: no test passed on {self.device}"
        return {"error": wrong, **outcome}

    def suite(self, name: str, files: list[str], limit: float) -> tuple[str, list[dict[str, Any]]]:
        """The suite's ceilings, and the cases for a GPU in files of it, as shipped in the build.

        What went wrong, and the cases that are done, also where a time limit stopped others.
        """
        path, folder = self.work / f"{name}.jsonl", self.work / "site" / "modfast" / "bench"
        path.unlink(missing_ok=True)
        # A rehearsal finds out whether all runs, not how fast.
        block, rounds = ("0.05", []) if self.device == "cuda" else ("0.002", ["--rounds=3"])
        options = ["-v", "-o", "faulthandler_timeout=60", "--benchmark-quiet", "--no-targets"]
        options += ["-k", "gpu or ceilings"]
        options += [f"--gpu={self.device}", f"--lines={path}", f"--block={block}", *rounds]
        paths = [str(folder / file) for file in ("bench_ceilings.py", *files)]
        command = [sys.executable, "-X", "faulthandler", "-m", "pytest", *options, *paths]
        wrong = self.call(name, command, limit, r" (PASSED|FAILED|ERROR) +\[")
        lines = path.read_text().splitlines() if path.exists() else []
        return wrong, [json.loads(line) for line in lines]
