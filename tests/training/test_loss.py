from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import modfast
from modfast import ClusterabilityLoss, Clusters, clusterability


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


def test_is_minus_weight_times_the_mean(device: torch.device) -> None:
    model = network().to(device)
    reg = ClusterabilityLoss(model, ["0", "2"], n_clusters=2, alpha=3.0)
    each = [
        clusterability(model[0].weight, Clusters.equal(8, 6, 2)),
        clusterability(model[2].weight, Clusters.equal(8, 8, 2)),
    ]
    expected = -3.0 * torch.stack(each).mean()
    torch.testing.assert_close(reg(), expected)
    torch.testing.assert_close(reg.values.float(), torch.stack(each).detach())
    grads = torch.autograd.grad(reg(), [model[0].weight, model[2].weight])
    wanted = torch.autograd.grad(expected, [model[0].weight, model[2].weight])
    torch.testing.assert_close(grads, wanted)


def test_training_raises_clusterability_and_leaves_the_model_alone() -> None:
    model = network()
    reg = ClusterabilityLoss(model, "2", n_clusters=4)
    assert list(reg.parameters()) == []
    start = float(reg.values)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        reg().backward()
        optimizer.step()
    assert float(reg.values) > 0.99 > start
    assert model[0].weight.grad is None


def test_layers_by_name_and_pattern_and_clusters_by_layer() -> None:
    model = modfast.models.MLP([6, 8, 8, 8, 4])
    given = {"fc2": Clusters.equal(8, 8, 4), "fc3": Clusters([-1] * 8, [-1] * 8, 2)}
    reg = ClusterabilityLoss(model, ["fc[23]"], clusters=given)
    assert reg.layers == ("fc2", "fc3")
    torch.testing.assert_close(
        reg.values[0].float(), clusterability(model.fc2.weight, given["fc2"]).detach()
    )
    assert reg.values[1] == 0


def test_convolutions_and_input_first_weights(device: torch.device) -> None:
    class Conv1D(nn.Module):
        # As in transformers: inputs are rows.
        def __init__(self) -> None:
            super().__init__()
            self.nf = 6
            self.weight = nn.Parameter(torch.randn(4, 6))

    model = nn.ModuleDict(
        {"conv": nn.Conv2d(4, 6, 3), "up": nn.ConvTranspose2d(4, 6, 3), "gpt": Conv1D()}
    ).to(device)
    clusters = Clusters.from_indices([[0, 1, 2], [4]], [[3], [0, 1]], shape=(6, 4))
    mask = clusters.mask().to(device)
    reg = ClusterabilityLoss(model, ["conv", "up", "gpt"], clusters=clusters)
    squares = [
        model["conv"].weight.square().sum((2, 3)),
        model["up"].weight.square().sum((2, 3)).T,
        model["gpt"].weight.square().T,
    ]
    expected = torch.stack([s[mask].sum() / s.sum() for s in squares]).detach()
    torch.testing.assert_close(reg.values.float(), expected)


def test_transformers_conv1d() -> None:
    utils = pytest.importorskip("transformers.pytorch_utils")
    layer = utils.Conv1D(12, 8)  # 12 outputs, 8 inputs: weight [8, 12]
    model = nn.ModuleDict({"c_fc": layer})
    clusters = Clusters.equal(12, 8, 4)
    reg = ClusterabilityLoss(model, "c_fc", clusters=clusters)
    expected = clusterability(layer.weight.T, clusters).detach()
    torch.testing.assert_close(reg.values[0].float(), expected)


def test_state_dict_keeps_the_clusters() -> None:
    model = network()
    shuffled = Clusters(torch.randint(0, 4, (8,)), torch.randint(0, 4, (8,)), 4)
    reg = ClusterabilityLoss(model, "2", clusters=shuffled)
    other = ClusterabilityLoss(model, "2")
    other.load_state_dict(reg.state_dict())
    torch.testing.assert_close(other(), reg())
    torch.testing.assert_close(copy.deepcopy(reg)(), reg())


@pytest.mark.slow
def test_compiles_to_one_graph() -> None:
    model = network()
    reg = ClusterabilityLoss(model, ["0", "2"], n_clusters=2)

    def loss(x: Tensor) -> Tensor:
        total: Tensor = model(x).square().mean() + reg()
        return total

    x = torch.randn(5, 6)
    weights = [model[0].weight, model[2].weight]
    expected = torch.autograd.grad(loss(x), weights)
    found = torch.autograd.grad(torch.compile(loss, fullgraph=True)(x), weights)
    torch.testing.assert_close(found, expected)


