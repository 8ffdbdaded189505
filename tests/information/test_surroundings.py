"""Autocast, the default device and the default dtype change no measure."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import modfast

GENERATOR = torch.Generator("cpu").manual_seed(0)
X = torch.randn(400, 6, generator=GENERATOR)
Y = torch.tanh(X @ torch.randn(6, 6, generator=GENERATOR)) + 0.1 * X
MODEL = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
COVARIANCE = X.T.cov()
HALVES = [[0, 1, 2], [3, 4, 5]]
SITES = {"a": X, "b": Y}
PART = {"a": [0, 1], "b": [2, 3]}


def gradient(pairing: str) -> Tensor:
    x = X.clone().requires_grad_()
    modfast.soft_mutual_information(x, Y, pairing=pairing).mean().backward()  # type: ignore[arg-type]
    assert x.grad is not None
    return x.grad


def soft_modularity() -> Tensor:
    x = X.clone().requires_grad_()
    found = modfast.modularity_measures({"a": x, "b": Y}, PART, estimator="soft")
    (slope,) = torch.autograd.grad(found.c2.sum(), x)
    return slope


def streamed() -> Tensor:
    histogram = modfast.JointHistogram(10, (-1.0, 1.0))
    return histogram.update(X, Y).compute().mutual_information


MEASURES: dict[str, Callable[[], Any]] = {
    "digitize": lambda: modfast.digitize(X, 10, range=(-1.0, 1.0)),
    "entropy": lambda: modfast.entropy(X, correction="panzeri-treves"),
    "joint_entropy": lambda: modfast.joint_entropy(X, Y),
    "conditional_entropy": lambda: modfast.conditional_entropy(X, Y),
    "mutual_information": lambda: modfast.mutual_information(X, Y, correction="shuffle", seed=0),
    "all": lambda: modfast.mutual_information(X, Y, pairing="all"),
    "notebook": lambda: modfast.mutual_information(X, Y, rule="notebook"),
    "pairwise": lambda: modfast.pairwise_mutual_information(X, Y, n_permutations=9, seed=0).mi,
    "JointHistogram": streamed,
    **{
        f"soft {pairing}": (lambda p: lambda: modfast.soft_mutual_information(X, Y, pairing=p))(
            pairing
        )
        for pairing in ("aligned", "all", "pairwise")
    },
    **{
        f"gradient {pairing}": (lambda p: lambda: gradient(p))(pairing)
        for pairing in ("aligned", "all", "pairwise")
    },
    "soft_conditional_entropy": lambda: modfast.soft_conditional_entropy(X, Y),
    "gaussian": lambda: modfast.gaussian_mutual_information(X, HALVES, unbiased=True),
    "covariance": lambda: modfast.gaussian_mutual_information(y=HALVES, covariance=COVARIANCE),
    "copula": lambda: modfast.copula_mutual_information(X, Y[:, :1]),
    "ksg": lambda: modfast.ksg_mutual_information(X, Y),
    "kmeans": lambda: modfast.kmeans_mutual_information(X, Y, 300),
    "total": lambda: modfast.total_correlation(X, HALVES),
    "modularity": lambda: modfast.modularity_measures(SITES, PART).c2,
    "soft modularity": soft_modularity,
    # Of float64, as the model itself runs under the caller's autocast.
    "jacobian": lambda: modfast.jacobian_mutual_information(
        copy.deepcopy(MODEL).double(), X[:8].double(), "0", HALVES_OF_FOUR
    ),
    "calibrate": lambda: modfast.calibrate(dims=[1], samples=[400], seeds=1, progress=False).bias,
    "clusterability": lambda: modfast.clusterability(X[:6], modfast.Clusters.equal(6, 6, 2)),
    "components": lambda: modfast.principal_components(X)[1],
    "variance": lambda: modfast.variance_explained(torch.ones_like(X[:2]), [X, Y]),
    "physics": lambda: modfast.data.physics(20)[0],
    "physics_grids": lambda: modfast.data.physics_grids(4),
    "digits": lambda: modfast.data.load("digits").train_x,
}
HALVES_OF_FOUR = [[0, 1], [2, 3]]


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


SURROUNDINGS: dict[str, Callable[[], Any]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default device": lambda: torch.device("meta"),
    "default dtype": default_dtype,
}


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
@pytest.mark.parametrize("name", MEASURES)
def test_surroundings_change_no_measure(name: str, surroundings: str) -> None:
    if name == "digits":
        pytest.importorskip("sklearn")
    expected = MEASURES[name]()
    with SURROUNDINGS[surroundings]():
        found = MEASURES[name]()
    assert found.device == expected.device
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", MEASURES)
def test_no_measure_draws_from_the_global_generator(name: str) -> None:
    if name == "digits":
        pytest.importorskip("sklearn")
    before = torch.get_rng_state()
    MEASURES[name]()
    assert torch.equal(torch.get_rng_state(), before)
