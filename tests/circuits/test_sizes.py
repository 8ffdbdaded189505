"""search_space_reduction, effective_circuit_size, and the figures."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from modfast import (
    CircuitSizes,
    Clusters,
    effective_circuit_size,
    prune_circuit,
    search_space_reduction,
)
from modfast.models import MLP


def test_printed_reduction() -> None:
    model = MLP([784, 64, 64, 10], bias=False)
    found = search_space_reduction(model, Clusters.equal(64, 64, 4))
    assert found == pytest.approx((54912 - 12960) / 54912, abs=1e-12)
    assert f"{found:.2%}" == "76.40%"
    assert search_space_reduction(model, Clusters.equal(64, 64, 4), keep=4) == pytest.approx(0)


def counted(model: MLP, clusters: Clusters, kept: list[int]) -> float:
    """By masks of the weights that are left."""
    rows = torch.tensor([int(label) in [-1, *kept] for label in clusters.rows])
    cols = torch.tensor([int(label) in [-1, *kept] for label in clusters.cols])
    left = cols.sum() * model.fc1.weight.shape[1] + rows.sum() * cols.sum()
    left += rows.sum() * model.fc3.weight.shape[0]
    total = sum(layer.weight.numel() for layer in (model.fc1, model.fc2, model.fc3))
    return 1 - float(left) / total


def test_unequal_clusters_and_units_in_none() -> None:
    model = MLP([7, 6, 9, 4])
    clusters = Clusters(rows=[0, 0, 0, 1, 2, 2, -1, 1, 2], cols=[0, 1, 1, 2, -1, -1])
    for kept in ([0], [1], [2, 0]):
        assert search_space_reduction(model, clusters, kept) == pytest.approx(
            counted(model, clusters, kept)
        )
    for n, choices in ((1, [[0], [1], [2]]), (2, [[0, 1], [0, 2], [1, 2]])):
        mean = sum(counted(model, clusters, kept) for kept in choices) / 3
        assert search_space_reduction(model, clusters, n) == pytest.approx(mean)


def test_reduction_of_other_networks() -> None:
    # The first layer has none before it; a flattened channel is read at four positions.
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 5))
    found = search_space_reduction(model, Clusters.equal(8, 3, 2), keep=[0])
    left = 4 * 2 * 9 + 16 * 5  # 4 of 8 outputs, 2 of 3 inputs
    assert found == pytest.approx(1 - left / (8 * 3 * 9 + 160))
    two = MLP([4, 4, 4])
    with pytest.raises(ValueError, match=r"must fit one layer, they fit \['fc1', 'fc2'\]"):
        search_space_reduction(two, Clusters.equal(4, 4, 2))
    assert search_space_reduction(two, Clusters.equal(4, 4, 2), layer="fc2") == pytest.approx(5 / 8)


def test_bad_input_of_reduction() -> None:
    model, clusters = MLP([8, 6, 6, 3]), Clusters.equal(6, 6, 3)
    with pytest.raises(TypeError, match="clusters must be a Clusters, got list"):
        search_space_reduction(model, [[0], [1]])
    with pytest.raises(ValueError, match="keep must be at most 3, the clusters, got 4"):
        search_space_reduction(model, clusters, keep=4)
    with pytest.raises(ValueError, match="keep must be different clusters from 0 to 2, got"):
        search_space_reduction(model, clusters, keep=[0, 3])
    for keep in (1.5, [0.5], None):
        with pytest.raises(TypeError, match="keep must be how many clusters, or which, got"):
            search_space_reduction(model, clusters, keep=keep)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got NoneType"):
        search_space_reduction(None, clusters)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layer='fc9': no such suitable module"):
        search_space_reduction(model, clusters, layer="fc9")
    with pytest.raises(ValueError, match="do not fit the weight of 'fc1'"):
        search_space_reduction(model, clusters, layer="fc1")
    odd = nn.Sequential(nn.Linear(6, 6), nn.Linear(7, 3))
    with pytest.raises(ValueError, match="inputs of '1', .* do not fit it: 7 is no multiple of 6"):
        search_space_reduction(odd, clusters)


def data() -> tuple[MLP, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return MLP([5, 7, 3]), torch.randn(60, 5), torch.arange(60) % 3


def test_effective_circuit_size() -> None:
    model, x, y = data()
    sizes = effective_circuit_size(model, x, y, thresholds=[1e-2, 1e-4, 1.0])
    assert sizes.thresholds.tolist() == [1e-4, 1e-2, 1.0]
    assert sizes.labels == (0, 1, 2)
    assert sizes.total == 56
    for i, threshold in enumerate(sizes.thresholds.tolist()):
        for j, circuit in prune_circuit(model, x, y, threshold=threshold, labels="all").items():
            assert sizes.kept[i, j] == circuit.kept
            assert sizes.loss[i, j] == circuit.loss
            assert sizes.original_loss[j] == circuit.original_loss
    assert torch.equal(sizes.share, sizes.kept.double() / 56)
    only = effective_circuit_size(model, x, y, labels=[2], backend="replay")
    assert (only.labels, only.kept.shape) == ((2,), (5, 1))
    for bad in ([], [1e-3, 1e-3]):
        with pytest.raises(ValueError, match="thresholds must be different numbers"):
            effective_circuit_size(model, x, y, thresholds=bad)
    with pytest.raises(TypeError, match=r"thresholds must be several, as a list, got 0\.1"):
        effective_circuit_size(model, x, y, thresholds=0.1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="labels must be several, as a list, got 2"):
        effective_circuit_size(model, x, y, labels=2)  # type: ignore[arg-type]


def test_figures() -> None:
    pytest.importorskip("plotly")
    model, x, y = data()
    circuit = prune_circuit(model, x, y, labels=1)
    path, bars = circuit.plot().data
    assert path.y[0] == circuit.original_loss
    assert path.y[-1] == circuit.loss
    assert list(bars.x) == ["fc2.weight", "fc1.weight"]
    assert sum(int(text) for text in bars.text) == circuit.kept
    sizes = effective_circuit_size(model, x, y)
    assert [trace.name for trace in sizes.plot().data] == ["label 0", "label 1", "label 2", "mean"]
    both = CircuitSizes.overlay({"plain": sizes, "clustered": sizes})
    assert [t.name for t in both.data if t.showlegend] == ["plain, mean", "clustered, mean"]
    with pytest.raises(ValueError, match="results must hold at least one CircuitSizes"):
        CircuitSizes.overlay({})
    assert circuit.plot().layout.title.text.startswith("Circuit of ")
