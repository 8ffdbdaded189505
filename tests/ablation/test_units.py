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

PATHS = ["fused", "split", "hooks"]
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
    result = ablate_units(model, x, site, value=0.3, path=path)
    oracle.assert_equal(result, expected, TOLERANCE[dtype])
    assert result.labels[1] == "unit 1"
    assert result.n_samples == 50
    each = ablate_units(model, x, site, value=0.3, path=path, per_sample=True)
    assert each.kl_ablated_original.shape == (50, n_units)
    oracle.assert_equal(each, expected, TOLERANCE[dtype])
    torch.testing.assert_close(each.kl_ablated_original.sum(0), result.kl_ablated_original)
    torch.testing.assert_close(each.entropy_difference.sum(0), result.entropy_difference)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("site", ["act1", "act2"])
def test_a_network_trained_on_mnist(mnist_root: Path, path: str, site: str) -> None:
    data = modfast.data.load("mnist", mnist_root)
    torch.manual_seed(0)
    model, x = MLP([784, 128, 128, 10]), data.test_x[:64]
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    modfast.fit(model, data.train, 1, optimizer=optimizer, seed=0, progress=False)
    expected = unit_terms(copy.deepcopy(model).double(), x.double(), site, range(128))
    oracle.assert_equal(ablate_units(model, x, site, path=path), expected, 1e-5)
    exact = ablate_units(model.double(), x.double(), site, path=path)
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
        result = ablate_units(model, x, site, path=path)
        oracle.assert_equal(result, torch.stack(expected), 1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_values_and_chosen_units(model: MLP, path: str) -> None:
    x, _ = example()
    mean = modfast.capture(model, x, "act1")["act1"].mean(0)
    for value, wanted in [("mean", mean), (mean + 1, mean + 1)]:
        expected = unit_terms(model, x, "act1", range(9), wanted)
        result = ablate_units(model, x, "act1", value=value, path=path)
        oracle.assert_equal(result, expected, 1e-12)
        some = ablate_units(model, x, "act1", units=[4, 2, 2], value=value, path=path)
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
    result = ablate_directions(model, x, site, scaled, path=path)
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


@pytest.mark.parametrize("path", ["split", "hooks", None])
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
        result = ablate_groups(model, x, "act2", given, keep, path=path)
        oracle.assert_equal(result, torch.stack(expected), 1e-12)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("per_sample", [False, True])
def test_targets(model: MLP, path: str, per_sample: bool) -> None:
    x, y = example()
    y[y == 4] = 3  # no samples of class 4
    result = ablate_units(model, x, "act1", targets=y, path=path, per_sample=per_sample)
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
        result = ablate_units(model, x.float(), site, targets=y, path=path)
        for measure in (*oracle.MEASURES, "loss"):
            assert getattr(result, measure).isfinite().all()
        assert (result.kl_ablated_original >= 0).all()
        wanted = ablate_units(exact, x, site, path="hooks").kl_ablated_original
        torch.testing.assert_close(result.kl_ablated_original, wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("path", PATHS)
def test_a_stream_gives_what_one_batch_does(model: MLP, path: str) -> None:
    x, y = example()
    loader = DataLoader(TensorDataset(x, y), batch_size=17)
    for value in (0.0, "mean"):
        streamed = ablate_units(model, loader, "act1", value=value, path=path)
        whole = ablate_units(model, x, "act1", value=value, targets=y, path=path)
        for measure in (*oracle.MEASURES, "loss", "accuracy", "class_accuracy"):
            torch.testing.assert_close(getattr(streamed, measure), getattr(whole, measure))
    each = ablate_units(model, loader, "act1", path=path, per_sample=True)
    assert each.entropy_difference.shape == (50, 9)
    assert each.accuracy is not None
    assert each.accuracy.shape == (50, 9)
    bare = ablate_units(model, [x[:20], x[20:]], "act1", path=path)
    torch.testing.assert_close(bare.entropy_difference, each.entropy_difference.sum(0))
    assert bare.loss is None


@pytest.mark.parametrize("path", PATHS)
def test_little_memory_gives_the_same(model: MLP, path: str) -> None:
    x, y = example()
    whole = ablate_units(model, x, "act1", targets=y, path=path)
    little = ablate_units(model, x, "act1", targets=y, path=path, max_memory=10_000)
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
    each = ablate_units(model, x, site, value=value, targets=y, path=path, per_sample=True)
    oracle.assert_equal(each, expected, TOLERANCE[dtype])
    for memory in (None, 1, 20_000):
        found = ablate_units(
            model, x, site, value=value, targets=y, path=path, max_memory=memory, units=range(width)
        )
        oracle.assert_equal(found, expected, TOLERANCE[dtype])
        assert found.loss is not None
        assert each.loss is not None
        torch.testing.assert_close(found.loss, each.loss.sum(0), rtol=TOLERANCE[dtype], atol=0)
        torch.testing.assert_close(found.accuracy, each.accuracy.mean(0))
        assert torch.equal(found.class_accuracy, each.class_accuracy)
    if site != "fc1" or path != "fused":
        directions = ablate_directions(model, x, site, 5 * torch.eye(width), path=path)
        zeroed = ablate_units(model, x, site, path=path)
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
            ablate_units(model, x, "act1", path=path, max_memory=cap)
        # The prefix's own activations come on top.
        assert cap // 4 < memory.peak < 1.5 * cap


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.fc = nn.Linear(6 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.max_pool2d(self.act(self.norm(self.conv1(x))), 2)
        h = h + functional.relu(self.conv2(h))
        return self.fc(h.view(h.size(0), -1))


class Block(nn.Module):
    """A transformer's block, with keyword inputs and a dictionary as output."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.up, self.act, self.down = nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)
        self.head = nn.Linear(8, 7)

    def forward(self, tokens: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        h = self.embed(tokens) * scale
        h = h + self.attention(h, h, h)[0]
        h = h + self.down(self.act(self.up(self.norm(h))))
        return {"logits": self.head(h), "hidden": h}


class Branching(nn.Module):
    """Its course hangs on values, so that it can be neither traced nor batched."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        kept = self.fc1(x)
        h = self.fc2(kept)
        if h.sum() > 0:
            h = -h
        kept += h  # changes what fc1 returned
        return self.fc3(kept)


def channels(model: nn.Module, x: Any, site: str, n: int, output: Any = lambda o: o) -> Tensor:
    before = oracle.run(model, x, output=output)

    def zero(i: int) -> Any:
        def apply(a: Tensor) -> Tensor:
            a.select(1 if a.dim() == 4 else -1, i).zero_()
            return a

        return apply

    return torch.stack(
        [oracle.terms(before, oracle.run(model, x, site, zero(i), output=output)) for i in range(n)]
    )


@pytest.mark.parametrize("path", ["split", "hooks"])
@pytest.mark.parametrize("site", ["conv1", "norm", "act", "conv2"])
def test_channels_of_a_convolution(path: str, site: str) -> None:
    torch.manual_seed(0)
    model, x = Cnn().double(), torch.randn(7, 1, 8, 8).double()
    result = ablate_units(model, x, site, path=path)
    oracle.assert_equal(result, channels(model, x, site, 6), 1e-12)


def test_graph_nodes_are_sites() -> None:
    torch.manual_seed(0)
    model, x = Cnn().double(), torch.randn(7, 1, 8, 8).double()
    found = ablate_units(model, x, "max_pool2d").kl_ablated_original
    # Zeroed channels stay zero where they are pooled.
    wanted = ablate_units(model, x, "act").kl_ablated_original
    torch.testing.assert_close(found, wanted)
    assert ablate_units(model, x, "add").labels[-1] == "unit 5"
    with pytest.raises(ValueError, match="no such module or graph node; did you mean: 'add'"):
        ablate_units(model, x, "add_")


@pytest.mark.parametrize("path", ["split", "hooks"])
@pytest.mark.parametrize("site", ["act", "up", "norm", "embed"])
def test_tokens_and_keyword_inputs(path: str, site: str) -> None:
    torch.manual_seed(0)
    model = Block().double()
    tokens = torch.randint(0, 11, (3, 4))

    def output(found: Any) -> Tensor:
        return found["logits"]

    inputs = {"tokens": tokens}
    n = 16 if site in ("act", "up") else 8
    result = ablate_units(model, inputs, site, output=output, path=path)
    assert result.n_samples == 12
    oracle.assert_equal(result, channels(model, inputs, site, n, output), 1e-12)
    same = ablate_units(model, (tokens,), site, output=output, path=path, max_memory=1)
    torch.testing.assert_close(same.entropy_difference, result.entropy_difference)
    labels = torch.randint(0, 7, (3, 4))
    found = ablate_units(
        model, inputs, site, targets=labels, output=output, path=path
    ).class_accuracy
    assert found is not None
    assert found.shape == (n, 7)


@pytest.mark.parametrize("path", ["hooks", None])
@pytest.mark.parametrize("site", ["fc1", "fc2"])
def test_models_that_cannot_be_traced(path: str | None, site: str) -> None:
    torch.manual_seed(0)
    model, x = Branching().double(), torch.randn(9, 12).double()
    result = ablate_units(model, x, site, path=path)
    oracle.assert_equal(result, channels(model, x, site, 8), 1e-12)
    with pytest.raises(ValueError, match="path='split': the model cannot be split at 'fc1'"):
        ablate_units(model, x, "fc1", path="split")


def test_what_comes_before_the_site_runs_once() -> None:
    torch.manual_seed(0)
    model, x = Cnn(), torch.randn(7, 1, 8, 8)
    calls: list[str] = []
    model.conv1.register_forward_pre_hook(lambda *_: calls.append("conv1"))
    ablate_units(model, x, "conv2", path="split", max_memory=1)
    # Once to compare the traced model with the model, which runs both.
    assert len(calls) <= 3
    calls.clear()
    ablate_units(model, x, "conv2", path="split", max_memory=1)
    assert len(calls) == 1


class Residual(nn.Module):
    """A block whose inner activations go two ways, of which one is a linear layer."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 6)
        self.out, self.how = nn.Linear(6, 3), how

    def forward(self, x: Tensor) -> Tensor:
        inner = self.act(self.up(x))
        down = self.down(inner)
        if self.how == "in place":
            down = down.relu_()
        if self.how == "twice":
            down = down + self.down(inner).tanh()
        return self.out(inner * down)


@pytest.mark.parametrize("path", ["split", "hooks"])
@pytest.mark.parametrize("how", ["once", "twice", "in place"])
def test_a_linear_layer_is_not_all_that_follows(path: str, how: str) -> None:
    torch.manual_seed(0)
    model, x = Residual(how).double(), torch.randn(3, 5, 4).double()
    result = ablate_units(model, x, "act", path=path)
    oracle.assert_equal(result, channels(model, x, "act", 6), 1e-12)
    directions = torch.eye(6).double()
    for changes in (ablate_directions, ablate_groups):
        each = directions if changes is ablate_directions else directions.bool()
        found = changes(model, x, "act", each, path=path)
        torch.testing.assert_close(found.kl_ablated_original, result.kl_ablated_original)


@pytest.mark.parametrize("path", ["split", "hooks", None])
def test_gpt2(path: str | None) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=2,
        n_embd=16,
        n_head=2,
        n_positions=8,
        vocab_size=23,
        use_cache=False,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).double().train()
    inputs = {"input_ids": torch.randint(0, 23, (3, 8))}

    def last(found: Any) -> Tensor:
        return found.logits[:, -1]

    for site in ("transformer.h.1.mlp.act", "transformer.h.0.mlp.c_fc"):
        if path == "split":
            continue  # not traced by torch.fx
        result = ablate_units(model, inputs, site, output=last, path=path)
        oracle.assert_equal(result, channels(model, inputs, site, 64, last), 1e-12)
    assert model.training
