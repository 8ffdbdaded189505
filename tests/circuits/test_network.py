"""Models that attribute_edges and discover_circuit refuse, and arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import modfast
from modfast import Clusters, attribute_edges
from modfast.models import MLP


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(x + self.fc1(x))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.fc(x))


class Halves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 4), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x).view(-1, 2))


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_models_that_are_no_chain() -> None:
    x = torch.randn(2, 9, 6)

    def refuses(model: nn.Module, message: str, inputs: Tensor = x) -> None:
        with pytest.raises(ValueError, match=message):
            attribute_edges(model, *inputs, torch.arange(9) % 3)

    refuses(
        Residual(), "must be a chain of .*, got 'add', which takes or returns more than the one"
    )
    refuses(Twice(), "model must use each layer once, got 'fc' twice")
    refuses(Branching(), "must make the same calls whatever its input is: .* looks at a value")
    refuses(nn.Sequential(nn.Linear(6, 3), nn.Softmax(1)), "got 'softmax'")
    refuses(nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3)), "got 'layer_norm'")
    refuses(nn.Sequential(nn.ReLU()), "got none")
    wide = torch.randn(2, 9, 4, 6)
    refuses(
        nn.Sequential(nn.Linear(6, 3)), r"must pass \[9, 6\] to '0', got shape \[9, 4, 6\]", wide
    )
    mixed = nn.Sequential(
        nn.Linear(6, 4), nn.Unflatten(1, (2, 2)), nn.Flatten(0, 1), nn.Linear(2, 3)
    )
    refuses(mixed, "got 'unflatten'")
    pool = nn.MaxPool2d(3, 1, 1)  # of the channels too, as there is one dimension less
    flat = nn.Flatten(), nn.Linear(24, 3)
    mixing = nn.Sequential(nn.Conv1d(2, 6, 1), pool, *flat)
    refuses(mixing, "must take each unit of '0' by itself", torch.randn(2, 9, 2, 4))
    refuses(Halves(), "between them, got 'view'")
    groups = nn.Sequential(nn.Conv1d(6, 6, 1, groups=2), nn.Flatten(), nn.Linear(24, 3))
    refuses(groups, "groups=1, got '0'", torch.randn(2, 9, 6, 4))
    refuses(nn.Sequential(nn.Conv1d(6, 3, 1)), r"logits \[n, classes\]", torch.randn(2, 9, 6, 4))


def test_bad_input() -> None:
    model, x = MLP([6, 4, 3]), torch.randn(2, 9, 6)
    y = torch.arange(9) % 3

    def refuses(message: str, *arguments: Any, error: type = ValueError, **options: Any) -> None:
        with pytest.raises(error, match=message):
            attribute_edges(model, *arguments, **options)

    refuses("method must be one of .*, got 'acdc'", *x, y, method="acdc")
    refuses("gradient zero at the clean run", *x)
    refuses("metric='loss' needs targets", *x, metric="loss")
    refuses("metric must be 'kl', 'loss' or a function", *x, metric="nll")
    refuses(r"metric must return one number, or .* \[9\], got \[9, 3\]", *x, metric=lambda z: z)
    refuses("metric must be finite, got 1 of 1", *x, metric=lambda z: z.sum() / 0)
    refuses("metric must be differentiable", *x, metric=lambda z: z.argmax(1).sum())
    refuses("corrupted must be as clean", x[0], x[1, :8], y)
    refuses("corrupted must be as clean", x[0], x[1].double(), y)
    refuses("clean must not be empty", x[0, :0], x[1, :0], y[:0])
    refuses("corrupted must be a stream of batches where clean is", [1.0], x[1], y)
    refuses("batch of clean must be a tensor, .* got float", [1.0], [1.0], error=TypeError)
    refuses(r"clean must be \[n, ...\], got shape \(6,\)", *x[:, 0], y)
    refuses("clean must be as the model, torch.float32 on cpu, got torch.float64", *x.double(), y)
    refuses("clean must be a dense tensor in memory", *x.to("meta"), y, error=TypeError)
    refuses("clean must fit the model, whose forward pass failed: mat1 and mat2", *x[..., 1:], y)
    refuses("clean must fit the model, whose forward pass failed: .*dtype", *x.long(), y)
    refuses("targets must be a dense tensor in memory", *x, y.to("meta"), error=TypeError)
    refuses("targets must have one target per sample, got 9 samples and 1", *x, y[0])
    complex_metric = {"metric": lambda z: z.sum() * 1j}
    refuses("metric must return real numbers .*complex64", *x, **complex_metric, error=TypeError)
    refuses("nodes must be a mapping", *x, y, nodes=[[0]], error=TypeError)
    refuses(r"nodes\['fc1'\]: .* lists of integer", *x, y, nodes={"fc1": [0, 1]}, error=TypeError)
    refuses(r"nodes\['fc1'\]: .* lists of integer", *x, y, nodes={"fc1": [[0.5]]}, error=TypeError)
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got function"):
        attribute_edges(lambda x: x, *x, y)  # type: ignore[arg-type]
    refuses("targets must have classes from 0 to 2", *x, y + 1)
    refuses("targets must have one target per sample", *x, y[1:])
    refuses("targets must be int64 classes", *x, torch.rand(9, 3), error=TypeError)
    refuses("steps must be at least 1", *x, y, method="eap-ig", steps=0)
    refuses("nodes='fc3': no such layer; did you mean", *x, y, nodes={"fc3": [[0]]})
    refuses(r"nodes\['fc1'\]: .*must not overlap", *x, y, nodes={"fc1": [[0], [0]]})
    refuses(r"nodes\['fc1'\]: .*indices from 0 to 3, got 4", *x, y, nodes={"fc1": [[4]]})
    refuses(r"nodes\['fc1'\] must be groups", *x, y, nodes={"fc1": "all"})
    clusters = Clusters.equal(3, 6, 2)
    refuses(r"nodes\['fc1'\] must be clusters of 4", *x, y, nodes={"fc1": clusters})
    x[0, 0, 0] = torch.nan
    refuses("clean must be finite", *x, y)
    with torch.no_grad():
        model.fc1.weight[0, 0] = torch.nan
    refuses("the model's logits must be finite", *torch.randn(2, 9, 6), y)


def test_metrics_of_each_sample() -> None:
    """One that gives `[n]` counts as its mean, for edges as for units."""
    torch.manual_seed(0)
    model, (clean, corrupted) = MLP([6, 5, 3]).double(), torch.randn(2, 9, 6).double()
    a, b = torch.randint(0, 3, (2, 9))
    rows = torch.arange(9)
    for method in ("exact", "eap"):
        each = [
            attribute_edges(model, clean, corrupted, method=method, metric=metric).scores
            for metric in (
                modfast.metrics.logit_difference(a, b),
                lambda z: (z[rows, a] - z[rows, b]).mean(),
                lambda z, batch: z[rows, a] - z[rows, b] + 0 * batch.args[0].sum(),
            )
        ]
        for pair, wanted in each[1].items():
            torch.testing.assert_close(each[0][pair], wanted)
            torch.testing.assert_close(each[2][pair], wanted)
