from __future__ import annotations

import dataclasses
import math
import sys

import pytest
import torch

from modfast.data import NAMES, load, physics, physics_grids
from modfast.models import MLP


@pytest.fixture
def mnist(mnist_root):
    return load("mnist", root=mnist_root)


@pytest.fixture
def digits():
    pytest.importorskip("sklearn.datasets", exc_type=ImportError)
    return load("digits")


def test_digits_are_all_there_once(digits):
    from sklearn.datasets import load_digits

    assert digits.train_x.shape == (1437, 1, 8, 8)
    assert digits.test_x.shape == (360, 1, 8, 8)
    assert digits.train_x.dtype == torch.float32
    assert digits.train_y.dtype == digits.test_y.dtype == torch.int64
    assert digits.n_outputs == 10
    assert digits.is_classification

    # Back to pixels 0 to 16: the smallest is 0 and the largest 16, whatever the scaling was.
    x, y = torch.cat([digits.train_x, digits.test_x]), torch.cat([digits.train_y, digits.test_y])
    pixels = (x - x.min()) / (x.max() - x.min()) * 16
    ours = sorted(zip(pixels.flatten(1).round().int().tolist(), y.tolist(), strict=True))
    bunch = load_digits()
    assert ours == sorted(zip(bunch.data.astype(int).tolist(), bunch.target.tolist(), strict=True))


def test_digits_are_standardized_by_their_training_half(digits):
    assert digits.train_x.mean().item() == pytest.approx(0, abs=1e-5)
    assert digits.train_x.std().item() == pytest.approx(1, abs=1e-5)
    assert digits.test_x.mean().item() == pytest.approx(0, abs=0.02)
    assert digits.train_y.unique().tolist() == digits.test_y.unique().tolist() == list(range(10))


@pytest.mark.parametrize("name", ["digits", "physics"])
def test_loading_is_deterministic_and_leaves_the_global_generator_alone(name):
    if name == "digits":
        pytest.importorskip("sklearn.datasets", exc_type=ImportError)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = load(name)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second = load(name)
    assert torch.equal(first.train_x, second.train_x)
    assert torch.equal(first.test_y, second.test_y)


def test_a_dataset_is_frozen_and_prints_short(digits):
    assert digits.train == (digits.train_x, digits.train_y)
    assert digits.test == (digits.test_x, digits.test_y)
    assert repr(digits) == "Dataset(name='digits', n_outputs=10)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        digits.name = "other"


def test_mnist(mnist):
    assert mnist.train_x.shape == (60000, 1, 28, 28)
    assert mnist.test_x.shape == (10000, 1, 28, 28)
    assert mnist.train_x.dtype == torch.float32
    assert mnist.train_y.dtype == torch.int64
    assert mnist.n_outputs == 10
    assert mnist.is_classification
    # 0.1307 and 0.3081 are the training pixels' own mean and deviation, to four digits.
    assert mnist.train_x.mean(dtype=torch.float64).item() == pytest.approx(0, abs=2e-4)
    assert mnist.train_x.std().item() == pytest.approx(1, abs=2e-4)
    assert mnist.train_x.min().item() == pytest.approx(-0.1307 / 0.3081, rel=1e-5)
    # The test set's label counts, as published with it.
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert mnist.test_y.bincount().tolist() == counts


@pytest.mark.usefixtures("torchvision")
def test_mnist_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="download=True") as caught:
        load("mnist", root=tmp_path)
    assert f"root={str(tmp_path)!r}" in str(caught.value)


def test_mnist_without_a_root():
    with pytest.raises(ValueError, match=r"root=None.*root=\"data\""):
        load("mnist")


def test_missing_torchvision_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "modfast\[train\]"'):
        load("mnist", root=tmp_path)


def test_broken_torchvision_names_the_extra(monkeypatch, tmp_path):
    # What PyPI's torchvision does beside a torch that it was not built for.
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('torchvision::nms does not exist')")
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r'nms does not exist.*"modfast\[train\]"'):
        load("mnist", root=tmp_path)


def test_missing_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "modfast\[analysis\]"'):
        load("digits")


