"""Effective information against the dense matrices, closed forms without kinds, and a forward pass.

The ratio to a forward pass of one image is below 1 where modfast takes longer than one.
"""

from __future__ import annotations

import math

import pytest
import torch
from timing import Compare
from torch import Tensor, nn
from torch.nn import functional

import modfast

DENSE, ROUGH = "dense matrix, torch", "dense matrix, torch, float32"
CONVOLUTIONS = "transposed convolutions, every position"
FORWARD = "forward pass of one image"
PERTURBED = "scikit-learn loop over pairs"


def bits(n_rows: int, entropy: Tensor, column: Tensor) -> list[float]:
    """EI, determinism and degeneracy of rows' entropies in nats and columns' sums."""
    column = column.double().flatten()
    mean = float(entropy.double().sum()) / n_rows
    spread = float(torch.special.entr(column / column.sum()).sum())
    return [each / math.log(2) for each in (spread - mean, mean, spread)]


def dense(conv: nn.Conv2d, shape: tuple[int, ...], dtype: torch.dtype) -> list[float]:
    """What one-hot inputs give is the matrix; then its rows and columns, in place."""
    n_in, weight = math.prod(shape), conv.weight.to(dtype)
    one_hot = torch.eye(n_in, dtype=dtype).unflatten(1, shape)
    rows = functional.conv2d(one_hot, weight, None, conv.stride, conv.padding).flatten(1).relu_()
    rows /= rows.sum(1, keepdim=True).clamp_(min=1e-38)
    return bits(n_in, torch.special.entr(rows).sum(1), rows.sum(0))


def convolutions(conv: nn.Conv2d, shape: tuple[int, ...]) -> list[float]:
    """Row sums of every position by transposed convolutions of ones, column sums by one more."""
    _, height, width = shape
    weight = conv.weight.double().relu()
    terms = torch.special.xlogy(weight, weight)
    x = torch.zeros(1, *shape, dtype=torch.float64)
    ones = torch.ones_like(functional.conv2d(x, weight, None, conv.stride, conv.padding))
    both = [
        torch.ops.aten.convolution_backward(
            *(ones, x, each, None, conv.stride, conv.padding, (1, 1), False, (0, 0), 1),
            [True, False, False],
        )[0]
        for each in (weight, terms)
    ]
    row, term = (each[..., :height, :width] for each in both)
    entropy = (row.log() - term / row).where(row > 0, 0.0)
    reciprocal = row.reciprocal().where(row > 0, 0.0)
    column = functional.conv2d(reciprocal, weight, None, conv.stride, conv.padding)
    return bits(x.numel(), entropy, column)


@torch.no_grad()
def found(model: nn.Module, shape: tuple[int, ...]) -> list[float]:
    result = modfast.effective_information(model, shape)
    return [result.ei, result.determinism, result.degeneracy]


def check(ours: list[float], theirs: list[float], error: float) -> None:
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < error, (ours, theirs)


@pytest.mark.short
@torch.no_grad()
def test_convolution(compare: Compare) -> None:
    torch.manual_seed(0)
    conv, shape = nn.Conv2d(3, 16, 3, padding=1).eval(), (3, 28, 28)
    check(found(conv, shape), dense(conv, shape, torch.float64), 1e-9)
    # As many digits take a matrix in float64.
    check(found(conv, shape), dense(conv, shape, torch.float32), 1e-4)
    check(found(conv, shape), convolutions(conv, shape), 1e-9)
    compare(
        "effective information, conv 3 to 16, 3 x 3, 28 x 28",
        {
            "modfast": lambda: found(conv, shape),
            DENSE: torch.no_grad()(lambda: dense(conv, shape, torch.float64)),
            ROUGH: torch.no_grad()(lambda: dense(conv, shape, torch.float32)),
            CONVOLUTIONS: torch.no_grad()(lambda: convolutions(conv, shape)),
        },
        {DENSE: 1500.0},
        rounds=7,
    )


@torch.no_grad()
def test_large_convolution(compare: Compare) -> None:
    torch.manual_seed(0)
    conv, shape = nn.Conv2d(64, 128, 3, stride=2, padding=1).eval(), (64, 56, 56)
    check(found(conv, shape), convolutions(conv, shape), 1e-9)
    compare(
        "effective information, conv 64 to 128, 3 x 3, stride 2, 56 x 56",
        {
            "modfast": lambda: found(conv, shape),
            CONVOLUTIONS: torch.no_grad()(lambda: convolutions(conv, shape)),
        },
    )


@pytest.mark.short
@pytest.mark.parametrize("name", ["ResNet-18", "VGG-11"])
def test_network(compare: Compare, name: str) -> None:
    """The forward pass that finds the shapes is part of modfast's time."""
    models = pytest.importorskip("torchvision.models", exc_type=(ImportError, RuntimeError))
    torch.manual_seed(0)
    model = getattr(models, name.lower().replace("-", ""))(weights=None).eval()
    x = torch.zeros(1, 3, 224, 224)
    layers = modfast.effective_information(model, (3, 224, 224)).layers
    module = model.get_submodule(layers[0].name)
    assert isinstance(module, nn.Conv2d)
    with torch.no_grad():
        alone = convolutions(module, (3, 224, 224))
    check([layers[0].ei, layers[0].determinism, layers[0].degeneracy], alone, 1e-9)
    compare(
        f"effective information, {name}, 224 x 224",
        {
            "modfast": lambda: found(model, (3, 224, 224)),
            FORWARD: torch.no_grad()(lambda: model(x)),
        },
        {FORWARD: 1 / 3} if name == "ResNet-18" else {},
    )


def test_perturbation(compare: Compare) -> None:
    """EI by parts of a layer, from 10,000 samples of noise."""
    mutual_info_score = pytest.importorskip("sklearn.metrics").mutual_info_score
    torch.manual_seed(0)
    layer, bins, n = nn.Linear(30, 20), 16, 10_000
    options = {"correction": None, "samples": n, "tolerance": None, "progress": False}

    def ours() -> float:
        found = modfast.perturbational_ei(layer, 30, bins=bins, seed=0, **options)
        return found.bits

    @torch.no_grad()
    def loop() -> float:
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(n, 30, generator=generator, dtype=torch.float64).float()
        y = layer(x)
        x = modfast.digitize(x, bins, range=(0.0, 1.0)).numpy()
        y = modfast.digitize(y, bins, range="column").numpy()
        pairs = [mutual_info_score(x[:, i], y[:, j]) for i in range(30) for j in range(20)]
        return sum(pairs) / math.log(2)

    check([ours()], [loop()], 1e-6)
    compare(
        "EI by perturbation, linear 30 to 20, 10,000 samples, 16 bins",
        {"modfast": ours, PERTURBED: loop},
        rounds=5,
    )
