"""rule="notebook" against the source notebook's own loops, written as it wrote them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import modfast
from modfast import (
    conditional_entropy,
    digitize,
    entropy,
    joint_entropy,
    joint_histogram,
    modularity_measures,
    mutual_information,
)

NOTEBOOK = {"rule": "notebook"}


def loop_entropy(x: Tensor, bins: int) -> float:
    counts = torch.histc(x, bins)
    p = counts / counts.sum()
    return float(-(p * torch.log(p + 1e-8)).sum())


def loop_code(value: Tensor, edges: Tensor) -> int:
    return int((edges < value).sum()) - 1  # The minimum's -1 is an index of the last bin.


def loop_counts(x: Tensor, y: Tensor, bins: int) -> Tensor:
    x_edges = torch.linspace(x.min(), x.max(), bins, dtype=x.dtype)
    y_edges = torch.linspace(y.min(), y.max(), bins, dtype=y.dtype)
    counts = torch.zeros(bins, bins)
    for j in range(x.shape[1]):
        for i in range(x.shape[0]):
            counts[loop_code(x[i, j], x_edges), loop_code(y[i, j], y_edges)] += 1
    return counts


def loop_conditional(x: Tensor, y: Tensor, bins: int) -> float:
    p = loop_counts(x, y, bins)
    p = p / p.sum()
    p_y = p.sum(0)
    total = torch.zeros(())
    for i in range(bins):
        for j in range(bins):
            total -= p[i, j] * torch.log(p[i, j] / (p_y[j] + 1e-8) + 1e-8)
    return float(total)


def make_input(seed: int) -> tuple[Tensor, Tensor, int]:
    """Normal values, lattices with values on edges, constants, ReLU's zeros; wider y."""
    generator = torch.Generator().manual_seed(seed)
    bins = int(torch.randint(2, 14, (), generator=generator))
    x, y = (torch.randn(25, d, generator=generator) * 3 for d in (3, 3 + seed % 3))
    kind = seed % 6
    if kind == 1:
        x, y = x.round(), (y * 2).round() / 10
    elif kind == 2:
        x, y = x.relu(), y.relu()
    elif kind == 3:
        y = torch.full_like(y, 0.3)
    elif kind == 4:
        x, y = x.double(), y.double()
    elif kind == 5:
        x, y = x * 1e-20, y * 1e12 + 1e12
    return x, y, bins


@pytest.mark.parametrize("seed", range(60))
def test_equals_the_notebooks_loops(seed: int) -> None:
    x, y, bins = make_input(seed)
    assert torch.equal(joint_histogram(x, y, bins, **NOTEBOOK).float(), loop_counts(x, y, bins))
    h_x, h_y, given = loop_entropy(x, bins), loop_entropy(y, bins), loop_conditional(x, y, bins)
    for found, expected in (
        (entropy(x, bins, **NOTEBOOK), h_x),
        (entropy(y, bins, **NOTEBOOK), h_y),
        (conditional_entropy(x, y, bins, **NOTEBOOK), given),
        (joint_entropy(x, y, bins, **NOTEBOOK), h_y + given),
        (mutual_information(x, y, bins, **NOTEBOOK), h_x - given),
    ):
        assert float(found) == pytest.approx(expected, abs=1e-5)


def test_the_minimum_wraps_and_the_maximum_stops_short() -> None:
    x = torch.tensor([0.0, 0.1, 1.0, 2.0, 3.0])
    assert digitize(x, 4, **NOTEBOOK).tolist() == [3, 0, 0, 1, 2]
    assert digitize(torch.ones(3), 4, **NOTEBOOK).tolist() == [3, 3, 3]


def test_wider_y_is_cut_but_its_range_is_that_of_all_columns() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(40, 2), torch.randn(40, 5)
    y[0, 4] = 50.0
    found = conditional_entropy(x, y, **NOTEBOOK)
    assert float(found) == pytest.approx(loop_conditional(x, y, 10), abs=1e-5)
    assert found != conditional_entropy(x, y[:, :2], **NOTEBOOK)
    y[3, 4] = math.nan
    with pytest.raises(ValueError, match="y must be finite, got 1 NaN .* in feature 4"):
        conditional_entropy(x, y, **NOTEBOOK)
    with pytest.raises(ValueError, match="at least as many features as x .*, got 2 and 5"):
        conditional_entropy(torch.randn(40, 5), x, **NOTEBOOK)


