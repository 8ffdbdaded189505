"""What a checkpoint of a run is in, now and in the release before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import modfast
from modfast import Modularity, fit
from modfast.files import load_values, save_values

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


DATA = torch.linspace(-1, 1, 60).view(20, 3), torch.arange(20) % 2


def a_run(path: Path, model: nn.Module, **others: Any) -> None:
    options: dict[str, Any] = {
        **{"train": DATA, "epochs": 2, "batch_size": 8, "test": DATA, "seed": 0},
        **{"optimizer": modfast.Modularity, "checkpoint": path, "progress": False},
    }
    fit(model, **{**options, **others})


def network() -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        return modfast.models.MLP([3, 4, 4, 2])


OTHERS: dict[str, dict[str, Any]] = {
    "data": {"train": (DATA[0] + 1, DATA[1])},
    "data, its targets": {"train": (DATA[0], 1 - DATA[1])},
    "test data": {"test": (DATA[0], 1 - DATA[1])},
    "seed": {"seed": 1},
    "epochs": {"epochs": 1},
    "batch size": {"batch_size": 4},
    "optimizer": {"optimizer": None},
    "regularizer": {"regularizer": lambda: torch.zeros(())},
}


@pytest.mark.parametrize("what", OTHERS)
def test_of_another_run(what: str, tmp_path: Path) -> None:
    path = tmp_path / "run"
    a_run(path, network())
    model, written = network(), path.read_bytes()
    match = "epochs must be at least the 2" if what == "epochs" else f"its {what.split(',')[0]} is"
    with pytest.raises(ValueError, match=match):
        a_run(path, model, **OTHERS[what])
    own = network().state_dict()
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())
    assert path.read_bytes() == written


WRONG: list[tuple[str, Any]] = [
    *((name, None) for name in ("run", "epoch", "model", "optimizer", "generator", "losses")),
    *((name, 3.5) for name in ("global_random", "cuda_random", "accuracies", "accuracy_steps")),
    *(("epoch", value) for value in (-1, True, "2")),
    *(("losses", value) for value in ([], [1.0, 2.0], [torch.zeros(3)])),
    *(("sums", value) for value in ([None], torch.zeros(2))),
    *(("accuracy_steps", value) for value in ([0.5], ["a"])),
    *(("generator", value) for value in (torch.zeros(3, dtype=torch.uint8), torch.zeros(5056))),
    ("global_random", torch.zeros(0, dtype=torch.uint8)),
    ("model", {"fc1.weight": torch.zeros(4, 3)}),
    *(("optimizer", value) for value in ({}, {"state": {}}, {"state": {}, "param_groups": []})),
    ("optimizer", {"state": {}, "param_groups": [{}]}),
    ("optimizer", {"state": 1, "param_groups": 2}),
]


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_of_wrong_fields(field: str, value: Any, tmp_path: Path) -> None:
    path = tmp_path / "run"
    a_run(path, network())
    values = load_values(path, KIND)
    save_values(path, KIND, {**values, field: value})
    model = network()
    optimizer = modfast.Modularity(model.named_parameters())
    groups = [{**group} for group in optimizer.param_groups]
    with pytest.raises(ValueError, match=f"checkpoint {path} must hold .*{field}"):
        a_run(path, model, epochs=3, optimizer=optimizer)
    own = network().state_dict()
    assert all(torch.equal(each, own[name]) for name, each in model.state_dict().items())
    assert [{**group} for group in optimizer.param_groups] == groups
    assert not optimizer.state


def test_of_a_model_of_another_dtype(tmp_path: Path) -> None:
    path, model = tmp_path / "run", network()
    a_run(path, model)
    values = load_values(path, KIND)
    values["model"] = {name: value.double() for name, value in values["model"].items()}
    save_values(path, KIND, values)
    with pytest.raises(ValueError, match="got no right 'model'"):
        a_run(path, network(), epochs=3)
