"""prune_circuit against brute force with a real restore."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from circuits import oracle
from torch import Tensor, nn
from torch.nn import functional

import modfast
from modfast import Circuit, prune_circuit
from modfast.models import MLP


def trained(model: nn.Module, x: Tensor, y: Tensor, steps: int = 60) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def blobs(
    seed: int, shape: tuple[int, ...], n: int = 90, classes: int = 3
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    centers = torch.randn(classes, *shape, generator=generator)
    return centers[y] + 0.7 * torch.randn(n, *shape, generator=generator), y


def check(circuit: Circuit, wanted: tuple[dict[str, Tensor], list[float]], close: float) -> None:
    masks, path = wanted
    assert list(circuit.mask) == list(masks)
    for name, mask in masks.items():
        assert torch.equal(circuit.mask[name], mask), name
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert (circuit.kept, circuit.total) == (kept, sum(mask.numel() for mask in masks.values()))
    assert 0 < kept < circuit.total
    exact = torch.tensor(path, dtype=torch.float64)
    torch.testing.assert_close(circuit.original_loss, exact[0], rtol=close, atol=close)
    torch.testing.assert_close(circuit.loss_path, exact[1:], rtol=close, atol=close)
    assert torch.equal(circuit.loss, circuit.loss_path[-1])


@pytest.mark.parametrize("path", ["fused", "replay", "model"])
@pytest.mark.parametrize("against", ["running", "original"])
@pytest.mark.parametrize("bias", [True, False])
def test_mlps_in_float64_decide_as_brute_force(path: str, against: str, bias: bool) -> None:
    for seed, sizes in enumerate([[5, 3], [6, 9, 3], [4, 7, 5, 3], [3, 6, 5, 4, 3]]):
        torch.manual_seed(seed)
        x, y = blobs(seed, (sizes[0],))
        model = trained(MLP(sizes, bias=bias), x, y).double()
        layers = [f"fc{i}" for i in range(len(sizes) - 1, 0, -1)]
        wanted = oracle.pruned(model, x.double(), y, layers, 1e-2, against)
        found = prune_circuit(model, x.double(), y, threshold=1e-2, baseline=against, backend=path)
        check(found, wanted, 1e-10)


@pytest.mark.parametrize("path", ["fused", "replay", "model"])
@pytest.mark.parametrize("against", ["running", "original"])
def test_a_gpu_decides_as_the_cpu(path: str, against: str, cuda: torch.device) -> None:
    torch.manual_seed(0)
    x, y = blobs(1, (6,))
    model = trained(MLP([6, 8, 7, 3]), x, y).double()
    options: dict[str, Any] = {"threshold": 1e-2, "against": against, "labels": "all"}
    wanted = prune_circuit(model, x.double(), y, **options)
    found = prune_circuit(model.to(cuda), x.double().to(cuda), y.to(cuda), backend=path, **options)
    for label, circuit in wanted.items():
        assert found[label].loss_path.device.type == "cpu"
        torch.testing.assert_close(found[label].loss_path, circuit.loss_path, rtol=0, atol=1e-10)
        for name, mask in circuit.mask.items():
            assert torch.equal(found[label].mask[name], mask)


@pytest.mark.parametrize("path", ["fused", "replay", "model"])
@pytest.mark.parametrize("order", ["column", "magnitude", "given"])
def test_any_order_of_layers_and_weights(path: str, order: str) -> None:
    torch.manual_seed(0)
    x, y = blobs(1, (6,))
    model = trained(MLP([6, 8, 7, 3]), x, y).double()
    layers = ["fc2", "fc1", "fc3"]
    weights = {name: model.get_submodule(name).weight.detach() for name in layers}
    orders = {
        "column": {
            k: torch.arange(w.numel()).view(w.shape).T.flatten() for k, w in weights.items()
        },
        "magnitude": {k: w.abs().flatten().argsort(stable=True) for k, w in weights.items()},
        "given": {k: torch.randperm(w.numel())[: w.numel() // 2] for k, w in weights.items()},
    }[order]
    wanted = oracle.pruned(model, x.double(), y, layers, 1e-3, orders=orders)
    given: Any = orders if order == "given" else order
    found = prune_circuit(model, x.double(), y, layers, given, threshold=1e-3, backend=path)
    check(found, wanted, 1e-10)
    if order == "given":
        for name, margins in found.margins.items():
            visited = torch.zeros(margins.numel(), dtype=torch.bool)
            visited[orders[name.removesuffix(".weight")]] = True
            assert torch.equal(margins.flatten().isnan(), ~visited)
            assert found.mask[name].flatten()[~visited].all()


class ConvNet(nn.Module):
    """Convolutions, pooling, another activation, and a reshape that a chain cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 3, 3, padding=1, padding_mode="reflect")
        self.norm = nn.BatchNorm2d(3)
        self.conv2 = nn.ConvTranspose2d(3, 2, 2, stride=2, bias=False)
        self.fc1, self.fc2 = nn.Linear(18, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(self.norm(self.conv1(x)).relu_(), 2)
        x = torch.tanh(self.conv2(x))
        return self.fc2(functional.gelu(self.fc1(functional.avg_pool2d(x, 2, 1).flatten(1))))


def test_any_module_decides_as_brute_force() -> None:
    torch.manual_seed(0)
    x, y = blobs(2, (1, 4, 4), n=24)
    model = trained(ConvNet(), x, y, steps=30).eval().double()
    found = prune_circuit(model, x.double(), y, threshold=1e-3)
    layers = ["fc2", "fc1", "conv2", "conv1"]
    check(found, oracle.pruned(model, x.double(), y, layers, 1e-3), 1e-10)


def test_linear_head_of_a_cnn_takes_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)
            self.fc1, self.drop, self.fc2 = nn.Linear(8, 6), nn.Dropout(), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(self.drop(functional.relu(self.fc1(self.conv(x).sigmoid().flatten(1)))))

    torch.manual_seed(0)
    x, y = blobs(3, (1, 4, 4))
    model = trained(Head(), x, y).double()
    layers = ["conv", "fc2", "fc1"]
    wanted = oracle.pruned(model, x.double(), y, layers, 1e-3)
    check(prune_circuit(model, x.double(), y, layers, threshold=1e-3), wanted, 1e-10)
    if modfast.has_ops():
        found = prune_circuit(model, x.double(), y, "fc*", threshold=1e-3, backend="fused")
        assert list(found.mask) == ["fc2.weight", "fc1.weight"]
    with pytest.raises(
        ValueError, match="backend='fused' cannot be taken: layer 'conv' is not followed"
    ):
        prune_circuit(model, x.double(), y, "conv", backend="fused")


