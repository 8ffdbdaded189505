"""Counts and information of binned values, against the libraries that one would use instead."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from timing import Compare
from torch import Tensor

import modfast
from modfast import ops

boost_histogram = pytest.importorskip("boost_histogram")
fast_histogram = pytest.importorskip("fast_histogram")

# Elsewhere torch's int8 product is a plain loop, a hundred times as slow as that of float32.
FAST_INT8 = torch.cpu._is_vnni_supported()
# bins -> least ratios for 10,000 samples of 128 x 128 columns
PAIR_TARGETS = {
    10: {
        "scikit-learn loop": 8000,
        "fast-histogram loop": 250,
        "torch one-hot, float32 product": 50,
        "torch one-hot, int8 product": 15,
    },
    32: {"scikit-learn loop": 3000, "torch one-hot, float32 product": 100},
}


def codes(n: int, d: int, bins: int, seed: int) -> Tensor:
    """Codes of normal numbers."""
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return ops.digitize(x, bins, per_column=True)[0]


def information_of(counts: Tensor) -> Tensor:
    """In float64, from tables `[..., bins, bins]`."""
    n = counts.double()
    total = n.sum((-2, -1), keepdim=True)
    independent = n.sum(-1, keepdim=True) * n.sum(-2, keepdim=True)
    logs = torch.where(n > 0, n * total / independent, 1).log()
    return (n * logs).sum((-2, -1)) / total[..., 0, 0]


def one_hot(codes: Tensor, bins: int, dtype: torch.dtype) -> Tensor:
    """`[n, d * bins]`."""
    every = torch.arange(bins, dtype=codes.dtype)
    return (codes[:, :, None] == every).to(dtype).flatten(1)


def product_information(
    x: Tensor, y: Tensor, bins: int, dtype: torch.dtype, product: Callable[..., Tensor]
) -> Tensor:
    """All pairs by one matrix product of one-hot codes."""
    counts = product(one_hot(x, bins, dtype).t().contiguous(), one_hot(y, bins, dtype))
    return information_of(counts.view(x.shape[1], bins, y.shape[1], bins).transpose(1, 2))


@pytest.mark.parametrize("bins", [pytest.param(10, marks=pytest.mark.short), 32])
def test_pairs(compare: Compare, bins: int) -> None:
    mutual_info_score = pytest.importorskip("sklearn.metrics").mutual_info_score
    clustering = pytest.importorskip("torchmetrics.functional.clustering")
    n, d, some = 10_000, 128, 2  # the loops take the first `some` columns of x and of y
    x, y = codes(n, d, bins, 0), codes(n, d, bins, 1)
    x_columns, y_columns = x.t().contiguous(), y.t().contiguous()
    x_floats, y_floats = (c.double().numpy() for c in (x_columns, y_columns))
    limits = ((-0.5, bins - 0.5), (-0.5, bins - 0.5))

    def loop(measure: Callable[[int, int], float]) -> Callable[[], Tensor]:
        return lambda: torch.tensor(
            [[measure(i, j) for j in range(some)] for i in range(some)], dtype=torch.float64
        )

    def by_fast_histogram(i: int, j: int) -> float:
        table = fast_histogram.histogram2d(x_floats[i], y_floats[j], bins, limits)
        return float(information_of(torch.from_numpy(table)))

    def by_numpy(i: int, j: int) -> float:
        table, *_ = np.histogram2d(x_floats[i], y_floats[j], bins, limits)
        return float(information_of(torch.from_numpy(table)))

    peers: dict[str, Callable[[], object]] = {
        "modfast": lambda: ops.pairwise_information(x, y, bins, bins)[0],
        "scikit-learn loop": loop(
            lambda i, j: float(mutual_info_score(x_columns[i].numpy(), y_columns[j].numpy()))
        ),
        "torchmetrics loop": loop(
            lambda i, j: float(
                clustering.mutual_info_score(x_columns[i].long(), y_columns[j].long())
            )
        ),
        "numpy loop": loop(by_numpy),
        "fast-histogram loop": loop(by_fast_histogram),
        "torch one-hot, float32 product": lambda: product_information(
            x, y, bins, torch.float32, torch.mm
        ),
    }
    if FAST_INT8:
        peers["torch one-hot, int8 product"] = lambda: product_information(
            x, y, bins, torch.int8, torch._int_mm
        )
    found = ops.pairwise_information(x, y, bins, bins)[0]
    for call in peers.values():
        answer = call()
        assert isinstance(answer, Tensor)
        torch.testing.assert_close(answer, found[: len(answer), : len(answer)], rtol=0, atol=1e-6)
    part = some**2 / d**2
    compare(
        f"pairwise information, 10,000 x 128 x 128, {bins} bins",
        peers,
        {name: least for name, least in PAIR_TARGETS[bins].items() if name in peers},
        rounds=7,
        parts={name: part for name in peers if name.endswith("loop")},
    )


@pytest.mark.skipif(not FAST_INT8, reason="this processor has no VNNI for the peer")
def test_many_pairs(compare: Compare) -> None:
    x, y = codes(60_000, 512, 10, 0), codes(60_000, 512, 10, 1)

    def by_product() -> Tensor:
        return product_information(x, y, 10, torch.int8, torch._int_mm)

    found = ops.pairwise_information(x, y, 10, 10)[0]
    torch.testing.assert_close(by_product(), found, rtol=0, atol=1e-6)
    name = "torch one-hot, int8 product"
    compare(
        "pairwise information, 60,000 x 512 x 512, 10 bins",
        {"modfast": lambda: ops.pairwise_information(x, y, 10, 10), name: by_product},
        {name: 15},
        rounds=3,
    )


def test_flat(compare: Compare) -> None:
    """The cost of a pair and sample must not grow: 128 units against a 64th of 1,024."""
    small = codes(10_000, 128, 10, 0), codes(10_000, 128, 10, 1)
    large = codes(10_000, 1024, 10, 0), codes(10_000, 1024, 10, 1)
    name = "modfast, 128 units, a 64th of the pairs"
    compare(
        "pairwise information alone, 10,000 x 1,024 x 1,024, 10 bins",
        {
            "modfast": lambda: ops.pairwise_information(*large, 10, 10),
            name: lambda: ops.pairwise_information(*small, 10, 10),
        },
        {name: 1 / 1.3},
        rounds=5,
        parts={name: 1 / 64},
    )


@pytest.mark.parametrize("bins", [pytest.param(10, marks=pytest.mark.short), 32, 64, 128, 256])
def test_one_pair(compare: Compare, bins: int) -> None:
    n = 10_000_000
    x, y = (torch.randn(n, 1, generator=torch.Generator().manual_seed(i)) for i in range(2))
    low, high = min(x.min(), y.min()).item(), max(x.max(), y.max()).item()
    limits = torch.tensor([[low, high]])
    x_flat, y_flat = x[:, 0].numpy(), y[:, 0].numpy()
    axis = boost_histogram.axis.Regular(bins, low, np.nextafter(high, np.inf))

    def ours() -> Tensor:
        return ops.binned_histogram(x, y, bins, limits, limits)[0]

    def boost() -> Tensor:
        histogram = boost_histogram.Histogram(axis, axis)
        histogram.fill(x_flat, y_flat, threads=2)
        return torch.from_numpy(histogram.values())

    def fast() -> Tensor:
        top = np.nextafter(high, np.inf)
        counts = fast_histogram.histogram2d(x_flat, y_flat, bins, ((low, top), (low, top)))
        return torch.from_numpy(counts)

    def bincount() -> Tensor:
        cells = [((v - low) * (bins / (high - low))).long().clamp_(max=bins - 1) for v in (x, y)]
        found = torch.bincount((cells[0] * bins + cells[1]).flatten(), minlength=bins**2)
        return found.view(bins, bins)

    def numpy() -> Tensor:
        counts, *_ = np.histogram2d(x_flat, y_flat, bins, [[low, high], [low, high]])
        return torch.from_numpy(counts)

    def histogramdd() -> Tensor:
        both = torch.cat([x, y], 1)
        return torch.histogramdd(both, bins, range=[low, high, low, high]).hist

    peers: dict[str, Callable[[], object]] = {
        "modfast": ours,
        "fast-histogram": fast,
        "boost-histogram, 2 threads": boost,
        "torch bincount": bincount,
    }
    if bins == 10:
        peers |= {
            "numpy": numpy,
            "torch.histogramdd": histogramdd,
            "modfast, range found": lambda: ops.binned_histogram(x, y, bins),
        }
    exact = ours()
    assert exact.sum() == n
    for name, call in peers.items():
        counts = call()
        if isinstance(counts, Tensor):
            # Others round a few values to the other side of an edge.
            assert (counts - exact).abs().sum() < 1e-4 * n, name
    compare(
        f"one pair, 10,000,000 samples, {bins} bins",
        peers,
        {"fast-histogram": 6, "boost-histogram, 2 threads": 7, "torch bincount": 15},
        rounds=5,
    )


def test_notebook(compare: Compare) -> None:
    """The notebook's counts: edges over the whole tensor, two loops over samples and units."""
    x, y = (torch.randn(640, 128, generator=torch.Generator().manual_seed(i)) for i in range(2))

    def loop() -> Tensor:
        sides = []
        for values in (x, y):
            edges = torch.linspace(values.min().item(), values.max().item(), 10)
            sides.append(torch.bucketize(values, edges) - 1)
        counts = torch.zeros(10, 10)
        for i in range(640):
            for j in range(128):
                counts[sides[0][i, j], sides[1][i, j]] += 1
        return counts.long()

    def ours() -> Tensor:
        return ops.binned_histogram(x, y, 10, rule="notebook")[0]

    assert torch.equal(ours(), loop())
    name = "loop over samples and units"
    compare(
        "one pair, 640 x 128, the notebook's rule",
        {"modfast": ours, name: loop},
        {name: 5000},
        rounds=7,
    )


