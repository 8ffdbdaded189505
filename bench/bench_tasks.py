"""A hundred task networks trained at once against one after the other, and their comparison.

The peers train networks of the notebook's shape on its data, by torch, a few networks and epochs of
them; their times are scaled to all.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from timing import Compare, Peers
from torch import Tensor, nn
from torch.nn import functional

import modfast
from modfast.models import MLP
from modfast.reference import run_mlps, split_mlps, train_mlps_

SIZES = (4, 16, 16, 2)
N_MODELS, N_EPOCHS = 100, 1000
# What a case does of that: its epochs cost what any others do, but for the first few.
EPOCHS = 100


@pytest.fixture(scope="module")
def data() -> modfast.data.Dataset:
    return modfast.data.load("physics")


def test_training(compare: Compare, data: modfast.data.Dataset) -> None:
    check_training(data.train)
    check_study(data)

    def ours() -> object:
        return modfast.TaskStudy.train(data.train, SIZES, N_MODELS, EPOCHS, seed=0, progress=False)

    # Each for as many networks times epochs.
    some = 20
    peers: Peers = {
        "torch, one by one": lambda: single(0, data.train, some),
        "... on one thread": lambda: on_one_thread(single, 0, data.train, some),
        "... on one thread, fused Adam": lambda: on_one_thread(single, 0, data.train, some, True),
        "torch, stacked, autograd": lambda: stacked(4, data.train, some // 4),
        "torch, stacked, by hand": lambda: by_hand(4, data.train, some // 4),
    }
    compare(
        f"training of {N_MODELS} networks 4-16-16-2 on 8,000 samples, {EPOCHS} epochs",
        {"modfast.TaskStudy": ours, **peers},
        {"torch, one by one": 20.0, "... on one thread": 20.0},
        rounds=7,
        block=0.2,
        parts=dict.fromkeys(peers, some / (N_MODELS * EPOCHS)),
    )


@pytest.mark.short
def test_distinct(compare: Compare, data: modfast.data.Dataset) -> None:
    grids = modfast.data.physics_grids()
    model = modfast.TaskStudy.train(data.train, SIZES, 1, 300, progress=False).model(0)
    check_distinct(model, grids)
    compare(
        "distinct gradients of one network at its input, two grids of 100 x 100",
        {
            "modfast.compare_tasks": lambda: modfast.compare_tasks(model, grids, "input"),
            "autograd and torch.unique of rounded rows": lambda: rounded(model, grids),
        },
        rounds=9,
    )


def single(seed: int, data: tuple[Tensor, Tensor], epochs: int, fused: bool = False) -> MLP:
    torch.manual_seed(seed)
    model = MLP(SIZES).to(data[0])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, fused=fused)
    for _ in range(epochs):
        optimizer.zero_grad()
        functional.mse_loss(model(data[0]), data[1]).backward()
        optimizer.step()
    return model


def on_one_thread(call: Callable[..., object], *arguments: object) -> object:
    """So small a network trains faster so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return call(*arguments)
    finally:
        torch.set_num_threads(before)


def starts(n: int, like: Tensor) -> Tensor:
    rows = []
    for i in range(n):
        torch.manual_seed(i)
        rows.append(nn.utils.parameters_to_vector(MLP(SIZES).parameters()).detach())
    return torch.stack(rows).to(like)


def stacked(n: int, data: tuple[Tensor, Tensor], epochs: int) -> Tensor:
    """One autograd graph and one fused Adam for all networks."""
    x, y = data
    parameters = starts(n, x).requires_grad_()
    optimizer = torch.optim.Adam([parameters], lr=1e-2, fused=True)
    for _ in range(epochs):
        optimizer.zero_grad()
        error = run_mlps(x, split_mlps(parameters, SIZES))[-1] - y
        error.square().mean((1, 2)).sum().backward()
        optimizer.step()
    return parameters.detach()


def by_hand(n: int, data: tuple[Tensor, Tensor], epochs: int) -> Tensor:
    """Without autograd: batched products forward and backward."""
    parameters = starts(n, data[0])
    state = torch.zeros_like(parameters), torch.zeros_like(parameters)
    train_mlps_(*data, SIZES, parameters, *state, 0, epochs, 1e-2, 0.9, 0.999, 1e-8)
    return parameters


def check_training(data: tuple[Tensor, Tensor]) -> None:
    """Every way gives the same networks: all in float64, 30 epochs."""
    exact = data[0].double(), data[1].double()
    found = modfast.TaskStudy.train(exact, SIZES, 3, 30, progress=False).parameters
    one_by_one = [
        nn.utils.parameters_to_vector(single(i, exact, 30).parameters()).detach() for i in range(3)
    ]
    ways: list[Callable[[], Tensor]] = [
        lambda: torch.stack(one_by_one),
        lambda: stacked(3, exact, 30),
        lambda: by_hand(3, exact, 30),
    ]
    for way in ways:
        torch.testing.assert_close(found, way(), rtol=1e-7, atol=1e-9)


def check_study(data: modfast.data.Dataset) -> None:
    """All networks and epochs: the notebook's loss and capture."""
    study = modfast.TaskStudy.train(data.train, SIZES, N_MODELS, N_EPOCHS, progress=False)
    losses = study.validate(data.test)
    assert 3e-4 < losses.median() < 5e-4, f"validation loss {losses.median()}"
    capture = study.compare(modfast.data.physics_grids(), progress=False).capture
    means = capture.mean(0)
    assert means[0] < means[1] < means[2], f"capture {means}"
    assert capture.min() > 0.83, f"capture {capture.min()}"


def rounded(model: MLP, grids: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each task's different gradients, with those apart that rounding tears apart."""
    found = []
    for task, grid in enumerate(grids):
        x = grid.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(x)[:, task].sum(), x)
        scale = gradient.norm(dim=1).max() * 1e-5
        found.append((gradient / scale).round().unique(dim=0, return_counts=True))
    return found


def check_distinct(model: MLP, grids: Tensor) -> None:
    model = model.double()
    found = modfast.compare_tasks(model, grids.double(), "input")["input"].distinct
    for ours, (_, counts) in zip(found, rounded(model, grids.double()), strict=True):
        wanted = counts.sort(descending=True).values
        assert torch.equal(ours.counts, wanted), f"{ours.counts} instead of {wanted}"
    model.float()
