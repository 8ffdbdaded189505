from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import modfast
from modfast import ablate_directions, ablate_units, max_information_direction
from modfast.models import MLP

PATHS = ["fused", "replay", "model"]


def kl(model: MLP, x: Tensor, site: str, directions: Tensor) -> Tensor:
    return ablate_directions(model, x, site, directions).kl_ablated_original


@pytest.fixture(scope="module")
def digits() -> tuple[MLP, modfast.data.Dataset]:
    pytest.importorskip("sklearn")
    torch.manual_seed(0)
    data, model = modfast.data.load("digits"), MLP([64, 32, 32, 10])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    modfast.fit(model, data.train, 15, optimizer=optimizer, seed=0, progress=False)
    return model, data


@pytest.mark.parametrize("site", ["act1", "act2"])
@pytest.mark.slow
def test_beats_units_and_random_directions(
    digits: tuple[MLP, modfast.data.Dataset], site: str
) -> None:
    model, data = digits
    fitted, held_out = data.train_x[:200], data.test_x
    found = max_information_direction(model, fitted, site, steps=400, seed=0)
    random = torch.randn(10_000, 32, generator=torch.Generator().manual_seed(0))
    for x, margin in [(fitted, 1.5), (held_out, 1.2)]:
        (ours,) = kl(model, x, site, found.direction[None])
        assert ours > margin * ablate_units(model, x, site).kl_ablated_original.max()
        assert ours > margin * kl(model, x, site, random).max()
    # What it reports is what the ablation of what it returns does.
    each = kl(model, fitted, site, found.directions)
    torch.testing.assert_close(found.kls, each, rtol=1e-4, atol=0)
    assert found.kl == found.kls.max()
    torch.testing.assert_close(
        found.kl, kl(model, fitted, site, found.direction[None])[0], rtol=1e-4, atol=0
    )
    torch.testing.assert_close(found.history.max(0).values, found.kls)
    assert found.history.shape == (401, 8)
    torch.testing.assert_close(found.directions.norm(dim=1), torch.ones(8))


@pytest.mark.parametrize("site", ["act1", "act2"])
def test_paths_agree(site: str) -> None:
    torch.manual_seed(0)
    model, x = MLP([8, 7, 6, 4]).double(), torch.randn(30, 8).double()
    runs = [
        max_information_direction(model, x, site, steps=30, restarts=3, seed=1, backend=path)
        for path in PATHS
    ]
    for run in runs[1:]:
        torch.testing.assert_close(run.history, runs[0].history, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(run.direction, runs[0].direction, rtol=1e-6, atol=1e-8)
    # An activation in between: every path but the fused one.
    before, after = (
        max_information_direction(model, x, "fc2", steps=30, seed=1, backend=path)
        for path in ("replay", "model")
    )
    torch.testing.assert_close(before.history, after.history, rtol=1e-8, atol=1e-10)


def test_streams_seeds_and_the_model() -> None:
    torch.manual_seed(0)
    model, x = MLP([8, 7, 6, 4]).double(), torch.randn(30, 8).double()
    whole = max_information_direction(model, x, "act1", steps=20, seed=1)
    streamed = max_information_direction(model, [x[:11], x[11:]], "act1", steps=20, seed=1)
    torch.testing.assert_close(whole.history, streamed.history)
    other = max_information_direction(model, x, "act1", steps=20, seed=2)
    assert not torch.equal(whole.history, other.history)
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_bad_input() -> None:
    model, x = MLP([8, 7, 6, 4]), torch.randn(30, 8)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        max_information_direction(model, x, "act1", steps=0)
    with pytest.raises(ValueError, match="restarts must be at least 1, got 0"):
        max_information_direction(model, x, "act1", restarts=0)
    with pytest.raises(ValueError, match="lr must be above 0, got -1"):
        max_information_direction(model, x, "act1", lr=-1.0)
    with pytest.raises(TypeError, match="seed must be an integer, got True"):
        max_information_direction(model, x, "act1", seed=True)
    with pytest.raises(ValueError, match="site='act9': no such module"):
        max_information_direction(model, x, "act9")
    with pytest.raises(ValueError, match="backend='fused': needs"):
        max_information_direction(model, x, "fc2", backend="fused")


@pytest.mark.slow
def test_on_mnist(mnist_root: Path) -> None:
    data = modfast.data.load("mnist", mnist_root)
    torch.manual_seed(0)
    model = MLP([784, 128, 128, 10])
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    modfast.fit(model, data.train, 1, optimizer=optimizer, seed=0, progress=False)
    fitted, held_out = data.test_x[:64], data.test_x[64:]
    found = max_information_direction(model, fitted, "act2", seed=0)
    random = torch.randn(10_000, 128, generator=torch.Generator().manual_seed(0))
    for x, margin in [(fitted, 2.0), (held_out, 2.0)]:
        (ours,) = kl(model, x, "act2", found.direction[None])
        assert ours > margin * ablate_units(model, x, "act2").kl_ablated_original.max()
        assert ours > margin * kl(model, x, "act2", random).max()
