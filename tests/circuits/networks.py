"""Small networks, their plain twins and inputs for them."""

from __future__ import annotations

import torch
from circuits.plain import Plain, identity
from torch import Tensor, nn

from modfast import Clusters
from modfast.models import MLP


def mlp(bias: bool = True) -> tuple[nn.Module, Plain, Tensor, Tensor]:
    torch.manual_seed(0)
    model = MLP([6, 5, 4, 3], bias=bias).double()
    twin = Plain([model.fc1, model.fc2, model.fc3], [torch.relu, torch.relu, identity])
    return model, twin, *torch.randn(2, 9, 6).double()


class CNN(nn.Module):
    """Strides, padding, work in place, batch norm, pooling, and a view by sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.act, self.pool = nn.ReLU(inplace=True), nn.MaxPool2d(2)
        self.conv2, self.fc = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.act(self.norm(self.conv1(x))))
        x = torch.tanh(self.conv2(x))
        return self.fc(x.view(x.size(0), -1))


def cnn() -> tuple[nn.Module, Plain, Tensor, Tensor]:
    torch.manual_seed(1)
    model = CNN().double()
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2)

    def first(z: Tensor) -> Tensor:
        norm = model.norm
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        z = (z - norm.running_mean[:, None, None]) * scale[:, None, None]
        return nn.functional.max_pool2d((z + norm.bias[:, None, None]).relu(), 2)

    after = [first, lambda z: z.tanh().flatten(1), identity]
    twin = Plain([model.conv1, model.conv2, model.fc], after, columns=[1, 1, 4])
    return model, twin, *torch.randn(2, 5, 2, 7, 7).double()


def grouped() -> tuple[nn.Module, Plain, Tensor, Tensor]:
    """Nodes of several units; those of `NODES`."""
    model, twin, clean, corrupted = mlp()
    twin.labels = [
        torch.tensor([1, 1, 0, 0, 2, 3]),
        torch.tensor([0, 1, 0, 1, 2]),
        torch.zeros(4, dtype=torch.int64),
        torch.arange(3),
    ]
    return model, twin, clean, corrupted


def clustered() -> tuple[nn.Module, Plain, Tensor, Tensor]:
    """Nodes of several channels; those of `CLUSTERS`."""
    model, twin, clean, corrupted = cnn()
    twin.labels = [
        torch.zeros(2, dtype=torch.int64),
        torch.tensor([0, 1, 0]),
        torch.tensor([1, 0, 0, 2]),
        torch.arange(3),
    ]
    return model, twin, clean, corrupted


NODES = {"input": [[2, 3], [0, 1]], "fc1": [[0, 2], [1, 3]], "fc2": "one"}
CLUSTERS = {
    "input": "one",
    "conv1": Clusters.from_indices([[0, 2], [1]], [[0], [1]]),
    "conv2": Clusters([1, 0, 0, -1], [0, 1, 1]),
}
KINDS = {
    "mlp": (mlp, None),
    "cnn": (cnn, None),
    "grouped": (grouped, NODES),
    "clustered": (clustered, CLUSTERS),
}