def test_follows_replaced_and_cast_weights() -> None:
    model = network()
    reg = ClusterabilityLoss(model, "2", n_clusters=2)
    model.double()
    model[2].weight = nn.Parameter(torch.ones(8, 8, dtype=torch.float64))
    assert reg().dtype == torch.float64
    assert reg.values[0] == 0.5


def share(weight: Tensor, clusters: Clusters) -> Tensor:
    """Clusterability by plain torch."""
    squares = weight.double().square()
    return squares[clusters.mask()].sum() / squares.sum()


RECOMPUTED: dict[str, Any] = {
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 20),
    "old weight_norm": torch.nn.utils.weight_norm,
    "old spectral_norm": torch.nn.utils.spectral_norm,
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("way", RECOMPUTED)
def test_weights_that_are_recomputed_in_each_pass(way: str) -> None:
    model = network()
    RECOMPUTED[way](model[2])
    reg = ClusterabilityLoss(model, ["2", "0"], n_clusters=2, alpha=3.0)
    clusters = [Clusters.equal(8, 8, 2), Clusters.equal(8, 6, 2)]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x = torch.randn(5, 6)
    for _ in range(4):
        optimizer.zero_grad()
        (model(x).square().mean() + reg()).backward()
        reg().backward()  # a second backward, without a pass in between
        optimizer.step()
        buffers = {name: b.clone() for name, b in model.named_buffers()}
        found, values = reg(), reg.values
        assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())
        model.eval()(x)  # now the layers hold the weights of this pass
        weights = [model[2].eval().weight, model[0].weight]
        model.train()
        expected = torch.stack([share(w, c) for w, c in zip(weights, clusters, strict=True)])
        # In the order in which the model registers its layers.
        torch.testing.assert_close(values, expected.flip(0).detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.double(), -3 * expected.mean(), rtol=1e-5, atol=1e-6)


def test_a_shared_weight_counts_once() -> None:
    model = network()
    model.append(nn.Linear(8, 8))
    model[5].weight = model[2].weight
    reg = ClusterabilityLoss(model, ["2", "4", "5"], n_clusters=2)
    assert reg.layers == ("2", "4")
    assert len(reg.values) == 2


def test_a_loss_built_in_inference_mode_trains() -> None:
    model = network()
    with torch.inference_mode():
        reg = ClusterabilityLoss(model, "2")
    reg().backward()
    assert model[2].weight.grad is not None


def test_old_name_of_alpha_warns() -> None:
    model = network()
    with pytest.warns(
        DeprecationWarning, match=r"ClusterabilityLoss\(weight=...\) is now .*alpha="
    ):
        reg = ClusterabilityLoss(model, "2", weight=3.0)  # type: ignore[call-arg]
    assert reg.alpha == 3.0
    with pytest.warns(DeprecationWarning, match="weight is now ClusterabilityLoss.alpha") as caught:
        reg.weight = 6.0
    assert caught[0].filename == __file__
    with pytest.warns(DeprecationWarning, match="weight is now"):
        assert reg.weight == 6.0
    torch.testing.assert_close(reg().double(), -6 * reg.values[0])


def test_bad_input() -> None:
    model = modfast.models.MLP([6, 8, 8, 4])
    with pytest.raises(ValueError, match="'fc22'.*did you mean: 'fc2'"):
        ClusterabilityLoss(model, "fc22")
    with pytest.raises(ValueError, match="layers="):
        ClusterabilityLoss(model, [])
    with pytest.raises(ValueError, match="'act1'.*no such suitable module"):
        ClusterabilityLoss(model, "act1")
    with pytest.raises(ValueError, match="'fc3'.*got 5 clusters for a 4 x 8 weight"):
        ClusterabilityLoss(model, "fc3", n_clusters=5)
    with pytest.raises(ValueError, match="clusters has 'fc9'.*'fc2'"):
        ClusterabilityLoss(model, "fc2", clusters={"fc9": Clusters.equal(8, 8, 2)})
    with pytest.raises(ValueError, match="8 outputs and 7 inputs do not fit the weight of 'fc2'"):
        ClusterabilityLoss(model, "fc2", clusters=Clusters.equal(8, 7, 2))
    with pytest.raises(ValueError, match="alpha must be finite, got nan"):
        ClusterabilityLoss(model, "fc2", alpha=float("nan"))
    with pytest.raises(TypeError, match="alpha must be a number, got '3'"):
        ClusterabilityLoss(model, "fc2", alpha="3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="grouped"):
        ClusterabilityLoss(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), "0")
    with torch.no_grad():
        model.fc2.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="weight of 'fc2' must be finite, got 1 of 64"):
        ClusterabilityLoss(model, "fc2")
