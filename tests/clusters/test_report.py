"""Reports of modularity, against plain graphs and upstream's own numbers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clusters.plain import chain, n_cut, newman, planted
from torch import Tensor, nn

import modfast
from modfast import Clusters, ModularityReport, find_clusters, modularity_report
from modfast.clusters.shuffles import NULLS, shuffled


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def report(model: Any, k: int = 3, **options: Any) -> ModularityReport:
    return modularity_report(model, k, **{"seed": 0, "progress": False, "n_shuffles": 9, **options})


# The two little networks of upstream's own tests, and their values to all digits.
SMALL = ([[12, 0], [-1.3, 7.4]], [[-8.9, 0.23], [0.15, -5.7]])
BIG = (
    [[5.4, 0, -12, 0], [0.03, 0, 0, 6.3], [0, -0.4, 4.8, 0.001], [0, 5.5, -0.07, 7]],
    [[-13.3, 0.7, 7.4, 0], [-0.4, -8, 0.3, 0], [6, 0, -15, 0], [0.1, -5.8, 0, -12.3]],
)


@pytest.mark.parametrize(
    ("weights", "labels", "value"),
    [(SMALL, [0, 1], 0.09889670410314147), (BIG, [1, 0, 1, 0], 0.037213054065917225)],
)
def test_upstreams_values(weights: Any, labels: list[int], value: float) -> None:
    layers = {str(i): torch.tensor(w, dtype=torch.float64) for i, w in enumerate(weights)}
    clusters = dict.fromkeys(layers, Clusters(labels, labels))
    found = report(layers, clusters=clusters)
    assert found.n_cut == pytest.approx(value, rel=1e-12)
    assert (found.k, found.null_n_cut.shape) == (2, (9,))


def test_values_are_those_of_the_plain_graph() -> None:
    model = modfast.models.MLP([9, 8, 7, 4]).double()
    found = report(model)
    weights = [layer.weight.detach().numpy() for layer in (model.fc1, model.fc2, model.fc3)]
    graph = chain(weights)
    clusters = found.clusters
    labels = [clusters["fc1"].cols, *(clusters[f"fc{i}"].rows for i in (1, 2, 3))]
    flat = torch.cat(labels).numpy()
    assert found.n_cut == pytest.approx(n_cut(graph, flat))
    assert found.q == pytest.approx(newman(graph, flat))
    same = find_clusters(model, 3, "graph", seed=5)
    assert all(torch.equal(clusters[name].mask(), each.mask()) for name, each in same.items())
    for i, w in enumerate(weights):
        # A bipartite graph's Q: within, above what sums of rows and columns explain.
        strength, each = np.abs(w), clusters[f"fc{i + 1}"].mask().numpy()
        expected = np.outer(strength.sum(1), strength.sum(0)) / strength.sum()
        wanted = ((strength - expected) * each).sum() / strength.sum()
        assert float(found.layer_q[i]) == pytest.approx(wanted)
        best = find_clusters(torch.tensor(w), 3, "clusterability", refine=True, seed=0)
        limit = float(modfast.clusterability(torch.tensor(w), best))
        assert 0.8 * limit < float(found.clusterability[i]) <= limit + 1e-9


def test_z_and_p_are_those_of_the_shuffles() -> None:
    found = report(modfast.models.MLP([9, 8, 4]))
    null = found.null_n_cut
    assert found.z == pytest.approx(float((found.n_cut - null.mean()) / null.std()))
    assert found.p == (1 + int((null <= found.n_cut).sum())) / 10
    own, null = found.clusterability, found.null_clusterability
    assert torch.allclose(found.clusterability_z, (own - null.mean(0)) / null.std(0))
    assert torch.equal(found.clusterability_p, (1 + (null >= own).sum(0).double()) / 10)


def blocks(n: int, k: int, seed: int) -> dict[str, Tensor]:
    first, rows, _ = planted(n, n, k, 3.0, seed)
    order = np.argsort(rows, kind="stable")
    second, _, cols = planted(n, n, k, 3.0, seed + 1)
    tied = np.empty_like(second)
    tied[:, order] = second[:, np.argsort(cols, kind="stable")]  # columns by the first one's rows
    return {"a": torch.tensor(first), "b": torch.tensor(tied)}


def test_a_modular_network_is_told_from_chance() -> None:
    found = report(blocks(48, 3, 0), n_shuffles=19)
    assert found.p == found.q_p == 1 / 20
    assert found.z < -5
    assert found.q_z > 5
    assert bool((found.clusterability_z > 5).all())
    assert found.clusterability_p.tolist() == [1 / 20, 1 / 20]


def test_row_and_col_forgive_differences_of_scale() -> None:
    scaled = {
        str(i): torch.randn(60, 60) * torch.linspace(0.2, 3, 60)[:, None].roll(20 * i, 0)
        for i in range(2)
    }
    layer, row = (report(scaled, null=null, n_shuffles=19) for null in ("layer", "row"))
    assert layer.null_n_cut.mean() > row.null_n_cut.mean()
    col = report({name: w.T for name, w in scaled.items()}, null="col", n_shuffles=19)
    assert col.null_n_cut.mean() == pytest.approx(float(row.null_n_cut.mean()), rel=0.02)


@pytest.mark.parametrize("null", NULLS)
def test_shuffles(null: str) -> None:
    random = np.random.default_rng(0)
    weight = random.normal(size=(6, 5, 2)) * (random.random((6, 5, 2)) < 0.6)
    found = shuffled(weight, null, random)
    assert found.shape == weight.shape
    assert not np.array_equal(found, weight)
    assert np.count_nonzero(found) == np.count_nonzero(weight)
    if "distribution" in null:
        # Each is near one of the weight's own.
        near = np.abs(found[found != 0][:, None] - weight[weight != 0]).min(1)
        assert near.max() < 0.05
    else:
        assert Counter(found.ravel()) == Counter(weight.ravel())
    if null.startswith("nonzero"):
        assert np.array_equal(found != 0, weight != 0)
    if null in ("row", "col"):
        lines = (np.moveaxis(each, ("row", "col").index(null), 0) for each in (found, weight))
        for a, b in zip(*lines, strict=True):
            assert Counter(a.ravel()) == Counter(b.ravel())


def test_the_same_seed_reports_the_same_on_any_number_of_threads() -> None:
    model, threads = modfast.models.MLP([9, 8, 4]), torch.get_num_threads()
    found = []
    for n in (1, 2):
        torch.set_num_threads(n)
        try:
            found.append(report(model, null="nonzero-distribution"))
        finally:
            torch.set_num_threads(threads)
    one, two = (each.to_dict() for each in found)
    for name in ("null_n_cut", "null_q", "null_clusterability", "clusterability"):
        assert torch.equal(one[name], two[name])


def test_isolated_units_are_dropped_before_shuffling_or_not() -> None:
    weights = {"a": torch.randn(30, 20), "b": torch.randn(10, 30)}
    weights["a"][:, 10:] = 0
    dropped, kept = (report(weights, drop_isolated=x) for x in (True, False))
    assert dropped.n_cut == pytest.approx(kept.n_cut)
    assert bool((dropped.cols["a"][10:] == -1).all())
    # With zeros for all columns to use, shuffles are sparser and joined by more units.
    assert dropped.null_n_cut.mean() != pytest.approx(float(kept.null_n_cut.mean()), rel=1e-3)


def test_convolutions_and_transformers() -> None:
    conv = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5))
    found = report(conv)
    assert found.layers == ("0", "3")
    assert len(found.cols["3"]) == 24
    block = nn.TransformerEncoderLayer(6, 2, 10)
    found = report(nn.Sequential(block, nn.TransformerEncoderLayer(6, 2, 10)))
    assert len(found.layers) == 4
    assert torch.equal(found.cols["0.linear1"], found.rows["1.linear2"])


def test_reports_are_saved_and_drawn(tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    found = report(modfast.models.MLP([9, 8, 4]))
    found.save(tmp_path / "report.safetensors")
    again = ModularityReport.load(tmp_path / "report.safetensors")
    assert (again.z, again.p, again.layers) == (found.z, found.p, found.layers)
    figure = found.plot()
    histogram, first, second = figure.data
    assert list(histogram.x) == found.null_n_cut.tolist()
    assert list(first.y) == found.clusterability_z.tolist()
    assert list(second.y) == found.layer_q_z.tolist()
    assert f"z = {found.z:.1f}" in figure.layout.title.text


@pytest.mark.parametrize(
    ("model", "options", "error", "words"),
    [
        (torch.randn(4, 4), {"null": "rows"}, ValueError, "null must be one of"),
        (torch.randn(4, 4), {"n_shuffles": 1}, ValueError, "n_shuffles must be at least 2"),
        (torch.randn(4, 4), {"k": 9}, ValueError, "k must be at most 8"),
        (torch.zeros(4, 4), {}, ValueError, "k must be at most 0"),
        (torch.full((4, 4), float("inf")), {}, ValueError, "must be finite"),
        (torch.randn(4, 4), {"clusters": Clusters.equal(4, 3, 2)}, ValueError, "4 x 4 weight"),
        (torch.randn(4, 4), {"clusters": [0, 1]}, TypeError, "clusters must be a mapping"),
        ({"a": torch.randn(4, 3)}, {"clusters": {}}, ValueError, "clusters must be given for"),
        (
            {"a": torch.randn(4, 3), "b": torch.randn(2, 4)},
            {"clusters": {"a": Clusters.equal(4, 3, 2), "b": Clusters([0, 1], [0, 1, 0, 1])}},
            ValueError,
            "clusters must agree",
        ),
        (torch.randn(4, 4), {"drop_isolated": 0}, TypeError, "drop_isolated must be True"),
    ],
)
def test_bad_input(model: Any, options: dict[str, Any], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        report(model, **options)


@pytest.mark.slow
@pytest.mark.parametrize(("null", "n"), [("layer", 200), ("row", 60)])
def test_p_is_uniform_on_random_networks(null: str, n: int) -> None:
    from scipy.stats import kstest

    random, of_cut, of_share = np.random.default_rng(0), [], []
    for seed in range(n):
        weight = torch.randn(12, 10, generator=torch.Generator().manual_seed(seed))
        found = report(weight, null=null, seed=seed)
        # p comes in steps of 1/10; within a step all places are equally likely.
        of_cut.append(found.p - random.random() / 10)
        of_share.append(float(found.clusterability_p[0]) - random.random() / 10)
    assert kstest(of_cut, "uniform").pvalue > 0.01
    assert kstest(of_share, "uniform").pvalue > 0.01
