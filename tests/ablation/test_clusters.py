from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from ablation.layers import (
    LAYERS,
    assert_as_before,
    assert_equals_changed_weights,
    computed,
    data,
    layer_output,
    snapshot,
)
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, TensorDataset

from modfast import Clusters, evaluate_clusters
from modfast.models import MLP


def accuracy(model: nn.Module, only: int | None = None) -> float:
    x, y = data()
    chosen = slice(None) if only is None else y == only
    with torch.no_grad():
        return float((model(x[chosen]).argmax(1) == y[chosen]).double().mean())


@pytest.mark.parametrize("bias", [True, False])
def test_equals_setting_rows_and_columns_to_zero(bias: bool) -> None:
    torch.manual_seed(0)
    model = MLP([8, 9, 7, 5], bias=bias)
    clusters = Clusters.from_indices(
        [[0, 1], [2, 3], [4]], [[8, 7], [6, 5, 4], [0, 1]], shape=(7, 9)
    )
    found = evaluate_clusters(model, data(), "fc2", clusters)
    whole = model.fc2.weight.detach().clone()

    def zeroed(cluster: int) -> None:
        with torch.no_grad():
            model.fc2.weight[clusters.rows == cluster] = 0
            model.fc2.weight[:, clusters.cols == cluster] = 0

    def restore() -> None:
        with torch.no_grad():
            model.fc2.weight.copy_(whole)

    assert found.accuracy == accuracy(model)
    for cluster in range(3):
        zeroed(cluster)
        assert found.off_accuracy[cluster] == accuracy(model)
        for label in range(5):
            assert found.off_class_accuracy[cluster, label] == accuracy(model, label)
        restore()
        for other in {0, 1, 2} - {cluster}:
            zeroed(other)
        assert found.on_accuracy[cluster] == accuracy(model)
        for label in range(5):
            assert found.on_class_accuracy[cluster, label] == accuracy(model, label)
        restore()
    for label in range(5):
        assert found.class_accuracy[label] == accuracy(model, label)


def test_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 5)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate_clusters(model, data(), "2", Clusters.equal(5, 6, 2))
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_batches_give_the_same() -> None:
    model = MLP([8, 6, 6, 5])
    clusters = Clusters.equal(6, 6, 3)
    loader = DataLoader(TensorDataset(*data()), batch_size=70)
    whole = evaluate_clusters(model, data(), "fc2", clusters)
    streamed = evaluate_clusters(model, loader, "fc2", clusters)
    torch.testing.assert_close(whole.off_class_accuracy, streamed.off_class_accuracy)
    torch.testing.assert_close(whole.on_accuracy, streamed.on_accuracy)


def test_convolutions_and_regressions() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 2), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.Flatten())
    x = torch.randn(20, 2, 2, 2)
    with torch.no_grad():
        y = model(x)
    found = evaluate_clusters(model, (x, y), "2", Clusters.equal(6, 4, 2))
    assert found.accuracy == 1
    assert (found.off_accuracy < 1).all()
    torch.testing.assert_close(found.off_accuracy.flip(0), found.on_accuracy)


def test_an_empty_cluster_changes_nothing_when_off() -> None:
    model = MLP([8, 6, 6, 5])
    found = evaluate_clusters(model, data(), "fc2", Clusters([0] * 6, [0] * 6, n_clusters=2))
    assert found.off_accuracy[1] == found.accuracy == found.on_accuracy[0]


def test_bad_input() -> None:
    model = MLP([8, 6, 6, 5])
    clusters = Clusters.equal(6, 6, 2)
    x, y = data()
    with pytest.raises(ValueError, match="layer='fc22'.*did you mean: 'fc2'"):
        evaluate_clusters(model, (x, y), "fc22", clusters)
    with pytest.raises(ValueError, match="layer must name one layer, got 'fc"):
        evaluate_clusters(model, (x, y), "fc*", clusters)
    with pytest.raises(ValueError, match="6 outputs and 6 inputs do not fit the weight of 'fc1'"):
        evaluate_clusters(model, (x, y), "fc1", clusters)
    with pytest.raises(TypeError, match=r"data must be a pair \(inputs.*got Tensor"):
        evaluate_clusters(model, x, "fc2", clusters)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="data must be samples with targets, got a batch without"):
        evaluate_clusters(model, [x, y], "fc2", clusters)  # type: ignore[list-item]
    with pytest.raises(TypeError, match="clusters must be a Clusters, got Tensor"):
        evaluate_clusters(model, (x, y), "fc2", clusters.mask())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"data must not be empty, got shape \(0, 8\)"):
        evaluate_clusters(model, (x[:0], y[:0]), "fc2", clusters)
    with pytest.raises(ValueError, match="data must not be empty, got no batches"):
        evaluate_clusters(model, [], "fc2", clusters)
    with pytest.raises(ValueError, match="classes from 0 to 4.*got 5"):
        evaluate_clusters(model, (x, y + 1), "fc2", clusters)
    with pytest.raises(ValueError, match="data must be finite, got 8 of 2400"):
        evaluate_clusters(
            model, (x.clone().index_fill_(0, torch.tensor(3), torch.nan), y), "fc2", clusters
        )
    with torch.no_grad():
        model.fc2.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="weight of 'fc2' must be finite"):
        evaluate_clusters(model, (x, y), "fc2", clusters)


