r"""Refuses a wheel whose libraries need more of torch than the oldest supported release exports.

    python abi_floor.py WHEEL

The libraries may use torch's C shim only, and of it only what torch 2.11 has: the symbols listed in
torch-2.11-shim.txt. That list was made from the official wheel:

    pip download torch==2.11.0 --no-deps && unzip torch-2.11.0*.whl 'torch/lib/*'
    nm -D --defined-only torch/lib/libtorch_{cpu,cuda}.so | awk '{print $3}' \
        | grep -E '^(aoti_)?torch_' | sort -u
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path


def undefined_symbols(library: Path) -> set[str]:
    """Names that the library expects others to define."""
    listing = subprocess.run(
        ["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True
    )
    return {line.split()[-1].split("@")[0] for line in listing.stdout.splitlines()}


def main(wheel: str) -> int:
    """0 if every library in the wheel keeps to the floor; says what does not."""
    known = set((Path(__file__).parent / "torch-2.11-shim.txt").read_text().split())
    failed = 0
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".so")]
        for name in names:
            symbols = undefined_symbols(Path(archive.extract(name, folder)))
            shim = {s for s in symbols if re.match(r"(aoti_)?torch_", s)}
            # Mangled names in the namespaces of libtorch: its C++ interface is not stable.
            unstable = {s for s in symbols if re.match(r"_ZN?K?\w*?(2at|3c10|5torch)", s)}
            bad = sorted((shim - known) | unstable)
            print(f"{name}: {len(shim)} symbols of torch's shim" + "".join(f"\n  {b}" for b in bad))
            failed += bool(bad)
    if not names:
        print(f"{wheel} holds no library")
    return 1 if failed or not names else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
