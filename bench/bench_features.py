"""What units respond to, and which edges count: against the notebook's loop and plain torch.

Images are MNIST's where MODFAST_MNIST_ROOT names a folder with it, else random ones, for which the
notebook's loader has no counterpart and is left out.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from timing import Compare
from torch import Tensor
from torch.nn import functional

import modfast
from modfast import ops
from modfast.models import MLP

FORWARD, NOTEBOOK = "forward passes alone", "notebook, a loader pass per unit"
TOPK, EACH = "forward + torch.topk", "a masked forward pass per edge"
UNITS, K = 64, 50
no_grad = torch.no_grad()


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    if root := os.environ.get("MODFAST_MNIST_ROOT"):
        return modfast.data.load("mnist", root=root).train
    return torch.randn(60_000, 1, 28, 28), torch.randint(0, 10, (60_000,))


def network() -> MLP:
    torch.manual_seed(0)
    return MLP([784, UNITS, UNITS, 10], bias=False).eval()


def check(top: modfast.TopActivations, activations: Tensor) -> None:
    """Values as those of topk, and each sample's activation the one that is told."""
    torch.testing.assert_close(top.values, activations.topk(top.values.shape[1], 0).values.T)
    torch.testing.assert_close(top.values, activations.T.gather(1, top.indices))


@pytest.mark.short
def test_every_site(compare: Compare, images: tuple[Tensor, Tensor]) -> None:
    x, y = images
    model, sites = network(), ["fc1", "act1", "fc2", "act2", "fc3"]
    found = modfast.max_activating(model, (x, y), sites)
    for site, activations in modfast.capture(model, x, sites).items():
        check(found[site], activations)
    size = 4096  # as max_activating's own; one pass of all takes as long
    compare(
        "top 20 of all 266 units of 784-64-64-10, 60,000 images",
        {
            "modfast": lambda: modfast.max_activating(model, (x, y), sites, progress=False),
            FORWARD: no_grad(lambda: [model(part) for part in x.split(size)]),
        },
        {FORWARD: 1 / 1.3},
        rounds=9,
    )


def test_one_site(compare: Compare, images: tuple[Tensor, Tensor]) -> None:
    x, y = (each[:10_000] for each in images)
    model = network()
    check(
        modfast.max_activating(model, (x, y), "act1", K)["act1"],
        modfast.capture(model, x, "act1")["act1"],
    )

    def forward_and_topk() -> tuple[Tensor, Tensor]:
        kept: list[Tensor] = []
        handle = model.act1.register_forward_hook(lambda m, a, output: kept.append(output))
        model(x)
        handle.remove()
        values, indices = kept[0].topk(K, 0)
        return values, y[indices]

    peers: dict[str, Callable[[], object]] = {
        "modfast": lambda: modfast.max_activating(model, (x, y), "act1", K, progress=False),
        TOPK: no_grad(forward_and_topk),
    }
    targets, parts = {TOPK: 1.1}, {}
    if root := os.environ.get("MODFAST_MNIST_ROOT"):
        peers[NOTEBOOK] = no_grad(notebook(model, root, len(x)))
        # One unit of 64 is timed.
        targets[NOTEBOOK], parts[NOTEBOOK] = 5000.0, 1 / UNITS
    compare(f"top {K} of {UNITS} units, 10,000 images", peers, targets, rounds=5, parts=parts)


def notebook(model: MLP, root: str, n: int) -> Callable[[], object]:
    """A whole pass over the loader for one unit, which collects activations and sorts them."""
    from torchvision import datasets, transforms

    normalize = transforms.Normalize((0.1307,), (0.3081,))
    transform = transforms.Compose([transforms.ToTensor(), normalize])
    dataset = datasets.MNIST(root, train=True, transform=transform)
    loader = torch.utils.data.DataLoader(torch.utils.data.Subset(dataset, range(n)), 64)

    def run() -> list[tuple[float, int]]:
        found = []
        for batch, labels in loader:
            activations = model.act1(model.fc1(batch.flatten(1)))
            for i in range(len(batch)):
                found.append((activations[i, 0].item(), labels[i].item()))
        return sorted(found, reverse=True)[:K]

    return run