# ----------------------------------------------------------------- weights as their layers compute


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_the_weight_is_zeroed_as_the_layer_computes_it(kind: str, training: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 9), nn.Tanh(), LAYERS[kind](), nn.ReLU(), nn.Linear(7, 5))
    model.double()
    nn.init.zeros_(model[4].bias)  # or it would decide alone
    x, y = data(600)
    x = x.double()
    weight = computed(model[2], torch.zeros(1, 9).double())
    model.train(training)
    before = snapshot(model)
    for _ in range(2):
        found = evaluate_clusters(model, (x, y), "2", Clusters.equal(7, 9, 3))
        assert_as_before(model, before)
    assert found.backend == ("model" if kind in ("lora", "normed lora", "not linear") else "replay")

    def outputs(changed: Tensor) -> Tensor:
        hidden = torch.tanh(model[0](x))
        return model[4](layer_output(kind, model[2], changed, hidden).relu())

    assert_equals_changed_weights(found, 3, outputs, weight, y)


class Loop(nn.Module):
    """Calls a layer three times, and has it twice."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(8, 6), layer, nn.Linear(6, 5)
        self.again = self.layer
        self.calls: list[Tensor] = []

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.first(x)
        for _ in range(2):
            h = torch.tanh(self.layer(h))
        self.calls.append(h)
        return {"hidden": h, "scores": self.last(self.again(h))}


@pytest.mark.parametrize("normed", [False, True])
def test_a_layer_called_several_times_is_changed_in_each(normed: bool) -> None:
    torch.manual_seed(0)
    layer: nn.Module = nn.Linear(6, 6)
    layer = parametrizations.weight_norm(layer) if normed else layer
    model = Loop(layer).double()
    x, y = data(600)
    before, parameters = snapshot(model), [*model.parameters()]
    found = evaluate_clusters(
        model, (x.double(), y), "layer", Clusters.equal(6, 6, 2), output="scores"
    )
    assert_as_before(model, before)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert model.calls == []
    assert found.backend == "model"

    def outputs(weight: Tensor) -> Tensor:
        h = model.first(x.double())
        for _ in range(2):
            h = torch.tanh(functional.linear(h, weight, layer.bias))
        return model.last(functional.linear(h, weight, layer.bias))

    assert_equals_changed_weights(found, 2, outputs, layer.weight.detach().clone(), y)


def test_a_module_that_is_registered_twice_keeps_its_parameter() -> None:
    model = MLP([8, 6, 6, 5])
    weight, model.act3 = model.fc2.weight, model.fc2
    evaluate_clusters(model, data(), "fc2", Clusters.equal(6, 6, 2))
    assert model.fc2.weight is weight
    assert isinstance(weight, nn.Parameter)


@dataclass
class Out:
    logits: Tensor
    hidden: Tensor


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc, self.head = nn.Embedding(11, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Out:
        h = torch.tanh(self.fc(self.embed(ids)))
        return Out(self.head(h), h)


def test_tokens_masks_and_ignored_targets() -> None:
    torch.manual_seed(0)
    model = Tokens().double()
    ids, y = torch.randint(11, (40, 7)), torch.randint(4, (40, 7))
    y[:, 0] = -100
    mask = (torch.arange(7) < torch.randint(3, 8, (40, 1))).long()
    counted = mask.bool() & (y >= 0)

    def outputs(weight: Tensor) -> Tensor:
        h = torch.tanh(functional.linear(model.embed(ids), weight, model.fc.bias))
        return model.head(h)[counted]

    weight = model.fc.weight.detach().clone()
    clusters = Clusters.equal(6, 6, 2)
    inputs = {"ids": ids, "attention_mask": mask}
    batches = [
        {"ids": ids[i], "attention_mask": mask[i], "labels": y[i]}
        for i in torch.arange(40).split(13)
    ]
    loader = DataLoader(
        [({"ids": a, "attention_mask": b}, c) for a, b, c in zip(ids, mask, y, strict=True)], 16
    )
    for each in ((inputs, y), {**inputs, "labels": y}, batches, loader):
        found = evaluate_clusters(model, each, "fc", clusters)
        assert_equals_changed_weights(found, 2, outputs, weight, y[counted])


def test_real_targets_of_a_stream_and_of_a_dataset() -> None:
    torch.manual_seed(0)
    model = MLP([8, 6, 6, 5]).double()
    x, y = torch.randn(90, 8).double(), torch.randn(90, 5).double()
    clusters = Clusters.equal(6, 6, 2)
    whole = evaluate_clusters(model, (x, y), "fc2", clusters)
    weight = model.fc2.weight.detach().clone()
    weight[:3] = 0
    weight[:, :3] = 0
    with torch.no_grad():
        h = functional.linear(model.fc1(x).relu(), weight, model.fc2.bias)
        spread = (y - y.mean(0)).square().sum(0)
        expected = 1 - (y - model.fc3(h.relu())).square().sum(0) / spread
    torch.testing.assert_close(whole.off_class_accuracy[0], expected)
    for each in (TensorDataset(x, y), DataLoader(TensorDataset(x, y), 40)):
        found = evaluate_clusters(model, each, "fc2", clusters)
        torch.testing.assert_close(found.off_class_accuracy, whole.off_class_accuracy)


def test_autocast_inference_mode_and_compiled_models() -> None:
    torch.manual_seed(0)
    model, clusters = MLP([8, 6, 6, 5]), Clusters.equal(6, 6, 2)
    x, y = data()
    plain = evaluate_clusters(model, (x, y), "fc2", clusters)
    with torch.inference_mode():
        inside = evaluate_clusters(model, (x.clone(), y), "fc2", clusters)
    compiled = evaluate_clusters(torch.compile(model, backend="eager"), (x, y), "fc2", clusters)
    for found in (inside, compiled):
        assert torch.equal(found.off_class_accuracy, plain.off_class_accuracy)
    weight = model.fc2.weight.detach().clone()
    with torch.autocast("cpu", torch.bfloat16):
        found = evaluate_clusters(model, (x, y), "fc2", clusters)

        def outputs(changed: Tensor) -> Tensor:
            h = functional.linear(model.fc1(x).relu(), changed, model.fc2.bias)
            return model.fc3(h.relu())

        assert_equals_changed_weights(found, 2, outputs, weight, y)


def test_convolutions_of_each_kind() -> None:
    torch.manual_seed(0)
    for layer in (
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
        nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1),
    ):
        model = nn.Sequential(nn.Conv2d(2, 4, 1), layer, nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        model.extend([nn.Flatten(), nn.Linear(6, 5)]).double()
        x, y = torch.randn(300, 2, 5, 5).double(), torch.randint(5, (300,))
        found = evaluate_clusters(model, (x, y), "1", Clusters.equal(6, 4, 2))
        assert found.backend == "replay"
        whole = layer.weight.detach().clone()
        transposed = isinstance(layer, nn.ConvTranspose2d)
        rows, cols = (slice(0, 2), slice(0, 3)) if transposed else (slice(0, 3), slice(0, 2))
        with torch.no_grad():
            layer.weight[rows] = 0
            layer.weight[:, cols] = 0
            expected = float((model(x).argmax(1) == y).double().mean())
            layer.weight.copy_(whole)
        assert found.off_accuracy[0] == expected


def test_the_old_order_works_and_warns() -> None:
    model, clusters = MLP([8, 6, 6, 5]), Clusters.equal(6, 6, 2)
    new = evaluate_clusters(model, data(), "fc2", clusters)
    with pytest.warns(
        DeprecationWarning, match=r"is now evaluate_clusters\(model, data, layer, cl"
    ):
        old = evaluate_clusters(model, "fc2", clusters, data())  # type: ignore[arg-type]
    assert torch.equal(new.off_class_accuracy, old.off_class_accuracy)


def test_layers_that_have_no_such_weight() -> None:
    class Opaque(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return functional.linear(x, self.kept)

    layer = Opaque(6, 6)
    layer.kept = layer.weight.detach().clone()
    model = nn.Sequential(nn.Linear(8, 6), layer, nn.Linear(6, 5))
    clusters = Clusters.equal(6, 6, 2)
    with pytest.raises(ValueError, match="layer='1': the weight must be used by torch's functions"):
        evaluate_clusters(model, data(), "1", clusters)
    with pytest.raises(TypeError, match="layer='act1': must be a Linear.*got ReLU"):
        evaluate_clusters(MLP([8, 6, 5]), data(), "act1", clusters)
    unused = nn.Sequential(nn.Linear(8, 5))
    unused[0].spare = nn.Linear(6, 6)
    with pytest.raises(ValueError, match="layer='0.spare': not reached"):
        evaluate_clusters(unused, data(), "0.spare", clusters)
