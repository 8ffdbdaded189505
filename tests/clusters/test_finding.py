"""Clusters that are found, against plain float64 and exhaustive search."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clusters.plain import accuracy, adjacency, chain, embedding, n_cut, planted
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

import modfast
from modfast import Clusters, find_clusters
from modfast.clusters.graph import Graph
from modfast.clusters.transport import balanced_labels
from modfast.clusters.wiring import read_wiring


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def sizes(labels: Tensor, k: int) -> list[int]:
    return torch.bincount(labels[labels >= 0], minlength=k).tolist()


def agree(weight: Any, clusters: Clusters, rows: Any, cols: Any) -> float:
    found = torch.cat([clusters.rows, clusters.cols])
    assert found.shape == (sum(weight.shape[:2]),)
    return accuracy(found, np.concatenate([rows, cols]))


# --- the graph ---


@pytest.mark.parametrize("shape", [[9, 7, 8, 3], [5, 30, 4], [6, 6]])
def test_eigenvectors_are_those_of_the_whole_adjacency(shape: list[int]) -> None:
    weights = {f"{i}": torch.randn(b, a) for i, (a, b) in enumerate(itertools.pairwise(shape))}
    graph = Graph.of(read_wiring(weights))
    wanted = embedding(chain([w.numpy() for w in weights.values()]), 3)
    degree = np.concatenate(graph.degrees)
    found = np.concatenate(graph.embedding(3)) * np.sqrt(degree)[:, None] / np.sqrt(2)
    np.testing.assert_allclose(found @ found.T, wanted @ wanted.T, atol=1e-6)


def test_eigenvectors_of_a_graph_with_triangles(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = [(0, 1), (1, 2), (2, 0)]
    blocks = {
        pair: np.abs(np.random.default_rng(i).normal(size=(20, 20))) for i, pair in enumerate(sides)
    }
    graph = Graph((20, 20, 20), blocks)
    wanted = embedding(adjacency(list(blocks.values()), sides), 4)
    for least in (1024, 0):  # whole, and by iteration
        monkeypatch.setattr("modfast.clusters.graph._MOST_GRAM", least)
        found = np.concatenate(graph.embedding(4)) * np.sqrt(np.concatenate(graph.degrees))[:, None]
        np.testing.assert_allclose(found @ found.T, wanted @ wanted.T, atol=1e-4)


def test_large_sides_are_iterated_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, *_ = planted(60, 80, 3, 2.0, 0)
    graph = Graph.of(read_wiring(torch.tensor(weight)))
    wanted = np.concatenate(graph.embedding(3))
    monkeypatch.setattr("modfast.clusters.graph._MOST_GRAM", 0)
    found = np.concatenate(graph.embedding(3))
    np.testing.assert_allclose(found @ found.T, wanted @ wanted.T, atol=1e-4 * (wanted**2).max())


def test_blocks_that_join_the_same_sides_add_up() -> None:
    model = nn.Sequential(nn.TransformerEncoderLayer(6, 2, 10), nn.TransformerEncoderLayer(6, 2, 8))
    wiring = read_wiring(model.eval())
    assert wiring.sizes == (6, 10, 8)
    one, two = model[0].linear1.weight.detach(), model[0].linear2.weight.detach()
    block = Graph.of(wiring).blocks[1, 0]
    np.testing.assert_allclose(block, (one.abs() + two.abs().T).numpy(), rtol=1e-6)


def test_units_of_a_convolution_are_channels_also_after_flattening() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 5))
    wiring = read_wiring(model)
    assert wiring.sizes == (2, 4, 5)
    kernel = model[0].weight.detach().double().abs().sum((2, 3))
    flat = model[3].weight.detach().double().abs().reshape(5, 4, 9).sum(2)
    graph = Graph.of(wiring)
    np.testing.assert_allclose(graph.blocks[1, 0], kernel, rtol=1e-6)
    np.testing.assert_allclose(graph.blocks[2, 1], flat, rtol=1e-6)
    found = find_clusters(model, 2, seed=0)
    assert torch.equal(found["3"].cols, found["0"].rows.repeat_interleave(9))


def test_residual_blocks_share_a_stream() -> None:
    resnet = pytest.importorskip("torchvision").models.resnet18()
    wiring = read_wiring(resnet)
    sides = {each.name: (each.rows, each.cols) for each in wiring.layers}
    assert sides["layer1.0.conv2"][0] == sides["layer1.1.conv1"][1] == sides["layer1.1.conv2"][0]
    assert sides["layer2.0.downsample.0"] == (
        sides["layer2.0.conv2"][0],
        sides["layer1.0.conv2"][0],
    )
    assert sides["layer2.0.conv1"][1] == sides["layer1.1.conv2"][0]
    assert sides["fc"][1] == sides["layer4.1.conv2"][0]
    assert len(wiring.sizes) == 14


# --- balance ---


@pytest.mark.parametrize(("n", "k"), [(7, 3), (12, 4), (13, 5), (5, 9), (40, 7)])
def test_balanced_labels_cost_least(n: int, k: int) -> None:
    for seed in range(5):
        random = np.random.default_rng(seed)
        cost = random.normal(size=(n, k)) + 2 * random.normal(size=k)
        labels = balanced_labels(cost)
        counts = np.bincount(labels, minlength=k)
        assert counts.max() - counts.min() <= 1
        # Places: n // k for each cluster that must be taken, and one more that may be.
        places = np.repeat(np.arange(k), n // k + 1)
        must = np.tile([1e3] * (n // k) + [0.0], k)
        rows, cols = linear_sum_assignment(cost[:, places] - must)
        best = cost[rows, places[cols]].sum()
        assert cost[np.arange(n), labels].sum() == pytest.approx(best, abs=1e-9)


def test_equal_costs_are_balanced_too() -> None:
    assert sorted(np.bincount(balanced_labels(np.zeros((11, 4))))) == [2, 3, 3, 3]


# --- methods ---


@pytest.mark.parametrize("method", ["spectral", "clusterability"])
def test_planted_blocks_are_found(method: str) -> None:
    weight, rows, cols = planted(128, 160, 4, 1.5, 0)
    found = find_clusters(torch.tensor(weight), 4, method, seed=0)
    assert agree(weight, found, rows, cols) == 1


@pytest.mark.slow
def test_weak_blocks_are_found_exactly() -> None:
    weight, rows, cols = planted(512, 512, 4, 0.5, 0)
    assert agree(weight, find_clusters(torch.tensor(weight), 4, seed=0), rows, cols) == 1
    weight, rows, cols = planted(768, 3072, 4, 0.3, 0)
    found = find_clusters(torch.tensor(weight), 4, balanced=True, refine=True, seed=0)
    assert agree(weight, found, rows, cols) == 1


@pytest.mark.slow
@pytest.mark.parametrize("gain", [0.2, 0.3, 0.5])
def test_as_accurate_as_scikit_learn_and_sides_apart(gain: float) -> None:
    from sklearn.cluster import SpectralCoclustering

    ours, peers, apart = [], [], []
    for seed in range(3):
        weight, rows, cols = planted(512, 512, 4, gain, seed)
        ours.append(agree(weight, find_clusters(torch.tensor(weight), 4, seed=0), rows, cols))
        found = find_clusters(torch.tensor(weight), 4, joint=False, seed=0)
        apart.append(agree(weight, found, rows, cols))
        peer = SpectralCoclustering(4, random_state=0).fit(np.abs(weight))
        labels = np.concatenate([peer.row_labels_, peer.column_labels_])
        peers.append(accuracy(labels, np.concatenate([rows, cols])))
    assert np.mean(ours) >= max(np.mean(peers), np.mean(apart))


def test_dead_units_are_in_no_cluster_and_do_no_harm() -> None:
    weight, rows, cols = planted(64, 64, 4, 3.0, 0)
    weight[5], weight[:, 7], weight[:, 9] = 0, 0, 0
    for options in ({}, {"balanced": True}, {"method": "clusterability"}, {"joint": False}):
        found = find_clusters(torch.tensor(weight), 4, seed=0, **options)
        assert (found.rows < 0).nonzero().flatten().tolist() == [5]
        assert (found.cols < 0).nonzero().flatten().tolist() == [7, 9]
        assert agree(weight, found, rows, cols) == pytest.approx(125 / 128)
        if options:
            assert max(sizes(found.rows, 4)) - min(sizes(found.rows, 4)) <= 1 + ("joint" in options)


def test_the_largest_clusterability_by_exhaustive_search() -> None:
    weight = torch.randn(6, 6)
    halves = [
        torch.tensor([int(i in chosen) for i in range(6)])
        for chosen in itertools.combinations(range(6), 3)
    ]
    best = max(
        float(modfast.clusterability(weight, Clusters(r, c, 2))) for r in halves for c in halves
    )
    found = find_clusters(weight, 2, "clusterability", refine=True, seed=0)
    assert sizes(found.rows, 2) == sizes(found.cols, 2) == [3, 3]
    assert float(modfast.clusterability(weight, found)) == pytest.approx(best)


def test_each_step_finds_more() -> None:
    weight = torch.randn(64, 64)
    values = [
        float(modfast.clusterability(weight, find_clusters(weight, 4, seed=0, **options)))
        for options in (
            {"balanced": True},
            {"balanced": True, "refine": True},
            {"method": "clusterability", "refine": True},
        )
    ]
    assert values[0] < values[1] <= values[2]
    assert values[2] > 0.38


def test_refined_clusters_cut_less() -> None:
    weights = {"a": torch.randn(20, 15), "b": torch.randn(12, 20)}
    graph = chain([w.numpy() for w in weights.values()])

    def cut(refine: bool) -> float:
        found = find_clusters(weights, 3, "graph", refine=refine, seed=0)
        assert torch.equal(found["a"].rows, found["b"].cols)
        return n_cut(graph, torch.cat([found["a"].cols, found["a"].rows, found["b"].rows]).numpy())

    assert cut(True) < cut(False)


def test_a_chain_shares_labels_and_trains_at_once(tmp_path: Path) -> None:
    model = modfast.models.MLP([16, 12, 12, 12, 4])
    clusters = find_clusters(model, 3, layers="fc[23]", balanced=True, seed=0)
    assert list(clusters) == ["fc2", "fc3"]
    assert torch.equal(clusters["fc2"].rows, clusters["fc3"].cols)
    assert sizes(clusters["fc2"].cols, 3) == [4, 4, 4]
    params = model.named_parameters()
    optimizer = modfast.Modularity(params, lr=0.1, alpha=5.0, layers="fc[23]", clusters=clusters)
    before = optimizer.values.sum()
    for _ in range(30):
        optimizer.zero_grad()
        model(torch.randn(8, 16)).square().mean().backward()
        optimizer.step()
    assert optimizer.values.sum() > before + 0.5
    modfast.ClusterabilityLoss(model, ["fc2", "fc3"], clusters=clusters)
    clusters["fc2"].save(tmp_path / "fc2.safetensors")
    again = Clusters.load(tmp_path / "fc2.safetensors")
    assert torch.equal(again.labels, clusters["fc2"].labels)
    assert again.n_clusters == 3


def test_layers_that_do_not_follow_one_another_are_not_tied() -> None:
    model = modfast.models.MLP([6, 6, 6, 6])
    assert read_wiring(model, ["fc1", "fc3"]).sizes == (6, 6, 6, 6)
    assert read_wiring(model).sizes == (6, 6, 6, 6)
    assert read_wiring({"a": torch.randn(4, 3), "b": torch.randn(2, 5)}).sizes == (3, 4, 5, 2)


def test_inputs_first() -> None:
    # As transformers' Conv1D and TransformerLens keep them: rows are still dimension 0.
    weights = {}
    for i in range(2):
        weights[f"blocks.{i}.mlp.W_in"] = torch.randn(6, 24)
        weights[f"blocks.{i}.mlp.W_out"] = torch.randn(24, 6)
    found = find_clusters(weights, 3, seed=0)
    stream = found["blocks.0.mlp.W_in"].rows
    assert len(stream) == 6
    for i in range(2):
        w_in, w_out = found[f"blocks.{i}.mlp.W_in"], found[f"blocks.{i}.mlp.W_out"]
        assert torch.equal(w_in.rows, stream)
        assert torch.equal(w_out.cols, stream)
        assert torch.equal(w_in.cols, w_out.rows)


def test_a_transformer_of_conv1d() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=11, n_positions=8)
    model = transformers.GPT2LMHeadModel(config)
    found = find_clusters(model, 2, balanced=True, seed=0)
    names = [f"transformer.h.{i}.mlp.{n}" for i in range(2) for n in ("c_fc", "c_proj")]
    assert list(found) == names
    assert found[names[0]].shape == (32, 8)
    assert torch.equal(found[names[0]].cols, found[names[3]].rows)
    modfast.ClusterabilityLoss(model, names, clusters=found)


@pytest.mark.parametrize("method", ["spectral", "graph", "clusterability"])
def test_the_same_seed_finds_the_same(method: str) -> None:
    weight = torch.randn(40, 30)
    one, two = (find_clusters(weight, 5, method, seed=3) for _ in range(2))
    assert torch.equal(one.labels, two.labels)


def test_disconnected_blocks_are_their_own_clusters() -> None:
    weight = torch.block_diag(*(torch.rand(4, 5) + 0.1 for _ in range(3)))
    for method in ("spectral", "graph"):
        found = find_clusters(weight, 3, method, seed=0)
        assert torch.equal(found.mask(), weight > 0)


# --- what a network does ---


class Halves(nn.Module):
    """Two halves of inputs that never meet, in random order."""

    def __init__(self) -> None:
        super().__init__()
        self.order = torch.randperm(12)
        self.fc1 = nn.Linear(12, 12)
        self.fc2 = nn.Linear(12, 2)
        half = torch.arange(12) % 2
        with torch.no_grad():
            self.fc1.weight.copy_(torch.randn(12, 12) * (half[:, None] == half))
            self.fc2.weight.copy_(torch.randn(2, 12) * (torch.arange(2)[:, None] == half))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.tanh(self.fc1(x)))


@pytest.mark.parametrize("method", ["coactivation", "gradient", "information"])
def test_clusters_of_what_a_network_does(method: str) -> None:
    model = Halves()
    with torch.no_grad():  # so that weights tell nothing: many small ones across
        model.fc1.weight.add_(1e-3)
    x = torch.randn(2000, 12)
    y = torch.stack([x[:, ::2].sum(1), x[:, 1::2].sum(1)], dim=1)
    inputs = [(x[i : i + 100], y[i : i + 100]) for i in range(0, 2000, 100)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data = inputs if method == "gradient" else x
    found = find_clusters(model, 2, method, layers="fc1", inputs=data, seed=0)["fc1"]
    half = torch.arange(12) % 2
    assert accuracy(found.labels, torch.cat([half, half])) == 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.fc1.weight.grad is None


def test_gradients_of_classes_are_those_of_autograd() -> None:
    from modfast.clusters.observed import observed

    model = modfast.models.MLP([5, 6, 3]).double()
    x, y = torch.randn(20, 5).double(), torch.arange(20) % 3
    wiring = observed(
        "gradient", model, read_wiring(model), [(x[:10], y[:10]), (x[10:], y[10:])], None
    )
    total = 0.0
    for part in (slice(10), slice(10, 20)):
        loss = nn.functional.cross_entropy(model(x[part]), y[part])
        total = total + torch.autograd.grad(loss, model.fc1.weight)[0].square()
    np.testing.assert_allclose(wiring.layers[0].values[..., 0] ** 2, total, rtol=1e-12)


def test_convolutions_are_watched_by_channel() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    x, y = torch.randn(30, 2, 6, 6), torch.arange(30) % 3
    for method, inputs in (("coactivation", x), ("information", x), ("gradient", (x, y))):
        found = find_clusters(model, 2, method, inputs=inputs, seed=0)
        assert found["0"].shape == (4, 2)
        assert found["3"].shape == (3, 16)


# --- what is refused ---


@pytest.mark.parametrize(
    ("weight", "options", "error", "words"),
    [
        (torch.randn(4, 4), {"k": 9}, ValueError, "k must be at most 8"),
        (torch.zeros(4, 4), {}, ValueError, "k must be at most 0"),
        (torch.full((4, 4), float("nan")), {}, ValueError, "weight must be finite"),
        (torch.randn(4), {}, ValueError, "weight must have at least two dimensions"),
        (torch.randn(4, 0), {}, ValueError, "weight must have at least two dimensions"),
        (torch.ones(4, 4).long(), {}, TypeError, "weight must be a floating tensor"),
        ({}, {}, ValueError, "weight must hold at least one"),
        ({"a": 3}, {}, TypeError, r"weight\['a'\] must be a floating tensor"),
        (torch.randn(4, 4), {"k": 0}, ValueError, "k must be at least 1"),
        (torch.randn(4, 4), {"method": "louvain"}, ValueError, "method must be one of"),
        (torch.randn(4, 4), {"layers": "a"}, ValueError, "layers must be None"),
        (torch.randn(4, 4), {"method": "graph", "joint": False}, ValueError, "joint must be True"),
        (torch.randn(4, 4), {"joint": False, "refine": True}, ValueError, "refine must be False"),
        (torch.randn(4, 4), {"inputs": 1}, ValueError, "inputs must be None"),
        (torch.randn(4, 4), {"method": "gradient"}, ValueError, "inputs must be given"),
        (
            torch.randn(4, 4),
            {"method": "gradient", "inputs": 1},
            TypeError,
            "weight must be a model",
        ),
        (torch.randn(4, 4), {"balanced": 1}, TypeError, "balanced must be True or False"),
        (torch.randn(4, 4), {"seed": "a"}, TypeError, "seed must be an integer"),
        (modfast.models.MLP([4, 4, 2]), {"layers": "fc9"}, ValueError, "did you mean"),
        (nn.ReLU(), {}, ValueError, "model must have a Linear"),
    ],
)
def test_bad_input(weight: Any, options: dict[str, Any], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        find_clusters(weight, **{"k": 2, "seed": 0, **options})


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.cluster", None)
    with pytest.raises(ImportError, match=r"modfast\[analysis\]"):
        find_clusters(torch.randn(4, 4), 2)