def test_alone(compare: Compare) -> None:
    x = torch.randn(10_000, UNITS).relu()
    empty = torch.full((UNITS, K), -torch.inf), torch.full((UNITS, K), -1)

    def ours() -> Tensor:
        values, indices = (each.clone() for each in empty)
        ops.update_top_(values, indices, x, 0)
        return values

    torch.testing.assert_close(ours(), x.topk(K, 0).values.T)
    compare(
        f"top {K} alone, {UNITS} units, 10,000 samples",
        {
            "modfast": ours,
            "torch.topk": lambda: x.topk(K, 0),
            "torch.topk, transposed": lambda: x.T.contiguous().topk(K, 1),
        },
        {"torch.topk": 2.0, "torch.topk, transposed": 2.0},
    )


def pairs(n: int = 64) -> tuple[MLP, Tensor, Tensor]:
    """64-64-64-10 of digits' size, and inputs with those that they are compared with."""
    torch.manual_seed(0)
    x = torch.randn(n, UNITS)
    return MLP([UNITS, UNITS, UNITS, 10]).eval(), x, x.roll(1, 0)


def masked(model: MLP, x: Tensor, other: Tensor) -> Callable[[list[Tensor]], Tensor]:
    """The network with masks over its weights, the other edges carrying the corrupted run."""
    layers = [model.fc1, model.fc2, model.fc3]
    inputs = [other, *modfast.capture(model, other, ["act1", "act2"]).values()]

    def run(masks: list[Tensor]) -> Tensor:
        h = x
        for layer, mask, corrupted in zip(layers, masks, inputs, strict=True):
            weight = layer.weight
            h = functional.linear(h, weight * mask, layer.bias) + corrupted @ (weight * ~mask).T
            h = h if layer is model.fc3 else h.relu()
        return h

    return run


def full(model: MLP) -> list[Tensor]:
    return [torch.ones_like(p, dtype=torch.bool) for p in model.parameters() if p.dim() == 2]


def divergence(p: Tensor, logits: Tensor) -> Tensor:
    return (p.exp() * (p - logits.double().log_softmax(1))).sum(1).mean()


@pytest.mark.short
@torch.no_grad()
def test_exact(compare: Compare) -> None:
    model, x, other = pairs()
    found = modfast.attribute_edges(model, x, other, method="exact")
    run, log_p, part = masked(model, x, other), model(x).double().log_softmax(1), 64

    def some() -> Tensor:
        """The first edges of the first layer, of which as many end at each of its units."""
        values = []
        for sender in range(part):
            masks = full(model)
            masks[0][0, sender] = False
            values.append(divergence(log_p, run(masks)))
        return torch.stack(values)

    torch.testing.assert_close(some(), found.scores["input", "fc1"][:part, 0], rtol=0, atol=1e-6)
    n = sum(each.numel() for each in found.scores.values())
    compare(
        f"exact ablation of {n:,} edges, 64-64-64-10, 64 samples",
        {
            "modfast": lambda: modfast.attribute_edges(
                model, x, other, method="exact", progress=False
            ),
            "modfast, eap-ig": lambda: modfast.attribute_edges(model, x, other, method="eap-ig"),
            EACH: no_grad(some),
        },
        rounds=5,
        parts={EACH: part / n},
    )


@torch.no_grad()
def test_discovery(compare: Compare) -> None:
    model, x, other = pairs()
    model, x, other = model.double(), x.double(), other.double()
    threshold, part = 1e-5, UNITS
    circuit = modfast.discover_circuit(model, x, other, threshold, progress=False)
    run, log_p = masked(model, x, other), model(x).log_softmax(1)

    def some(n: int = part) -> Tensor:
        """The decisions on the first n edges into the logits."""
        masks, value = full(model), torch.zeros((), dtype=torch.float64)
        for receiver, sender in torch.cartesian_prod(torch.arange(10), torch.arange(UNITS))[:n]:
            masks[2][receiver, sender] = False
            without = divergence(log_p, run(masks))
            if without - value < threshold:
                value = without
            else:
                masks[2][receiver, sender] = True
        return masks[2]

    assert torch.equal(some(10 * UNITS).T, circuit.masks["fc2", "fc3"])
    compare(
        f"circuit of {circuit.n_edges:,} of {circuit.n_total:,} edges, 64-64-64-10, 64 samples",
        {
            "modfast": lambda: modfast.discover_circuit(model, x, other, threshold, progress=False),
            EACH: no_grad(some),
        },
        rounds=5,
        parts={EACH: part / circuit.n_total},
    )
