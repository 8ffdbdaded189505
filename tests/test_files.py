"""Files that are whole or not there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from modfast.files import load_result, replacing, save_result


@dataclass
class Kept:
    values: dict[str, Tensor]
    share: float


def interrupted(path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt


def test_an_interrupt_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "kept.pt"
    save_result(path, Kept({"x": torch.arange(3)}, 0.5))
    with pytest.raises(KeyboardInterrupt):
        interrupted(path)
    found = load_result(path, Kept)
    assert torch.equal(found.values["x"], torch.arange(3))
    assert found.share == 0.5
    assert [file.name for file in path.parent.iterdir()] == ["kept.pt"]


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "kept.pt"
    save_result(path, Kept({}, 0.5))
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[:-40], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="kept.pt' holds no Kept that modfast saved"):
            load_result(path, Kept)
    for state in ({"a": 1}, [1], {"format": 2, "kind": "Kept"}):
        torch.save(state, path)
        with pytest.raises(ValueError, match="holds no Kept"):
            load_result(path, Kept)
    torch.save({"format": 2, "kind": "Kept", "values": {"share": 1.0}}, path)
    with pytest.raises(ValueError, match="missing 1 required positional argument: 'values'"):
        load_result(path, Kept)
    with pytest.raises(FileNotFoundError):
        load_result(tmp_path / "none.pt", Kept)
