"""Greedy pruning of single weights against brute force, on MNIST, 784-64-64-10, one label.

Brute force sets a weight to 0, runs the label's samples through the network, takes the loss and
puts the weight back: in torch, for some of the weights, and its time is scaled to all of them.
modfast's time is that of the whole call, `modfast.prune_circuit`; for the last layer, whose trials
take less than one forward pass, also that of the operator alone.

Needs MNIST: set MODFAST_MNIST_ROOT to a folder that torchvision.datasets.MNIST takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import pytest
import torch
from timing import Compare
from torch import Tensor
from torch.nn import functional

import modfast
from modfast.models import MLP

BRUTE = "brute force in torch"
LABEL = 9
# layers pruned before, layer -> how often modfast's time must go into brute force's
TARGETS = {
    ((), "fc3"): 300.0,
    (("fc3",), "fc2"): 400.0,
    (("fc3", "fc2"), "fc1"): 900.0,
    ((), "fc1"): 350.0,
}
VISITS = 100  # of brute force


@pytest.fixture(scope="module")
def plain(mnist: modfast.data.Dataset) -> MLP:
    return trained(mnist, 0.0)


@pytest.fixture(scope="module")
def samples(mnist: modfast.data.Dataset) -> tuple[Tensor, Tensor]:
    own = mnist.test_y == LABEL
    return mnist.test_x[own].flatten(1), mnist.test_y[own]


def trained(data: modfast.data.Dataset, alpha: float) -> MLP:
    torch.manual_seed(0)
    model = MLP([784, 64, 64, 10], bias=False)
    optimizer: Callable[..., torch.optim.Optimizer] = partial(torch.optim.SGD, lr=0.1)
    if alpha:
        optimizer = partial(modfast.Modularity, lr=0.1, n_clusters=4, alpha=alpha)
    modfast.fit(model, data.train, epochs=2, optimizer=optimizer, seed=0)
    return model.requires_grad_(False)


def loss_without(model: MLP, weight: Tensor, index: int, x: Tensor, y: Tensor) -> float:
    """The loss if one of a layer's weights is 0; it is put back."""
    before = weight[index].item()
    weight[index] = 0
    found = float(functional.cross_entropy(model(x), y))
    weight[index] = before
    return found


def brute(model: MLP, layer: str, indices: list[int], x: Tensor, y: Tensor) -> None:
    """Trials of weights: one forward pass each, as the loss before is known."""
    weight = model.get_submodule(layer).weight.view(-1)
    for index in indices:
        loss_without(model, weight, index, x, y)


@pytest.mark.short
@pytest.mark.parametrize(("before", "layer"), TARGETS)
def test_layer(
    compare: Compare,
    plain: MLP,
    samples: tuple[Tensor, Tensor],
    before: tuple[str, ...],
    layer: str,
) -> None:
    x, y = samples
    model: MLP = modfast.prune_circuit(plain, x, y, before).apply(plain) if before else plain
    found = modfast.prune_circuit(model, x, y, layer)
    n = found.total
    generator = torch.Generator().manual_seed(0)
    some = torch.randperm(n, generator=generator)[:VISITS].sort().values
    # Where one decision differs, so do those after it: each is checked in the state it was made in.
    exact = MLP([784, 64, 64, 10], bias=False).requires_grad_(False).double()
    exact.load_state_dict(model.state_dict())
    weight = exact.get_submodule(layer).weight.view(-1)
    whole, gone = weight.clone(), ~found.mask[f"{layer}.weight"].flatten()
    margins = found.margins[f"{layer}.weight"].flatten()
    for index in some.tolist():
        weight.copy_(whole)
        weight[:index][gone[:index]] = 0
        running = float(functional.cross_entropy(exact(x.double()), y))
        rise = loss_without(exact, weight, index, x.double(), y) - running
        margin = rise - found.threshold
        assert abs(margin - float(margins[index])) < 1e-6
        assert abs(margin) < 1e-6 or (margin > 0) != bool(gone[index])
    place = f"after {', '.join(before)}" if before else "of the dense network"
    compare(
        f"pruning {layer} {place}, {len(y)} samples",
        {
            "modfast": lambda: modfast.prune_circuit(model, x, y, layer, progress=False),
            BRUTE: lambda: brute(model, layer, some.tolist(), x, y),
        },
        {BRUTE: TARGETS[before, layer]},
        rounds=7,
        parts={BRUTE: len(some) / n},
    )


def test_alone(compare: Compare, plain: MLP, samples: tuple[Tensor, Tensor]) -> None:
    """The last layer's trials, with its inputs given."""
    model, (x, y) = plain, samples
    hidden = model.act2(model.fc2(model.act1(model.fc1(x))))
    weight = model.fc3.weight[None]
    n = weight.numel()
    arguments = (hidden, [weight], [weight.new_zeros(1, 10)], y, torch.tensor([len(y)]))
    order = torch.arange(n)
    found = modfast.prune_circuit(model, x, y, "fc3").margins["fc3.weight"].flatten()
    assert torch.equal(modfast.ops.prune_layer(*arguments, order)[0][0], found)
    some = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:VISITS].tolist()
    compare(
        f"prune_layer alone, fc3, {len(y)} samples",
        {
            "modfast": lambda: modfast.ops.prune_layer(*arguments, order),
            BRUTE: lambda: brute(model, "fc3", some, x, y),
        },
        {BRUTE: TARGETS[(), "fc3"]},
        rounds=7,
        parts={BRUTE: VISITS / n},
    )


def test_labels(compare: Compare, plain: MLP, mnist: modfast.data.Dataset) -> None:
    """All ten labels, the whole network, clustered and plain."""
    models, (x, y) = {"plain": plain, "clustered": trained(mnist, 15.0)}, mnist.test
    circuits = {
        name: modfast.prune_circuit(model, x, y, labels="all") for name, model in models.items()
    }
    for name, model in models.items():
        for label, circuit in circuits[name].items():
            alone = circuit.apply(model)(x[y == label]).double()
            loss = functional.cross_entropy(alone, y[y == label])
            assert abs(float(loss) - float(circuit.loss)) < 1e-6
    compare(
        "circuits of all ten labels, clustered and plain, 10,000 samples",
        {
            "modfast": lambda: [
                modfast.prune_circuit(model, x, y, labels="all", progress=False)
                for model in models.values()
            ],
            "ten seconds": lambda: time.sleep(10.0),
        },
        {"ten seconds": 1.0},
        rounds=3,
    )