@pytest.mark.parametrize("name", ["cifar", "", "MNIST", None])
def test_unknown_name(name):
    with pytest.raises(ValueError, match="must be one of") as caught:
        load(name)
    assert f"name must be one of 'digits', 'mnist', 'physics', got {name!r}" in str(caught.value)
    assert all(repr(known) in str(caught.value) for known in NAMES)


def test_physics_is_two_independent_products():
    x, y = physics(100_000)
    assert x.shape == (100_000, 4)
    assert y.shape == (100_000, 2)
    assert x.dtype == y.dtype == torch.float32
    torch.testing.assert_close(x[:, 0] * x[:, 1], y[:, 0], atol=1e-6, rtol=0)
    torch.testing.assert_close(x[:, 2] * x[:, 3], y[:, 1], atol=1e-6, rtol=0)
    between_tasks = torch.corrcoef(x.T)[:2, 2:]
    assert between_tasks.abs().max() < 0.02


def test_physics_has_the_distribution_of_its_formula():
    x, y = physics(100_000)
    assert x.min() >= 0
    assert x.max() <= 2
    # E[u/2 + 1/2] = 3/4 and E[y] E[1 / (u/2 + 1/2)] = ln 2; a fair swap shows the mean of the two.
    torch.testing.assert_close(
        x.mean(0), torch.full((4,), (0.75 + math.log(2)) / 2), atol=5e-3, rtol=0
    )
    torch.testing.assert_close(y.mean(0), torch.full((2,), 0.5), atol=5e-3, rtol=0)
    torch.testing.assert_close(y.var(0), torch.full((2,), 1 / 12), atol=2e-3, rtol=0)


def test_physics_at_the_largest_eps_multiplies_by_one():
    x, y = physics(1000, eps=1.0)
    for task in range(2):
        expected = torch.stack([y[:, task], torch.ones(1000)], dim=1).sort(dim=1).values
        assert torch.equal(x[:, 2 * task : 2 * task + 2].sort(dim=1).values, expected)


def test_physics_seeds():
    assert torch.equal(physics(50, seed=3)[0], physics(50, seed=3)[0])
    assert not torch.equal(physics(50, seed=3)[0], physics(50, seed=4)[0])


def test_physics_data_set_is_learned():
    data = load("physics")
    assert data.train_x.shape == (8000, 4)
    assert data.test_x.shape == (2000, 4)
    assert data.n_outputs == 2
    assert not data.is_classification
    torch.manual_seed(0)
    model = MLP([4, 16, 16, 2])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x, y = data.train_x[:1000], data.train_y[:1000]
    for _ in range(300):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    loss = torch.nn.functional.mse_loss(model(data.test_x), data.test_y).item()
    assert loss < 4e-3  # against the targets' variance of 1/12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n must be at least 1, got 0"),
        ({"n": -5}, "n must be at least 1, got -5"),
        ({"n": 10, "eps": 0.0}, "eps must lie in .*got 0.0"),
        ({"n": 10, "eps": 1.5}, "eps must lie in .*got 1.5"),
        ({"n": 10, "eps": float("nan")}, "eps must be finite, got nan"),
        ({"n": 10, "seed": 2**64}, "seed must be from -2.63 to 2.64 - 1, got 18446744073709551616"),
    ],
)
def test_physics_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        physics(**arguments)


def test_physics_grids_vary_one_task_at_a_time() -> None:
    grids = physics_grids()
    assert grids.shape == (2, 10_000, 4)
    for task, grid in enumerate(grids):
        varied = slice(2 * task, 2 * task + 2)
        still = [i for i in range(4) if i not in (2 * task, 2 * task + 1)]
        assert (grid[:, still] == 0.5).all()
        assert len(grid[:, varied].unique(dim=0)) == 10_000
        assert grid.min() == 0
        assert grid.max() == 1
    assert (physics_grids(3, fixed=0.25)[0, :, 2:] == 0.25).all()
    with pytest.raises(ValueError, match="points must be at least 1, got 0"):
        physics_grids(0)
    with pytest.raises(ValueError, match="fixed must be finite, got nan"):
        physics_grids(2, fixed=float("nan"))
