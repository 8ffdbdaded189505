"""Files that are whole or not there."""

from __future__ import annotations

import errno
import math
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from modfast.files import load_values, replacing, save_values
from modfast.results import Result


@dataclass(frozen=True, eq=False, repr=False)
class Kept(Result):
    values: Mapping[str, Tensor]
    share: float


def interrupted(path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt


def test_an_interrupt_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "kept.safetensors"
    Kept({"x": torch.arange(3)}, 0.5).save(path)
    with pytest.raises(KeyboardInterrupt):
        interrupted(path)
    found = Kept.load(path)
    assert torch.equal(found.values["x"], torch.arange(3))
    assert found.share == 0.5
    assert [file.name for file in path.parent.iterdir()] == ["kept.safetensors"]


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "kept.safetensors"
    Kept({"x": torch.arange(3)}, 0.5).save(path)
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[:-4], whole[: len(whole) // 2], b"PK\x03\x04 and more"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="kept.safetensors' holds no Kept that modfast saved"):
            Kept.load(path)
    for state in ({"a": 1}, [1], {"format": 2, "kind": "Kept"}, nn.Linear(2, 2)):
        torch.save(state, path)
        with pytest.raises(ValueError, match="kept.safetensors' holds no Kept"):
            Kept.load(path)
    with pytest.raises(FileNotFoundError):
        Kept.load(tmp_path / "none.pt")


def test_files_of_safetensors_that_are_no_results(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "kept.safetensors"
    for metadata in (
        None,
        {"other": "x"},
        {"modfast": "{"},
        {"modfast": '{"format": 4, "kind": "Kept", "values": {}}'},
        {"modfast": '{"format": 3, "kind": "Kept", "values": {"share": {"code": 1}}}'},
        {"modfast": '{"format": 3, "kind": "Kept", "values": {"share": {"tensor": "y"}}}'},
    ):
        save_file({"x": torch.ones(1)}, path, metadata)
        with pytest.raises(ValueError, match="kept.safetensors' holds no Kept"):
            Kept.load(path)


def test_fields_of_the_old_format_and_of_other_types(tmp_path: Path) -> None:
    path = tmp_path / "kept.pt"

    def load(values: dict[str, object]) -> Kept:
        torch.save({"format": 2, "kind": "Kept", "values": values}, path)
        return Kept.load(path)

    found = load({"values": {"x": torch.arange(3)}, "share": 1.0})
    assert torch.equal(found.values["x"], torch.arange(3))
    with pytest.raises(ValueError, match="missing 1 required positional argument: 'values'"):
        load({"share": 1.0})
    with pytest.raises(ValueError, match="kept.pt' .* unexpected keyword argument 'other'"):
        load({"values": {}, "share": 1.0, "other": 2})
    with pytest.raises(ValueError, match=r"kept.pt' .*: values\['x'\] must be Tensor, got int"):
        load({"values": {"x": 3}, "share": 1.0})
    with pytest.raises(ValueError, match="kept.pt' .*: share must be float, got str"):
        load({"values": {}, "share": "all"})


def test_what_is_saved_is_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "values"
    whole = torch.randn(4, 4)
    values = {
        "row": whole[0],
        "same": whole[0],
        "across": whole.T,
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(True),
        "half": torch.randn(3).bfloat16(),
        "nested": ({"a": [1, None, "x", False]}, (2.5,), {("in", "out"): torch.arange(2), 3: ()}),
        "numbers": (float("inf"), -float("inf"), 1e300, 2**70, 0.1),
    }
    save_values(path, "values", values)
    found = load_values(path, "values")
    assert list(found) == list(values)
    for name, value in values.items():
        if isinstance(value, Tensor):
            assert torch.equal(found[name], value)
            assert found[name].dtype == value.dtype
    first, second, third = found["nested"]
    assert (first, second) == values["nested"][:2]  # type: ignore[index]
    assert torch.equal(third["in", "out"], torch.arange(2))
    assert third[3] == ()
    assert found["numbers"] == values["numbers"]
    with safe_open(path, framework="pt") as file:
        assert {"row", "nested.2.in.out"} <= set(file.keys())
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    save_values(path, "values", {"value": float("nan")})
    assert math.isnan(load_values(path, "values")["value"])


def test_values_that_no_file_holds(tmp_path: Path) -> None:
    for value in (object(), {1}, nn.Linear(1, 1)):
        with pytest.raises(TypeError, match=r"values\.1\.a must be a tensor, a plain value"):
            save_values(tmp_path / "x", "values", {"values": [1, {"a": value}]})
    assert not list(tmp_path.iterdir())


def test_altered_bytes_are_seen(tmp_path: Path) -> None:
    path, draw = tmp_path / "kept", random.Random(0)
    for values in ({"x": torch.randn(40), "y": torch.arange(9)}, {}):
        Kept(values, 0.5).save(path)
        whole = path.read_bytes()
        for _ in range(500):
            altered = bytearray(whole)
            for at in draw.sample(range(len(whole)), draw.randint(1, 10)):
                altered[at] ^= draw.randint(1, 255)
            path.write_bytes(altered)
            with pytest.raises(ValueError, match="kept' holds no Kept that modfast saved .*: ."):
                Kept.load(path)


def test_each_byte_of_a_header_counts(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    Kept({"x": torch.zeros(2)}, 0.5).save(path)
    whole = path.read_bytes()
    for at in range(len(whole)):
        for other in {whole[at] ^ 1, 0, 32, ord("3")} - {whole[at]}:
            path.write_bytes(whole[:at] + bytes([other]) + whole[at + 1 :])
            with pytest.raises(ValueError, match="kept' holds no Kept"):
                Kept.load(path)
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        with pytest.raises(ValueError, match="kept' holds no Kept that modfast saved .*: ."):
            Kept.load(path)


def test_the_format_without_a_checksum_is_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "kept"
    text = (
        '{"format": 3, "kind": "Kept", "values": {"values": '
        '{"mapping": [["x", {"tensor": "values.x"}]]}, "share": 0.5}}'
    )
    save_file({"values.x": torch.arange(3)}, path, {"modfast": text})
    found = Kept.load(path)
    assert torch.equal(found.values["x"], torch.arange(3))
    save_file({"values.x": torch.arange(3)}, path, {"modfast": text.replace("3", "4", 1)})
    with pytest.raises(ValueError, match="its format is 4"):
        Kept.load(path)


WRITE = """
import resource, sys
from modfast.files import save_values
import torch
save_values(sys.argv[1], "values", {"x": torch.zeros(10)})
resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
try:
    save_values(sys.argv[1], "values", {"x": torch.zeros(2**16)})
except OSError as error:
    print(type(error).__name__, error.errno, error)
"""


@pytest.mark.skipif(os.name != "posix", reason="no limits of that kind")
def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    done = subprocess.run(
        [sys.executable, "-c", WRITE, path], capture_output=True, text=True, check=True
    )
    assert f"OSError {errno.EFBIG} " in done.stdout
    assert "cannot be written" in done.stdout
    assert f"'{path}'" in done.stdout
    assert torch.equal(load_values(path, "values")["x"], torch.zeros(10))
    assert [file.name for file in tmp_path.iterdir()] == ["kept"]
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot be written .*kept'"):
        save_values(tmp_path / "file" / "kept", "values", {})
    (tmp_path / "folder" / "in").mkdir(parents=True)
    with pytest.raises(OSError, match="cannot be written .*folder'"):
        save_values(tmp_path / "folder", "values", {})


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    kill = (
        "import os, sys\nfrom pathlib import Path\nfrom modfast.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_bytes(b'half')\n    os.kill(os.getpid(), 9)\n"
    )
    path = tmp_path / "other.name"
    subprocess.run([sys.executable, "-c", kill, path], check=False)
    (left,) = tmp_path.iterdir()
    assert left.read_bytes() == b"half"
    alive = tmp_path / left.name.replace(left.name.split(".")[-3], str(os.getpid()))
    elsewhere = tmp_path / f".a.another-machine.{2**22 + 1}.0.tmp"
    strange = tmp_path / ".a.tmp"
    for file in (alive, elsewhere, strange):
        file.touch()
    save_values(tmp_path / "kept", "values", {})
    assert {file.name for file in tmp_path.iterdir()} == {
        *("kept", alive.name, elsewhere.name, strange.name)
    }


def test_threads_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "kept"

    def write(i: int) -> None:
        for _ in range(20):
            save_values(path, "values", {"x": torch.full((100,), i)})
            found = load_values(path, "values")["x"]
            assert bool((found == found[0]).all())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert [file.name for file in tmp_path.iterdir()] == ["kept"]