def test_transformers_conv1d() -> None:
    transformers = pytest.importorskip("transformers")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c_fc = transformers.pytorch_utils.Conv1D(5, 6)  # 6 inputs, 5 outputs
            self.head = nn.Linear(5, 3)

        def forward(self, x: Tensor, shift: Tensor) -> Tensor:
            return self.head(functional.silu(self.c_fc(x)) + shift)

    torch.manual_seed(0)
    x, y = blobs(4, (6,), n=40)
    model, inputs = Net().double(), {"x": x.double(), "shift": torch.randn(40, 5).double()}
    found = prune_circuit(model, inputs, y, threshold=1e-3)
    check(found, oracle.pruned(model, inputs, y, ["head", "c_fc"], 1e-3), 1e-10)


def test_labels() -> None:
    torch.manual_seed(0)
    x, y = blobs(5, (6,), n=80)
    model = trained(MLP([6, 8, 3]), x, y)
    everything = prune_circuit(model, x, y, labels="all")
    assert list(everything) == [0, 1, 2]
    for label, circuit in everything.items():
        assert circuit.n_samples == int((y == label).sum())
        for other in (
            prune_circuit(model, x, y, labels=label),
            prune_circuit(model, x[y == label], y[y == label]),
            prune_circuit(model, x, y, labels=[2, label] if label != 2 else [2])[label],
        ):
            assert torch.equal(circuit.loss_path, other.loss_path)
            assert all(torch.equal(circuit.mask[name], other.mask[name]) for name in circuit.mask)
    assert list(prune_circuit(model, x, y, labels=[2, 0])) == [2, 0]
    assert prune_circuit(model, x, y, labels=y.numpy()[1]).kept == everything[1].kept
    by_modules = prune_circuit(model.double(), x.double(), y, labels="all", backend="replay")
    fused = prune_circuit(model, x.double(), y, labels="all")
    for label, circuit in fused.items():
        torch.testing.assert_close(circuit.loss_path, by_modules[label].loss_path)


