"""Files that are whole or not there."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
