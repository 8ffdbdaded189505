from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from ablation import oracle
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import modfast
from modfast import ablate_directions, ablate_groups, ablate_units
from modfast.models import MLP

PATHS = ["fused", "replay", "model"]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def example(n: int = 50) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 12, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 5, (n,), generator=generator)


@pytest.fixture
def model() -> MLP:
    torch.manual_seed(0)
    model = MLP([12, 9, 8, 5]).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 3
    return model


def unit_terms(model: nn.Module, x: Any, site: str, units: range, value: Any = 0.0) -> Tensor:
    def change(i: int) -> Any:
        def apply(a: Tensor) -> Tensor:
            a[:, i] = value if isinstance(value, float) else value[i]
            return a

        return apply

    before = oracle.run(model, x)
    return torch.stack([oracle.terms(before, oracle.run(model, x, site, change(i))) for i in units])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("site", "n_units"), [("act2", 8), ("act1", 9), ("fc2", 8), ("fc1", 9)])
def test_units_equal_the_notebooks_way(
    model: MLP, path: str, dtype: torch.dtype, site: str, n_units: int
) -> None:
    model, x = model.to(dtype), example()[0].to(dtype)
    # Float32's own rounding is in the oracle too, so that it is computed in float64.
    expected = unit_terms(copy.deepcopy(model).double(), x.double(), site, range(n_units), 0.3)
    result = ablate_units(model, x, site, value=0.3, backend=path)
    oracle.assert_equal(result, expected, TOLERANCE[dtype])
    assert result.labels[1] == "unit 1"
    assert result.n_samples == 50
    each = ablate_units(model, x, site, value=0.3, backend=path, per_sample=True)
    assert each.kl_ablated_original.shape == (50, n_units)
    oracle.assert_equal(each, expected, TOLERANCE[dtype])
    torch.testing.assert_close(each.kl_ablated_original.sum(0), result.kl_ablated_original)
    torch.testing.assert_close(each.entropy_difference.sum(0), result.entropy_difference)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("site", ["act1", "act2"])