def test_the_notebooks_restore_restores_nothing() -> None:
    # SPEC section 4: `old` is a view of the entry, so that it is 0 when it is written back.
    torch.manual_seed(0)
    x, y = blobs(6, (6,))
    model = trained(MLP([6, 8, 3], bias=False), x, y)
    notebook = copy.deepcopy(model)
    weight, restored = notebook.fc2.weight.data, 0
    with torch.no_grad():
        running = functional.cross_entropy(notebook(x), y)
        for i in range(3):
            for j in range(8):
                old = weight[i, j]
                weight[i, j] = 0
                loss = functional.cross_entropy(notebook(x), y)
                if loss > running + 1e-4:
                    weight[i, j] = old
                    restored += 1
                else:
                    running = loss
    assert restored > 0
    assert not weight.any()  # whatever it meant to keep
    circuit = prune_circuit(model, x, y, "fc2")
    assert circuit.kept > 0
    assert circuit.loss < circuit.original_loss + 24 * 1e-4


def test_the_circuit_alone_has_its_loss() -> None:
    torch.manual_seed(0)
    x, y = blobs(7, (6,))
    model = trained(MLP([6, 8, 8, 3]), x, y)
    circuit = prune_circuit(model, x, y)
    alone = circuit.apply(model)
    torch.testing.assert_close(
        functional.cross_entropy(alone(x).double(), y).detach(), circuit.loss, rtol=0, atol=1e-5
    )
    assert sum(int((alone.get_parameter(name) != 0).sum()) for name in circuit.mask) == circuit.kept
    with pytest.raises(
        ValueError, match=r"model must have the parameter 'fc3.weight'; did you mean"
    ):
        circuit.apply(MLP([6, 8, 3]))
    with pytest.raises(
        ValueError, match=r"model must have 'fc3.weight' of shape \(3, 8\), got \(4, 8\)"
    ):
        circuit.apply(MLP([6, 8, 8, 4]))


def test_save_and_load(tmp_path: Path) -> None:
    x, y = blobs(8, (6,))
    circuit = prune_circuit(MLP([6, 8, 3]), x, y, labels=1, threshold=1e-3, baseline="original")
    circuit.save(tmp_path / "new" / "circuit.pt")
    loaded = Circuit.load(str(tmp_path / "new" / "circuit.pt"))
    for name in ("kept", "total", "threshold", "against", "n_samples"):
        assert getattr(loaded, name) == getattr(circuit, name)
    for name in ("loss", "original_loss", "loss_path"):
        assert torch.equal(getattr(loaded, name), getattr(circuit, name))
    for name in ("mask", "margins"):
        mine, other = getattr(circuit, name), getattr(loaded, name)
        assert list(mine) == list(other)
        assert all(torch.equal(mine[key], other[key]) for key in mine)
    torch.save({"format": 1}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="other.pt' holds no Circuit that modfast saved"):
        Circuit.load(tmp_path / "other.pt")