def test_its_information_of_independent_values_is_an_artefact() -> None:
    torch.manual_seed(0)
    x, y = torch.rand(2, 500_000)
    found = mutual_information(x, y, **NOTEBOOK)
    assert float(found) == pytest.approx(math.log(10 / 9), abs=2e-3)
    assert mutual_information(x, y) < 2e-4


@pytest.mark.parametrize("function", [joint_entropy, conditional_entropy, mutual_information])
def test_what_the_notebook_has_not_is_refused(function: object) -> None:
    assert callable(function)
    x, y = torch.randn(10, 2), torch.randn(10, 2)
    for options in ({"pairing": "all"}, {"pairing": "pairwise"}, {"correction": "shuffle"}):
        with pytest.raises(ValueError, match="rule='notebook' must have pairing='aligned' and cor"):
            function(x, y, **NOTEBOOK, **options)
    with pytest.raises(ValueError, match="x must hold floating values with rule='notebook'"):
        function(x.long().abs(), y, **NOTEBOOK)
    x[1, 1] = math.inf
    with pytest.raises(ValueError, match="x must be finite, got 1 NaN or infinite .* feature 1"):
        function(x, y, **NOTEBOOK)
    with pytest.raises(ValueError, match="must be finite"):
        entropy(x, **NOTEBOOK)
    with pytest.raises(ValueError, match="x must hold floating values with rule='notebook'"):
        entropy(torch.arange(3), **NOTEBOOK)
    with pytest.raises(ValueError, match="x must span less than torch.float32 holds"):
        entropy(torch.tensor([-3e38, 3e38]), **NOTEBOOK)


def test_modularity_measures_are_the_notebooks() -> None:
    torch.manual_seed(0)
    sites = {name: torch.randn(20, d) for name, d in (("fc1", 8), ("fc2", 8), ("fc3", 6))}
    sites["fc2"] += sites["fc1"]
    modules = [{name: torch.randperm(6)[:3].tolist() for name in sites} for _ in range(3)]
    found = modularity_measures(sites, modules, bins=6, **NOTEBOOK)
    assert found.pairs == (("fc1", "fc2"), ("fc2", "fc3"), ("fc1", "fc3"))
    for row, module in enumerate(modules):
        for column, (first, second) in enumerate(found.pairs):
            rest = [i for i in range(sites[first].shape[1]) if i not in module[first]]
            target, layer = sites[second][:, module[second]], sites[first]
            h = loop_entropy(target, 6)
            h_all = loop_conditional(target, layer, 6)
            h_in = loop_conditional(target, layer[:, module[first]], 6)
            h_out = loop_conditional(target, layer[:, rest], 6)
            for measure, expected in (
                ("c1", h_out - h),
                ("c2", h_all - h_in),
                ("c3", h_all - h_out),
            ):
                value = float(getattr(found, measure)[row, column])
                assert value == pytest.approx(expected, abs=1e-5)


def test_printed_entropies_of_an_untrained_network(mnist_root: Path) -> None:
    # The last was printed as if the layers shared something. The initial weights were not seeded.
    train = modfast.data.load("mnist", root=mnist_root).train
    found = []
    for seed in range(5):
        torch.manual_seed(seed)
        model = modfast.models.MLP([784, 128, 128, 10])
        sites = modfast.capture(model, train[0][:640], ["fc1", "fc2"])
        x, y = sites["fc1"], sites["fc2"]
        five = (
            entropy(x, **NOTEBOOK),
            entropy(y, **NOTEBOOK),
            joint_entropy(x, y, **NOTEBOOK),
            conditional_entropy(x, y, **NOTEBOOK),
            mutual_information(x, y, **NOTEBOOK),
        )
        found.append(torch.stack(five))
    expected = torch.tensor([1.4756, 1.3278, 2.7037, 1.3759, 0.0997], dtype=torch.float64)
    off = (torch.stack(found).mean(0) - expected).abs()
    assert off.max() < 0.3
    assert off[-1] < 0.005
