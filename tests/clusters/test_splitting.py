"""Networks cut along their clusters, against the whole network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import modfast
from modfast import Clusters, clusterability, find_clusters, split_clusters


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def labels(n: int, k: int) -> Tensor:
    return (torch.arange(n) * k // n)[torch.randperm(n)]


@torch.no_grad()
def masked(model: nn.Module, clusters: dict[str, Clusters]) -> nn.Module:
    for name, each in clusters.items():
        weight = model.get_submodule(name).weight
        weight.mul_(each.mask().reshape(each.shape + (1,) * (weight.dim() - 2)))
    return model


def test_paths_add_up_to_the_network() -> None:
    clusters = {"fc2": Clusters(labels(64, 4), labels(64, 4))}
    model = masked(modfast.models.MLP([784, 64, 64, 10]).double(), clusters)
    split, x = split_clusters(model, clusters), torch.randn(50, 784).double()
    torch.testing.assert_close(split(x), model(x), rtol=0, atol=1e-13)
    assert split.difference(model, x) < 1e-13
    assert split.path_weights == (12_960,) * 4
    assert split.total_weights == 54_912
    assert split.dropped == {"fc2": pytest.approx(0.0, abs=1e-12)}
    weights = sum(p.numel() for name, p in split.named_parameters() if "weight" in name)
    assert weights == 4 * 12_960 == 54_912 - 3_072
    # Biases once: those of hidden units in one path each, those of the logits in the first.
    assert sum(p.numel() for name, p in split.named_parameters() if "bias" in name) == 64 + 64 + 10


def test_a_chain_of_clustered_layers_and_unequal_clusters() -> None:
    middle = labels(9, 3)
    clusters = {
        "fc2": Clusters(middle, labels(8, 3), 3),
        "fc3": Clusters(torch.randint(3, (7,)), middle, 3),
    }
    model = masked(modfast.models.MLP([5, 8, 9, 7, 4]).double(), clusters)
    x = torch.randn(20, 5).double()
    torch.testing.assert_close(split_clusters(model, clusters)(x), model(x), rtol=0, atol=1e-13)


def test_convolutions_are_cut_by_channel_also_after_flattening() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5)
    ).double()
    clusters = {"2": Clusters(labels(6, 2), labels(8, 2))}
    masked(model, clusters)
    x = torch.randn(10, 2, 6, 6).double()
    torch.testing.assert_close(split_clusters(model, clusters)(x), model(x), rtol=0, atol=1e-13)


def test_what_lies_between_is_left_out_and_its_effect_told() -> None:
    model = modfast.models.MLP([6, 8, 8, 3])
    clusters = find_clusters(model, 2, "clusterability", layers="fc2", seed=0)
    share = 1 - float(clusterability(model.fc2.weight.detach().double(), clusters["fc2"]))
    with pytest.raises(ValueError, match="tolerance=0.1"):
        split_clusters(model, clusters, tolerance=0.1)
    split, x = split_clusters(model, clusters, tolerance=share), torch.randn(30, 6)
    assert split.dropped["fc2"] == pytest.approx(share)
    before = model(x).detach()
    whole = masked(model, clusters)(x)
    torch.testing.assert_close(split(x), whole)
    assert float((split(x) - before).detach().abs().max()) > 0.01
    assert split.difference(model, [x[:10], x[10:]]) < 1e-5


def test_units_in_no_cluster_go_to_the_first_path() -> None:
    model = modfast.models.MLP([6, 8, 8, 3]).double()
    with torch.no_grad():
        model.fc2.weight[3] = 0
        model.fc2.weight[:, 5] = 0
    clusters = Clusters([0, 0, 0, -1, 1, 1, 1, 1], [0, 0, 0, 0, 1, -1, 1, 1])
    with torch.no_grad():
        model.fc2.weight.mul_(clusters.mask())
    x = torch.randn(30, 6).double()
    split = split_clusters(model, {"fc2": clusters})
    torch.testing.assert_close(split(x), model(x), rtol=0, atol=1e-13)


def test_earlier_layers_are_shared_and_the_rest_trains_apart() -> None:
    clusters = {"fc3": Clusters(labels(6, 2), labels(6, 2))}
    model = masked(modfast.models.MLP([5, 7, 6, 6, 3]), clusters)
    split = split_clusters(model, clusters)
    assert all(path.fc1.weight is model.fc1.weight for path in split.paths)
    split(torch.randn(4, 5)).sum().backward()
    assert all(path.fc3.weight.grad is not None for path in split.paths)
    assert model.fc3.weight.grad is None


@pytest.mark.parametrize(
    ("clusters", "options", "error", "words"),
    [
        ({"fc1": Clusters.equal(6, 4, 2)}, {}, ValueError, "between the first and the last"),
        ({"fc4": Clusters.equal(3, 6, 2)}, {}, ValueError, "between the first and the last"),
        (
            {"fc9": Clusters.equal(6, 6, 2)},
            {},
            ValueError,
            "clusters='fc9': no such suitable layer",
        ),
        ({"fc2": Clusters.equal(6, 6, 2)}, {}, ValueError, "up to the one before the last"),
        ({"fc3": Clusters.equal(6, 6, 2)}, {}, ValueError, "tolerance=0 of a layer's"),
        ({"fc3": Clusters.equal(6, 5, 2)}, {}, ValueError, "6 x 6 weight"),
        ({"fc3": 3}, {}, TypeError, "clusters must be Clusters"),
        ({}, {}, ValueError, "must hold at least one name"),
        (Clusters.equal(6, 6, 2), {}, TypeError, "clusters must be a mapping"),
        ({"fc3": Clusters.equal(6, 6, 2)}, {"tolerance": 2}, ValueError, "from 0 to 1"),
    ],
)
def test_bad_input(clusters: Any, options: dict[str, Any], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        split_clusters(modfast.models.MLP([4, 6, 6, 6, 3]), clusters, **options)
