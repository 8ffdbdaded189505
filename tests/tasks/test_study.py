from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import modfast
from modfast import TaskStudy, compare_tasks, distinct_gradients, task_gradients
from modfast.models import MLP

SITES = ["input", "act1", "act2"]


@pytest.fixture(scope="module")
def study() -> TaskStudy:
    """The notebook's hundred networks."""
    if not modfast.has_ops():
        pytest.skip("the compiled library is not built; this takes minutes without")
    return TaskStudy.train(modfast.data.load("physics").train, progress=False)


def single(seed: int, sizes: tuple[int, ...], data: tuple[Tensor, Tensor], epochs: int) -> MLP:
    torch.manual_seed(seed)
    model = MLP(sizes).to(data[0])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(epochs):
        optimizer.zero_grad()
        functional.mse_loss(model(data[0]), data[1]).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("sizes", [(4, 16, 16, 2), (4, 5, 2), (4, 7, 6, 5, 2)])
def test_each_network_is_a_single_training(sizes: tuple[int, ...]) -> None:
    x, y = (t.double() for t in modfast.data.physics(500))
    state = torch.get_rng_state()
    study = TaskStudy.train((x, y), sizes, n_models=4, epochs=120, seed=5, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(study) == 4
    for i in range(4):
        model = single(5 + i, sizes, (x, y), 120)
        ours = study.model(i)
        for p, q in zip(ours.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(study.outputs(x)[i], ours(x), rtol=1e-10, atol=1e-12)
        loss = functional.mse_loss(ours(x), y).detach()
        torch.testing.assert_close(study.validate((x, y))[i], loss)
    assert study.losses.shape == (4, 120)


@pytest.mark.slow
def test_reaches_the_notebooks_loss(study: TaskStudy) -> None:
    losses = study.validate(modfast.data.load("physics").test)
    assert losses.shape == (100,)
    assert 3e-4 < losses.median() < 5e-4
    assert losses.max() < 5e-3
    assert (study.losses[:, -1] < study.losses[:, 0] / 20).all()


@pytest.mark.slow
def test_capture_rises_towards_the_output(study: TaskStudy) -> None:
    found = study.compare(modfast.data.physics_grids(40), progress=False)
    assert found.sites == ("input", "act1", "act2")
    mean = found.capture.mean(0)
    assert mean[0] < mean[1] < mean[2]
    assert mean[2] > 0.99
    assert 0.83 < found.capture.min() <= found.capture.max() <= 1
    # The last layer's directions are the most nearly orthogonal, and means are nearly everywhere.
    overlap = found.overlap[..., 0, 1].mean(0)
    assert overlap[2] < 0.6 * overlap[:2].min()
    assert found.cosine[..., 0, 1].mean(0).abs().max() < 0.05
    assert (found.n_distinct[:, 2] == 1).all()
    assert (found.n_distinct[:, 0].double().mean(0) > found.n_distinct[:, 1].double().mean(0)).all()


@pytest.mark.slow
def test_comparisons_are_what_their_parts_are(study: TaskStudy) -> None:
    model, grids = study.model(3), modfast.data.physics_grids(30)
    found = compare_tasks(model, grids, SITES)
    by_task = [task_gradients(model, grid, SITES, [task]) for task, grid in enumerate(grids)]
    for site in SITES:
        a, b = (each[site].distinct(task) for task, each in enumerate(by_task))
        result, directions = found[site], torch.cat([a.directions, b.directions])
        acts = [each[site].activations for each in by_task]
        torch.testing.assert_close(
            result.variances, modfast.variance_explained(directions, acts), rtol=1e-9, atol=1e-15
        )
        assert torch.equal(result.norms, torch.cat([a.norms, b.norms]))
        wanted = modfast.task_capture(result.variances, result.norms)
        assert torch.equal(result.capture, wanted)
        similarity = modfast.task_similarity(a, b)
        assert torch.equal(result.cosine[0, 1], similarity.cosine)
        assert torch.equal(result.overlap[0, 1], similarity.matrix.abs().mean())
        other_way = modfast.task_similarity(b, a).matrix
        assert torch.equal(result.similarity(1, 0).matrix, other_way)
        # Two products of matrices, each with a rounding of its own.
        torch.testing.assert_close(other_way, similarity.matrix.T, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(result.cosine, result.cosine.T)
    some = study.compare(grids, ["act1"], progress=False)
    assert torch.equal(some.capture[3, 0], found["act1"].capture)
    # After the last activation a task's only gradient is its row of the last weight.
    rows = distinct_gradients(model.fc3.weight).directions
    torch.testing.assert_close(
        torch.cat([each.directions for each in found["act2"].distinct]), rows
    )


def test_three_tasks_and_convolutions() -> None:
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))
    inputs = [torch.randn(10 + i, 1, 6, 6) for i in range(3)]
    found = compare_tasks(conv, inputs, ["0", "1"], pool=True)
    assert found["1"].variances.shape == (3, 3)
    assert found["1"].cosine.shape == (3, 3)
    assert 1 / 3 <= found["0"].capture <= 1


def test_bad_input() -> None:
    x, y = modfast.data.physics(50)

    def train(data: Any = (x, y), **options: Any) -> TaskStudy:
        return TaskStudy.train(data, **{"n_models": 2, "epochs": 3, "progress": False, **options})

    with pytest.raises(ValueError, match="n_models must be at least 1, got 0"):
        train(n_models=0)
    with pytest.raises(TypeError, match="epochs must be an integer, got 1.5"):
        train(epochs=1.5)
    with pytest.raises(TypeError, match="seed must be an integer, got 0.5"):
        train(seed=0.5)
    with pytest.raises(TypeError, match="data must be a pair of tensors"):
        train(x)
    with pytest.raises(ValueError, match=r"data\[1\] must be finite, got 100 of 100"):
        train((x, y * torch.nan))
    with pytest.raises(
        ValueError, match=r"data must be .* and \[n, 3\], as sizes.* got .* and \[50, 2\]"
    ):
        train(sizes=(4, 8, 3))
    with pytest.raises(ValueError, match="sizes=.*at least two widths"):
        train(sizes=(4,))
    with pytest.raises(ValueError, match="lr must be at least 0.*got -1"):
        train(lr=-1.0)
    with pytest.raises(FloatingPointError, match="the loss of network 0 became NaN or infinite"):
        train((x * 1e30, y * 1e30))
    study, grids = train(), modfast.data.physics_grids(5)
    with pytest.raises(IndexError):
        study.model(2)
    with pytest.raises(ValueError, match=r"x must have shape \[n, 4\], got \[50, 2\]"):
        study.outputs(y)
    with pytest.raises(TypeError, match="data.0. must be torch.float32, as the networks"):
        study.validate((x.double(), y))
    with pytest.raises(ValueError, match=r"data\[1\] must have shape \[n, 2\], got \[50, 4\]"):
        study.validate((x, x))
    with pytest.raises(ValueError, match="as many targets as samples, got 50 and 49"):
        study.validate((x, y[1:]))
    with pytest.raises(ValueError, match="inputs_by_task must hold the inputs of at least two"):
        study.compare(grids[:1])
    with pytest.raises(ValueError, match="sites='act3': no such module"):
        study.compare(grids, ["act3"])
    with pytest.raises(ValueError, match="tasks must be 2 outputs, .*got 1"):
        compare_tasks(study.model(0), grids, "act1", [0])
