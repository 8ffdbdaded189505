"""N2: how much information the wiring itself carries."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import get_args

import torch
from torch import Tensor, nn

from modfast.effective import (
    connectivity_matrix,
    effective_information,
    entropy_bits,
    normalize_rows,
)
from modfast.effective.layers import is_layer
from modfast.effective.wiring import Norm
from modfast.models import MLP
from modfast.reproduce.networks import Networks
from modfast.reproduce.tables import Row, Section

N_UNITS, N_UNIFORM, IMAGE = 16, 256, (1, 12, 12)
NORMS: tuple[Norm, ...] = get_args(Norm)
POOLING = "The source connects every pooled channel to every channel, not each to itself."


def study(networks: Networks) -> Section:
    """The references, and convolutional and trained networks by all three norms."""
    rows = _reference_rows()
    for norm in NORMS:
        pairs = [_of_both(_convolutional(seed), IMAGE, norm) for seed in networks.seeds]
        dense, closed = torch.stack(pairs).T
        rows.append(Row(f"EI, convolutional, {norm}", None, dense, closed, POOLING))
    rows.append(_pooling_row())
    models = networks.tasks(len(networks.seeds))
    for kind, model_of in (("untrained", _untrained(models.sizes)), ("trained", models.model)):
        for norm in NORMS:
            pairs = [_of_both(model_of(seed), models.sizes[:1], norm) for seed in networks.seeds]
            dense, closed = torch.stack(pairs).T
            gap = float((dense - closed).abs().max())
            why = f"The same rule; dense matrices and the closed form differ by {gap:.0e} bits."
            name = f"EI, {'-'.join(map(str, models.sizes))}, {kind}, {norm}"
            rows.append(Row(name, None, dense, closed, why))
    settings = (
        "In bits. As the notebook: dense matrices, normalized row by row; correct: the closed form "
        f"without matrices. Convolutional: 4 filters of 3 x 3 on {IMAGE[1]} x {IMAGE[2]} pixels, "
        "average pooling, 10 outputs; trained: N4's networks."
    )
    return Section("N2: effective information", settings, tuple(rows))


def _reference_rows() -> list[Row]:
    """What the source states for itself."""
    ones, identity = nn.Linear(4, 4, bias=False), nn.Linear(N_UNITS, N_UNITS, bias=False)
    nn.init.ones_(ones.weight)
    nn.init.eye_(identity.weight)
    log_n = math.log2(N_UNITS)
    rows = []
    for name, layer, printed, why in (
        ("4 x 4 ones", ones, (2.0, 2.0, 0.0), "Every unit leads to all alike."),
        (
            f"identity of {N_UNITS}",
            identity,
            (0.0, log_n, log_n),
            f"Every unit leads to one of its own: log2 {N_UNITS}.",
        ),
    ):
        dense, found = _dense(layer, (layer.in_features,), "linear"), _closed(layer)
        rows += [
            Row(f"{quantity}, {name}", printed[i], dense[i, None], found[i, None], why)
            for i, quantity in enumerate(("determinism", "degeneracy", "EI"))
        ]
    uniform = entropy_bits(torch.full((N_UNIFORM,), 1 / N_UNIFORM))[None]
    name = f"entropy of {N_UNIFORM} equal chances"
    return [*rows, Row(name, math.log2(N_UNIFORM), uniform, uniform, "The same rule.")]


def _closed(layer: nn.Linear) -> Tensor:
    found = effective_information(layer, layer.in_features)
    return torch.tensor([found.determinism, found.degeneracy, found.ei])


def _pooling_row() -> Row:
    pool, shape = nn.AvgPool2d(2), (4, 10, 10)
    mixed, own = (
        torch.tensor([effective_information(pool, shape, channel_mixing=mixing).ei])
        for mixing in (True, False)
    )
    return Row("EI, average pooling of 4 channels", None, mixed, own, POOLING)


def _of_both(model: nn.Module, shape: tuple[int, ...], norm: Norm) -> Tensor:
    """EI as the source has it, and by the closed form."""
    exact = effective_information(model, shape, norm).ei
    return torch.stack([_dense(model, shape, norm)[-1], torch.tensor(exact, dtype=torch.float64)])


def _dense(model: nn.Module, shape: tuple[int, ...], norm: Norm) -> Tensor:
    """The source's steps: determinism, degeneracy and EI."""
    entropies, sums, x = [], [], torch.zeros(1, *shape)
    for module in list(model.children()) or [model]:
        if is_layer(module):
            matrix = connectivity_matrix(module, x.shape[1:], channel_mixing=True)
            rows = normalize_rows(matrix, norm)
            entropies.append(entropy_bits(rows, dim=1))
            sums.append(rows.sum(0))
        x = module(x).detach()
    columns = torch.cat(sums)
    determinism, degeneracy = torch.cat(entropies).mean(), entropy_bits(columns / columns.sum())
    return torch.stack([determinism, degeneracy, degeneracy - determinism])


def _convolutional(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(100, 10)
        )


def _untrained(sizes: tuple[int, ...]) -> Callable[[int], nn.Module]:
    def model(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return MLP(sizes)

    return model
