"""Results of patching and attribution in files, and beside those of a demo in its report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from state.cases import differences
from torch import nn

import modfast
from modfast.metrics import logit_difference

ASKED: list[dict[str, Any]] = [
    {"positions": "each", "metric": logit_difference(0, 1)},
    {"screen": 2, "metric": logit_difference(0, 1), "per_sample": True},
    {"value": "optimal"},
    {"targets": torch.arange(28).reshape(7, 4) % 3, "metric": {"mean": lambda z: z.mean()}},
]


def network() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    return model, torch.randn(7, 4, 5)


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: ", ".join(asked))
def test_ablations_come_back(asked: dict[str, Any], tmp_path: Path) -> None:
    model, x = network()
    for site in ("1", ["0", "1"]):
        found = modfast.ablate_units(model, x, site, **asked)
        found.save(tmp_path / "found.safetensors")
        again = type(found).load(tmp_path / "found.safetensors")
        assert differences(again, found) == []
        assert repr(again) == repr(found)
        assert again.cpu().to_dict().keys() == found.to_dict().keys()


@pytest.mark.parametrize("positions", [None, "each"])
def test_scores_come_back(positions: Any, tmp_path: Path) -> None:
    model, x = network()
    found = modfast.attribute_units(model, x, ["0", "1"], positions=positions)
    found.save(tmp_path / "found.safetensors")
    again = modfast.UnitScores.load(tmp_path / "found.safetensors")
    assert differences(again, found) == []
    assert again.top(3) == found.top(3)
    with pytest.raises(ValueError, match="SiteAblations"):
        modfast.SiteAblations.load(tmp_path / "found.safetensors")
