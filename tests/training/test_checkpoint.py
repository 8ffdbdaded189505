"""What a checkpoint of a run is in, now and in the release before."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

import modfast
from modfast import Modularity, fit
from modfast.files import load_values

KIND = "checkpoint of a training run"


def train(epochs: int, path: Path | None) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    data = torch.randn(70, 6), torch.arange(70) % 3

    def optimizer(parameters: object) -> Modularity:
        return Modularity(parameters, layers="0", n_clusters=2, alpha=1.0, base="adam")

    found = fit(net, data, epochs, 16, optimizer, test=data, seed=0, checkpoint=path)
    return [*net.state_dict().values()], found.clusterability


def test_is_read_in_the_format_before_too(tmp_path: Path) -> None:
    whole, shares = train(4, None)
    new, old = tmp_path / "run", tmp_path / "old"
    train(2, new)
    with safe_open(new, framework="pt") as file:
        assert "model.0.weight" in file.keys()  # noqa: SIM118
    torch.save({"format": 2, "kind": KIND, "values": load_values(new, KIND)}, old)
    for path in (new, old):
        resumed, their_shares = train(4, path)
        assert all(map(torch.equal, resumed, whole))
        assert torch.equal(their_shares, shares)


def test_history_is_kept_too(tmp_path: Path) -> None:
    data = torch.randn(20, 4), torch.arange(20) % 2
    history = fit(modfast.models.MLP([4, 4, 2]), data, 1, test=data, seed=0)
    history.save(tmp_path / "history")
    again = modfast.History.load(tmp_path / "history")
    for name, value in history.to_dict().items():
        mine = getattr(again, name)
        assert torch.equal(mine, value) if isinstance(value, Tensor) else mine == value