@pytest.mark.parametrize("path", ["fused", "replay", "model"])
def test_the_model_stays_as_it_was(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = blobs(9, (6,), n=30)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Dropout(), nn.Linear(5, 3)).train()
    model[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def assert_untouched() -> None:
        assert [module.training for module in model] == [True, True, False, True]
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        assert not any("forward" in m.__dict__ for m in model.modules())
        assert all(p.requires_grad and p.grad is None for p in model.parameters())

    prune_circuit(model, x, y, backend=path)
    assert_untouched()
    calls, whole = [], functional.cross_entropy

    def interrupted(*args: Any) -> Tensor:
        calls.append(0)
        if len(calls) > 5:
            raise KeyboardInterrupt
        return whole(*args)

    if path != "fused":
        monkeypatch.setattr(functional, "cross_entropy", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prune_circuit(model, x, y, backend=path)
        assert_untouched()


def test_bad_input() -> None:
    x, y = blobs(10, (6,), n=30)
    model = MLP([6, 8, 3])
    with pytest.raises(ValueError, match="layers='fc9': no such suitable module; did you mean"):
        prune_circuit(model, x, y, "fc9")
    with pytest.raises(TypeError, match="layers=3: must be a name or a sequence of names"):
        prune_circuit(model, x, y, 3)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="order has 'fc9', which is no layer to prune; did you"):
        prune_circuit(model, x, y, "fc2", order={"fc2": torch.arange(3), "fc9": torch.arange(3)})
    with pytest.raises(ValueError, match="order must be one of .*, got 'rows'"):
        prune_circuit(model, x, y, order="rows")
    with pytest.raises(ValueError, match="order must give indices by layer name"):
        prune_circuit(model, x, y, order=torch.arange(3))
    with pytest.raises(ValueError, match="order has no layer 'fc1'"):
        prune_circuit(model, x, y, order={"fc2": torch.arange(3)})
    with pytest.raises(TypeError, match=r"order of 'fc2' must be .* got torch.float32 \[3\]"):
        prune_circuit(model, x, y, "fc2", order=torch.ones(3))
    with pytest.raises(ValueError, match="order of 'fc2' must be from 0 to 23, got 24"):
        prune_circuit(model, x, y, "fc2", order=torch.tensor([24]))
    with pytest.raises(ValueError, match="order of 'fc2' must visit no weight twice"):
        prune_circuit(model, x, y, "fc2", order=torch.tensor([1, 1]))
    with pytest.raises(TypeError, match="order must be a name, indices or a mapping, got int"):
        prune_circuit(model, x, y, order=3)
    with pytest.raises(ValueError, match="baseline must be one of .*, got 'first'"):
        prune_circuit(model, x, y, baseline="first")
    with pytest.raises(ValueError, match="backend must be one of .*, got 'split'"):
        prune_circuit(model, x, y, backend="split")
    with pytest.raises(ValueError, match="threshold must be at least 0, got -0.1"):
        prune_circuit(model, x, y, threshold=-0.1)
    with pytest.raises(ValueError, match="labels must have samples, 7 has none"):
        prune_circuit(model, x, y, labels=7)
    with pytest.raises(ValueError, match="labels must be a label, several, 'all' or None"):
        prune_circuit(model, x, y, labels="each")
    with pytest.raises(ValueError, match="labels must be different labels"):
        prune_circuit(model, x, y, labels=[1, 1])
    for labels in (1.0, [1.0]):
        with pytest.raises(TypeError, match="labels must be an integer, got 1.0"):
            prune_circuit(model, x, y, labels=labels)
    with pytest.raises(TypeError, match="targets must have integer classes, got torch.float64"):
        prune_circuit(model, x, y.double())
    with pytest.raises(ValueError, match="inputs must not be empty"):
        prune_circuit(model, x[:0], y[:0])
    with pytest.raises(ValueError, match="one target per sample, got 30 samples and 20"):
        prune_circuit(model, x, y[:20])
    with pytest.raises(ValueError, match="from 0 to 2"):
        prune_circuit(model, x, y + 1)
    with pytest.raises(ValueError, match="inputs must be finite, got 1 of 180"):
        prune_circuit(
            model, x.index_put((torch.tensor(0), torch.tensor(0)), x.new_tensor(torch.inf)), y
        )
    with pytest.raises(TypeError, match="inputs must be one batch, got a stream"):
        prune_circuit(model, [(x, y)], y)
    tied = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    tied[2].weight = tied[0].weight
    with pytest.raises(ValueError, match="layers=.* parameter of this layer alone, it is 0.weight"):
        prune_circuit(tied, x, y)
    huge = MLP([6, 8, 3])
    with torch.no_grad():
        for parameter in huge.parameters():
            parameter.fill_(3e38)
    with pytest.raises(ValueError, match="loss on the samples of label 1 must be finite"):
        prune_circuit(huge, x, y, labels=1)


@pytest.mark.slow
def test_same_bits_for_any_number_of_threads() -> None:
    # 9000 samples are enough for threads to share.
    # Of the first layer, as torch's own forward pass up to another may differ.
    torch.manual_seed(0)
    x, y = blobs(0, (30,), n=9000)
    models = [trained(MLP(sizes), x, y) for sizes in ([30, 3], [30, 17, 3], [30, 17, 9, 3])]
    n_threads, found = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            circuits = []
            for model in models:
                circuits.append(prune_circuit(model, x, y, "fc1", threshold=1e-5))
                circuits += prune_circuit(model, x, y, "fc1", labels="all").values()
            found.append(circuits)
    finally:
        torch.set_num_threads(n_threads)
    for each in found[1:]:
        for one, other in zip(found[0], each, strict=True):
            assert torch.equal(one.loss_path, other.loss_path)
    assert sum(0 < one.kept < one.total for one in found[0]) > 3
