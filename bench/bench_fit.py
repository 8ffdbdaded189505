"""Training MNIST into clusters: `fit` against the notebook's loop and a plain in-memory one.

Needs MNIST: set MODFAST_MNIST_ROOT to a folder that torchvision.datasets.MNIST takes.
"""

from __future__ import annotations

import pytest
import torch
from timing import Compare
from torch import Tensor, nn
from torch.nn import functional

import modfast
from modfast.models import MLP

N_STEPS = 100


@pytest.mark.short
def test_fit(compare: Compare, mnist: modfast.data.Dataset, mnist_root: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    # One epoch of so many samples is N_STEPS steps, for every peer.
    x, y = mnist.train_x[: 64 * N_STEPS], mnist.train_y[: 64 * N_STEPS]
    transform = torchvision.transforms.Compose(
        [
            torchvision.transforms.ToTensor(),
            torchvision.transforms.Normalize((0.1307,), (0.3081,)),
        ]
    )
    images = torchvision.datasets.MNIST(mnist_root, train=True, transform=transform)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.Subset(images, range(len(x))), batch_size=64, shuffle=True
    )
    clusters = modfast.Clusters.equal(64, 64, 4)
    index_lists = [(clusters.rows == c).nonzero()[:, 0].tolist() for c in range(4)]
    mask = clusters.mask().float()

    def start() -> MLP:
        torch.manual_seed(0)
        return MLP([784, 64, 64, 10], bias=False)

    def ours() -> MLP:
        model = start()
        modfast.fit(
            model,
            (x, y),
            epochs=1,
            optimizer=lambda named: modfast.Modularity(named, lr=1e-3, alpha=15.0),
            seed=0,
        )
        return model

    def loss_of(model: nn.Module, images: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        squares = model.fc2.weight**2
        return functional.cross_entropy(model(images), labels) - 15.0 * (
            (squares * mask).sum() / squares.sum()
        )

    def plain() -> MLP:
        model = start()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        for index in order.split(64):
            optimizer.zero_grad()
            loss_of(model, x[index], y[index], mask).backward()
            optimizer.step()
        return model

    def notebook() -> MLP:
        model = start()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        losses = []
        for images, labels in loader:
            rebuilt = torch.zeros(64, 64)
            for members in index_lists:
                rebuilt[torch.tensor(members)[:, None], torch.tensor(members)] = 1
            optimizer.zero_grad()
            loss = loss_of(model, images, labels, rebuilt)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return model

    for p, q in zip(ours().parameters(), plain().parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
    compare(
        f"MNIST training, 784-64-64-10, {N_STEPS} steps of 64",
        {
            "modfast.fit + Modularity": ours,
            "plain in-memory torch loop": plain,
            "notebook, DataLoader": notebook,
        },
        {"plain in-memory torch loop": 1.5, "notebook, DataLoader": 8.0},
        rounds=9,
        block=0.3,
    )