@pytest.mark.slow
def test_a_network_trained_on_mnist(mnist_root: Path, path: str, site: str) -> None:
    data = modfast.data.load("mnist", mnist_root)
    torch.manual_seed(0)
    model, x = MLP([784, 128, 128, 10]), data.test_x[:64]
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    modfast.fit(model, data.train, 1, optimizer=optimizer, seed=0, progress=False)
    expected = unit_terms(copy.deepcopy(model).double(), x.double(), site, range(128))
    oracle.assert_equal(ablate_units(model, x, site, backend=path), expected, 1e-5)
    exact = ablate_units(model.double(), x.double(), site, backend=path)
    oracle.assert_equal(exact, expected, 1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_zero_is_cloning_and_zeroing_weights(model: MLP, path: str) -> None:
    x, _ = example()
    expected = []
    for i in range(8):
        clone = copy.deepcopy(model)
        with torch.no_grad():
            clone.fc2.weight[i] = 0
            clone.fc2.bias[i] = 0
        expected.append(oracle.terms(oracle.run(model, x), oracle.run(clone, x)))
    for site in ("act2", "fc2"):
        result = ablate_units(model, x, site, backend=path)
        oracle.assert_equal(result, torch.stack(expected), 1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_values_and_chosen_units(model: MLP, path: str) -> None:
    x, _ = example()
    mean = modfast.capture(model, x, "act1")["act1"].mean(0)
    for value, wanted in [("mean", mean), (mean + 1, mean + 1)]:
        expected = unit_terms(model, x, "act1", range(9), wanted)
        result = ablate_units(model, x, "act1", value=value, backend=path)
        oracle.assert_equal(result, expected, 1e-12)
        some = ablate_units(model, x, "act1", units=[4, 2, 2], value=value, backend=path)
        assert torch.equal(some.kl_ablated_original, result.kl_ablated_original[[4, 2, 2]])
        assert some.labels == ("unit 4", "unit 2", "unit 2")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("site", ["act1", "act2", "fc2"])
def test_directions(model: MLP, path: str, site: str) -> None:
    if (path, site) == ("fused", "fc2"):
        pytest.skip("an activation follows")
    x, _ = example()
    width = 9 if site == "act1" else 8
    directions = torch.randn(20, width, dtype=torch.float64)
    before = oracle.run(model, x)
    expected = []
    for v in directions:
        unit = v / v.norm()
        after = oracle.run(model, x, site, lambda a, u=unit: a - (a @ u)[:, None] * u)
        expected.append(oracle.terms(before, after))
    # Of any length, also where squares would under- or overflow.
    scaled = directions * torch.logspace(-250, 250, 20, dtype=torch.float64)[:, None]
    result = ablate_directions(model, x, site, scaled, backend=path)
    oracle.assert_equal(result, torch.stack(expected), 1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_directions_of_another_dtype(model: MLP, dtype: torch.dtype) -> None:
    model, x = model.float(), example()[0].float()
    directions = torch.randn(20, 8).half()
    wanted = ablate_directions(model, x, "act2", directions.float())
    # Too small or large for the site's dtype, as long as their own holds them.
    scale = 1.0 if dtype == torch.float16 else torch.logspace(-200, 200, 20, dtype=dtype)[:, None]
    found = ablate_directions(model, x, "act2", directions.to(dtype) * scale)
    oracle_scale = float(wanted.kl_ablated_original.max())
    torch.testing.assert_close(
        found.kl_ablated_original,
        wanted.kl_ablated_original,
        rtol=1e-5,
        atol=1e-5 * oracle_scale,
    )


@pytest.mark.parametrize("path", ["replay", "model", None])
@pytest.mark.parametrize("keep", [False, True])
def test_groups(model: MLP, path: str | None, keep: bool) -> None:
    x, _ = example()
    groups = [[0, 3, 4], [7], [1, 2]]
    mask = torch.zeros(3, 8, dtype=torch.bool)
    for i, group in enumerate(groups):
        mask[i, group] = True
    before = oracle.run(model, x)
    off = ~mask if keep else mask
    expected = [
        oracle.terms(before, oracle.run(model, x, "act2", lambda a, m=m: a * ~m)) for m in off
    ]
    for given in (groups, mask):
        result = ablate_groups(model, x, "act2", given, keep, backend=path)
        oracle.assert_equal(result, torch.stack(expected), 1e-12)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("per_sample", [False, True])
def test_targets(model: MLP, path: str, per_sample: bool) -> None:
    x, y = example()
    y[y == 4] = 3  # no samples of class 4
    result = ablate_units(model, x, "act1", targets=y, backend=path, per_sample=per_sample)
    assert result.loss is not None
    assert result.accuracy is not None
    assert result.class_accuracy is not None
    for i in range(9):
        after = oracle.run(model, x, "act1", lambda a, i=i: a.index_fill(1, torch.tensor(i), 0))
        loss = functional.cross_entropy(after, y, reduction="none")
        right = (after.argmax(1) == y).double()
        if per_sample:
            torch.testing.assert_close(result.loss[:, i], loss)
            assert torch.equal(result.accuracy[:, i], right)
        else:
            torch.testing.assert_close(result.loss[i], loss.sum())
            torch.testing.assert_close(result.accuracy[i], right.mean())
        for label in range(4):
            share = right[y == label].mean()
            torch.testing.assert_close(result.class_accuracy[i, label], share)
    assert result.class_accuracy[:, 4].isnan().all()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("factor", [1e2, 1e4, 1e6])
def test_saturated_logits_give_finite_divergences(path: str, factor: float) -> None:
    torch.manual_seed(0)
    model = MLP([12, 9, 8, 5])
    with torch.no_grad():
        model.fc3.weight *= factor
        model.fc3.bias *= factor
    x, y = example()
    exact = copy.deepcopy(model).double()
    for site in ("act2", "act1"):
        result = ablate_units(model, x.float(), site, targets=y, backend=path)
        for measure in (*oracle.MEASURES, "loss"):
            assert getattr(result, measure).isfinite().all()
        assert (result.kl_ablated_original >= 0).all()
        wanted = ablate_units(exact, x, site, backend="model").kl_ablated_original
        torch.testing.assert_close(result.kl_ablated_original, wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("path", PATHS)
def test_a_stream_gives_what_one_batch_does(model: MLP, path: str) -> None:
    x, y = example()
    loader = DataLoader(TensorDataset(x, y), batch_size=17)
    for value in (0.0, "mean"):
        streamed = ablate_units(model, loader, "act1", value=value, backend=path)
        whole = ablate_units(model, x, "act1", value=value, targets=y, backend=path)
        for measure in (*oracle.MEASURES, "loss", "accuracy", "class_accuracy"):
            torch.testing.assert_close(getattr(streamed, measure), getattr(whole, measure))
    each = ablate_units(model, loader, "act1", backend=path, per_sample=True)
    assert each.entropy_difference.shape == (50, 9)
    assert each.accuracy is not None
    assert each.accuracy.shape == (50, 9)
    bare = ablate_units(model, [x[:20], x[20:]], "act1", backend=path)
    torch.testing.assert_close(bare.entropy_difference, each.entropy_difference.sum(0))
    assert bare.loss is None


@pytest.mark.parametrize("path", PATHS)
def test_little_memory_gives_the_same(model: MLP, path: str) -> None:
    x, y = example()
    whole = ablate_units(model, x, "act1", targets=y, backend=path)
    little = ablate_units(model, x, "act1", targets=y, backend=path, max_memory=10_000)
    assert whole.class_accuracy is not None
    assert little.class_accuracy is not None
    torch.testing.assert_close(whole.kl_ablated_original, little.kl_ablated_original)
    assert torch.equal(whole.class_accuracy, little.class_accuracy)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("site", ["act1", "fc1", "act2", "act3"])
@pytest.mark.parametrize("value", [0.0, 0.3])
def test_chains_of_many_layers(dtype: torch.dtype, path: str, site: str, value: float) -> None:
    torch.manual_seed(0)
    model, (x, y) = MLP([12, 9, 8, 7, 6, 5]).double(), example()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 3
    model.act3 = nn.Tanh()
    width = model.get_submodule(site.replace("act", "fc")).out_features
    # Float32's own rounding of the model is in what the oracle gets.
    model, x = model.to(dtype), x.to(dtype)
    expected = unit_terms(copy.deepcopy(model).double(), x.double(), site, range(width), value)
    each = ablate_units(model, x, site, value=value, targets=y, backend=path, per_sample=True)
    oracle.assert_equal(each, expected, TOLERANCE[dtype])
    for memory in (None, 1, 20_000):
        found = ablate_units(
            model,
            x,
            site,
            value=value,
            targets=y,
            backend=path,
            max_memory=memory,
            units=range(width),
        )
        oracle.assert_equal(found, expected, TOLERANCE[dtype])
        assert found.loss is not None
        assert each.loss is not None
        torch.testing.assert_close(found.loss, each.loss.sum(0), rtol=TOLERANCE[dtype], atol=0)
        torch.testing.assert_close(found.accuracy, each.accuracy.mean(0))
        assert torch.equal(found.class_accuracy, each.class_accuracy)
    if site != "fc1" or path != "fused":
        directions = ablate_directions(model, x, site, 5 * torch.eye(width), backend=path)
        zeroed = ablate_units(model, x, site, backend=path)
        scale = float(zeroed.kl_ablated_original.max())
        torch.testing.assert_close(
            directions.kl_ablated_original,
            zeroed.kl_ablated_original,
            rtol=TOLERANCE[dtype],
            atol=scale * TOLERANCE[dtype],
        )


def test_the_memory_cap_holds() -> None:
    from modfast.ablation.memory import PeakMemory

    model, x = MLP([12, 64, 64, 64, 5]), torch.randn(1000, 12)
    cap = 8 << 20
    for path in PATHS:
        with PeakMemory() as memory:
            ablate_units(model, x, "act1", backend=path, max_memory=cap)
        # The prefix's own activations come on top.
        assert cap // 4 < memory.peak < 1.5 * cap
