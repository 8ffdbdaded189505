from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from modfast import Clusters, evaluate_clusters
from modfast.models import MLP


def data(n: int = 300) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 8, generator=generator), torch.randint(0, 5, (n,), generator=generator)


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
    found = evaluate_clusters(model, "fc2", clusters, data())
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
    evaluate_clusters(model, "2", Clusters.equal(5, 6, 2), data())
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_batches_give_the_same() -> None:
    model = MLP([8, 6, 6, 5])
    clusters = Clusters.equal(6, 6, 3)
    loader = DataLoader(TensorDataset(*data()), batch_size=70)
    whole = evaluate_clusters(model, "fc2", clusters, data())
    streamed = evaluate_clusters(model, "fc2", clusters, loader)
    torch.testing.assert_close(whole.off_class_accuracy, streamed.off_class_accuracy)
    torch.testing.assert_close(whole.on_accuracy, streamed.on_accuracy)


def test_convolutions_and_regressions() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 2), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.Flatten())
    x = torch.randn(20, 2, 2, 2)
    with torch.no_grad():
        y = model(x)
    found = evaluate_clusters(model, "2", Clusters.equal(6, 4, 2), (x, y))
    assert found.accuracy == 1
    assert (found.off_accuracy < 1).all()
    torch.testing.assert_close(found.off_accuracy.flip(0), found.on_accuracy)


def test_an_empty_cluster_changes_nothing_when_off() -> None:
    model = MLP([8, 6, 6, 5])
    found = evaluate_clusters(model, "fc2", Clusters([0] * 6, [0] * 6, n_clusters=2), data())
    assert found.off_accuracy[1] == found.accuracy == found.on_accuracy[0]


def test_bad_input() -> None:
    model = MLP([8, 6, 6, 5])
    clusters = Clusters.equal(6, 6, 2)
    x, y = data()
    with pytest.raises(ValueError, match="layer='fc22'.*did you mean: 'fc2'"):
        evaluate_clusters(model, "fc22", clusters, (x, y))
    with pytest.raises(ValueError, match="layer must name one layer, got 'fc"):
        evaluate_clusters(model, "fc*", clusters, (x, y))
    with pytest.raises(ValueError, match="6 outputs and 6 inputs do not fit the weight of 'fc1'"):
        evaluate_clusters(model, "fc1", clusters, (x, y))
    with pytest.raises(TypeError, match="data must be a pair of tensors.*got Tensor"):
        evaluate_clusters(model, "fc2", clusters, x)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="data must be a pair of tensors.*got Tensor"):
        evaluate_clusters(model, "fc2", clusters, [x, y])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="clusters must be a Clusters, got Tensor"):
        evaluate_clusters(model, "fc2", clusters.mask(), (x, y))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="data must not be empty, got 0 samples"):
        evaluate_clusters(model, "fc2", clusters, (x[:0], y[:0]))
    with pytest.raises(ValueError, match="data must not be empty, got no batches"):
        evaluate_clusters(model, "fc2", clusters, [])
    with pytest.raises(ValueError, match="classes from 0 to 4.*got 5"):
        evaluate_clusters(model, "fc2", clusters, (x, y + 1))
    with pytest.raises(ValueError, match="data must be finite, got 8 of 2400"):
        evaluate_clusters(
            model, "fc2", clusters, (x.clone().index_fill_(0, torch.tensor(3), torch.nan), y)
        )
    with torch.no_grad():
        model.fc2.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="weight of 'fc2' must be finite"):
        evaluate_clusters(model, "fc2", clusters, (x, y))