@pytest.mark.short
def test_modularity(compare: Compare) -> None:
    """Ten random modules of a 784-128-128-10 network, as in the notebook."""
    generator = torch.Generator().manual_seed(0)
    sites = {
        name: torch.randn(640, d, generator=generator)
        for name, d in (("fc1", 128), ("fc2", 128), ("fc3", 10))
    }
    modules = [
        {name: torch.randperm(x.shape[1], generator=generator)[:9] for name, x in sites.items()}
        for _ in range(10)
    ]
    pairs = (("fc1", "fc2"), ("fc2", "fc3"), ("fc1", "fc3"))

    def codes(x: Tensor) -> Tensor:
        return torch.bucketize(x, torch.linspace(x.min().item(), x.max().item(), 10)) - 1

    def conditional(x: Tensor, y: Tensor) -> Tensor:
        """H(x | y), by a loop over samples and units."""
        x, y, joint = codes(x), codes(y), torch.zeros(10, 10, dtype=torch.float64)
        for i in range(x.shape[0]):
            for j in range(x.shape[1]):
                joint[x[i, j], y[i, j]] += 1
        p = joint / joint.sum()
        return -(p * (p / (p.sum(0) + 1e-8) + 1e-8).log()).sum()

    def loop() -> Tensor:
        """C2 and C3 of the first module."""
        found = []
        for first, second in pairs:
            target, layer = sites[second][:, modules[0][second]], sites[first]
            inside = torch.zeros(layer.shape[1], dtype=torch.bool)
            inside[modules[0][first]] = True
            own, rest = layer[:, modules[0][first]], layer[:, ~inside]
            whole = conditional(target, layer)
            found.append(torch.stack([whole - conditional(target, x) for x in (own, rest)]))
        return torch.stack(found, dim=1)

    def ours(rule: str) -> modfast.ModularityMeasures:
        return modfast.modularity_measures(sites, modules, rule=rule)

    found = ours("notebook")
    expected = torch.stack([found.c2[0], found.c3[0]])
    torch.testing.assert_close(expected, loop(), rtol=1e-5, atol=1e-6)
    name = "notebook's loops"
    compare(
        "modularity measures of ten modules, 640 samples",
        {
            "modfast": lambda: ours("uniform"),
            "modfast, notebook's rule": lambda: ours("notebook"),
            name: loop,
        },
        {name: 2000},
        rounds=5,
        parts={name: 0.1},
    )
