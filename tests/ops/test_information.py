"""Counts, information and their permutation nulls against modfast.reference."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
from ops.coding import PAIRINGS, codes, sides
from torch import Tensor

from modfast import ops, reference
from modfast._extension import has_ops
from modfast.ops.information import Pairing

# rows, columns of x and y: nothing, one row, odd sizes, lists of one and of two columns, more
# columns than a chunk of rows of bits holds, several blocks of rows.
SHAPES = [
    (0, 3, 2),
    (5, 0, 2),
    (1, 1, 1),
    (33, 30, 71),
    (1001, 7, 130),
    (9000, 5, 6),
    (70_001, 3, 4),
]
# On the GPU: tiles of products whole and not, tiles of counts, few pairs whose samples are shared.
SMALL = [(0, 3, 2), (5, 0, 2), (1, 1, 1), (33, 15, 43), (65, 7, 40), (8300, 2, 2)]


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize(
    ("bins_x", "bins_y"), [(2, 3), (10, 10), (40, 60), (7, 300), (300, 7), (300, 300), (700, 700)]
)
def test_counts_match_reference(
    bins_x: int, bins_y: int, pairing: Pairing, device: torch.device, small: bool
) -> None:
    n = 5001 // (20 if bins_x == bins_y else 5) if small or bins_x == 700 else 5001
    check_counts(bins_x, bins_y, pairing, device, n)


def check_counts(bins_x: int, bins_y: int, pairing: Pairing, device: torch.device, n: int) -> None:
    for shape in [(0, 2, 2), (1, 1, 1), (33, 5, 5), (n, 3, 3)]:
        x, y = sides(shape, bins_x, bins_y, device)
        found = ops.joint_histogram(x, y, bins_x, bins_y, pairing)
        assert found.dtype == torch.int64
        assert torch.equal(found, reference.joint_histogram(x, y, bins_x, bins_y, pairing))


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_counts_at_every_simd_level(simd: str, pairing: Pairing) -> None:
    for bins in [(2, 3), (10, 10), (40, 60), (300, 7), (200, 300)]:
        check_counts(*bins, pairing, torch.device("cpu"), 5001)


def test_counts_equal_numpy(device: torch.device) -> None:
    x, y = sides((20_000, 3, 3), 12, 20, device)
    expected, *_ = np.histogram2d(
        x.flatten().cpu().numpy(), y.flatten().cpu().numpy(), [np.arange(13), np.arange(21)]
    )
    assert np.array_equal(ops.joint_histogram(x, y, 12, 20, "aligned").cpu().numpy(), expected)


def test_unaligned_codes(device: torch.device) -> None:
    for bins_x, bins_y in [(5, 7), (300, 7), (260, 270)]:
        x, y = (c[0, 1:].view(40, 5) for c in sides((1, 201, 201), bins_x, bins_y, device))
        found = ops.joint_histogram(x, y, bins_x, bins_y, "aligned")
        assert torch.equal(found, reference.joint_histogram(x, y, bins_x, bins_y, "aligned"))
        found = ops.pairwise_information(x, y[:, :1], bins_x, bins_y)[0]
        expected = reference.pairwise_information(x, y[:, :1], bins_x, bins_y, None)[0]
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_cells_beyond_16_bits() -> None:
    n = 300_000
    x, y = codes(n, 1, 300), codes(n, 1, 300, seed=1)
    x[: n // 2], y[: n // 2] = 7, 9
    counts = ops.joint_histogram(x, y, 300, 300, "aligned")
    assert counts[7, 9] > 2 * 2**16
    assert torch.equal(counts, reference.joint_histogram(x, y, 300, 300, "aligned"))


@pytest.mark.slow
def test_hundreds_of_millions_of_samples() -> None:
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if free < 3 << 30:
        pytest.skip(f"needs 3 GB of free memory, got {free >> 30}")
    # float32 counters stop at 2^24, which each of two cells passes here.
    n, period = 300_000_000, 3
    x = torch.tensor([0, 0, 1], dtype=torch.uint8).repeat(n // period)[:, None]
    counts = ops.joint_histogram(x, x, 2, 2, "aligned")
    assert counts.tolist() == [[2 * n // 3, 0], [0, n // 3]]
    assert np.array_equal(np.bincount(x[: 3 << 20, 0].numpy()), [2 << 20, 1 << 20])
    information, _ = ops.pairwise_information(x, x, 2, 2)
    entropy = -(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3))
    assert information.item() == pytest.approx(entropy, abs=1e-9)


@pytest.mark.parametrize(("bins_x", "bins_y"), [(2, 3), (10, 10), (17, 33), (130, 70), (5, 300)])
@pytest.mark.slow
def test_information_matches_reference(
    bins_x: int, bins_y: int, device: torch.device, small: bool
) -> None:
    for n, dx, dy in SMALL if small else SHAPES:
        if n * dx * bins_x * dy * bins_y > 10**10:
            n //= 20
        if small and dx * bins_x * dy * bins_y > 100_000:
            dx, dy = 3, 4
        x, y = sides((n, dx, dy), bins_x, bins_y, device)
        found, bias = ops.pairwise_information(x, y, bins_x, bins_y)
        expected, _ = reference.pairwise_information(x, y, bins_x, bins_y, None)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        assert found.dtype == torch.float64
        assert not bias.any()


def test_more_tiles_of_products_than_blocks(device: torch.device) -> None:
    x, y = sides((20, 66, 128), 64, 3, device)
    found = ops.pairwise_information(x, y, 64, 3)[0]
    expected = reference.pairwise_information(x, y, 64, 3, None)[0]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_more_samples_than_one_sum_holds(device: torch.device, small: bool) -> None:
    if small:
        pytest.skip("takes too long on the host")
    x, y = sides((300_001, 30, 31), 3, 5, device)
    found, bias = ops.pairwise_information(x, y, 3, 5, "miller-madow")
    for i, j in [(0, 0), (29, 30), (17, 5)]:
        pair = x[:, i : i + 1], y[:, j : j + 1]
        expected = reference.pairwise_information(*pair, 3, 5, "miller-madow")
        torch.testing.assert_close(found[i, j], expected[0][0, 0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(bias[i, j], expected[1][0, 0], rtol=1e-9, atol=0)


def test_information_is_the_same_at_every_simd_level(simd: str) -> None:
    from modfast import _extension

    assert _extension.library is not None
    for shape in SHAPES:
        for bins_x, bins_y in [(2, 3), (10, 10), (17, 33), (200, 9), (130, 70), (5, 300)]:
            x, y = sides(shape, bins_x, bins_y)
            _extension.library.set_simd_level(simd)
            found = ops.pairwise_information(x, y, bins_x, bins_y)[0]
            _extension.library.set_simd_level("baseline")
            assert torch.equal(found, ops.pairwise_information(x, y, bins_x, bins_y)[0])


@pytest.mark.parametrize("bins", [2, 10, 40, 300])
@pytest.mark.slow
def test_same_bits_for_any_number_of_threads(bins: int, n_threads: int) -> None:
    x, y = sides((30_000, 40, 39), bins, bins)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[None]
    runs = []
    for threads in (n_threads, 1):
        torch.set_num_threads(threads)
        found = ops.pairwise_information(x, y, bins, bins, "miller-madow")
        null = ops.permuted_information(
            x[:500], y[:500], bins, bins, order[:, :500] % 500, found[0]
        )
        counts = ops.joint_histogram(x[:, :39], y, bins, bins, "aligned")
        runs.append([*found, *null, counts, *ops.binned_histogram(x.float(), x.float(), bins)])
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)


def test_information_identities(device: torch.device, small: bool) -> None:
    x, y = sides((100 if small else 4000, 12, 9), 10, 14, device)
    forth = ops.pairwise_information(x, y, 10, 14)[0]
    assert torch.equal(forth, ops.pairwise_information(y, x, 14, 10)[0].t())
    assert (forth >= 0).all()
    own = ops.pairwise_information(x, x, 10, 10)[0].diagonal()
    p = reference.one_hot(x, 10).mean(0)
    torch.testing.assert_close(own, -torch.special.xlogy(p, p).sum(-1), rtol=1e-12, atol=0)
    constant = torch.zeros_like(x)
    assert not ops.pairwise_information(constant, y, 10, 14)[0].any()


def test_one_huge_table(device: torch.device, small: bool) -> None:
    if small:
        pytest.skip("takes too long on the host")
    x, y = sides((3000, 2, 2), 30_000, 32_767, device)
    found = ops.pairwise_information(x, y, 30_000, 32_767, "miller-madow")
    # The same without empty rows and columns.
    small = [torch.unique(c, return_inverse=True)[1].to(torch.int16) for c in (x, y)]
    bins = [int(c.max()) + 1 for c in small]
    expected = ops.pairwise_information(*small, *bins, "miller-madow")
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


@pytest.mark.parametrize("correction", ["miller-madow", "panzeri-treves"])
def test_bias_matches_reference(correction: Any, device: torch.device, small: bool) -> None:
    # In rows of bits both ways, pair by pair, and sorted. On the GPU in products, in tiles, in
    # memory, and in several tables.
    for shape, bins in [
        ((200, 9, 30), (8, 9)),
        ((200, 30, 9), (8, 9)),
        ((50, 2, 1), (5, 40)),
        ((1, 2, 2), (2, 2)),
        ((8300, 1, 2), (3, 4)),
        ((40, 1, 2), (300, 300) if small else (3000, 1500)),
    ]:
        x, y = sides(shape, *bins, device)
        _, bias = ops.pairwise_information(x, y, *bins, correction)
        cells = [torch.unique(c, return_inverse=True)[1].to(c.dtype) for c in (x, y)]
        if bins[0] > 1000:  # a smaller table for the reference, the same for filled cells only
            if correction == "panzeri-treves":
                continue
            x, y = cells
            bins = int(x.max()) + 1, int(y.max()) + 1
        expected = reference.pairwise_information(x, y, *bins, correction)[1]
        torch.testing.assert_close(bias, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("correction", ["miller-madow", "panzeri-treves"])
def test_correction_takes_nearly_all_of_the_bias_away(correction: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(1000, 20, generator=generator) for _ in range(2))
    x, y = (ops.digitize(v, 8, per_column=True)[0] for v in (x, y))
    found, bias = ops.pairwise_information(x, y, 8, 8, correction)
    # 400 pairs: the mean's own spread is about 1 % of the bias.
    assert abs((found - bias).mean()) < 0.05 * found.mean()


def test_permutations_match_reference(device: torch.device, small: bool) -> None:
    n = 40 if small else 300
    for shape, bins in [((n, 4, 30), (6, 5)), ((n, 30, 4), (6, 300)), ((1, 1, 1), (2, 2))]:
        x, y = sides(shape, *bins, device)
        generator = torch.Generator().manual_seed(0)
        orders = torch.stack([torch.randperm(shape[0], generator=generator) for _ in range(4)])
        orders = orders.to(device)
        observed = ops.pairwise_information(x, y[orders[0]], *bins)[0]
        found = ops.permuted_information(x, y, *bins, orders, observed)
        expected = reference.permuted_information(x, y, *bins, orders, observed)
        assert torch.equal(found[0], expected[0])
        assert (found[0] >= 1).all()  # the first null is the observed
        for a, b in zip(found[1:], expected[1:], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_nulls_without_samples(device: torch.device) -> None:
    x, y = sides((0, 2, 3), 4, 5, device)
    observed = torch.tensor([[0.0, 1e-13, 1.0]] * 2, dtype=torch.float64, device=device)
    orders = torch.empty(6, 0, dtype=torch.int64, device=device)
    at_least, mean, m2 = ops.permuted_information(x, y, 4, 5, orders, observed)
    assert at_least.tolist() == [[6, 6, 0]] * 2
    assert not mean.any()
    assert not m2.any()


def test_no_permutations(device: torch.device) -> None:
    x, y = sides((30, 2, 3), 4, 5, device)
    orders = torch.empty(0, 30, dtype=torch.int64, device=device)
    observed = torch.zeros(2, 3, dtype=torch.float64, device=device)
    assert not any(r.any() for r in ops.permuted_information(x, y, 4, 5, orders, observed))


def test_non_contiguous_codes(device: torch.device) -> None:
    x, y = sides((60, 4, 6), 5, 7, device)
    found = ops.pairwise_information(x[::2], y.t().contiguous().t()[::2], 5, 7)[0]
    expected = ops.pairwise_information(x[::2].contiguous(), y[::2].contiguous(), 5, 7)[0]
    assert torch.equal(found, expected)


def calls(device: torch.device) -> list[tuple[str, tuple[Any, ...]]]:
    x, y = sides((30, 4, 4), 5, 7, device)
    values = torch.randn(30, 4, device=device)
    orders = torch.arange(30, device=device).repeat(2, 1)
    limits = torch.tensor([[-1.0, 1.0]], device=device)
    return [
        ("digitize", (values, 5, None, True, "uniform")),
        ("digitize", (values.half(), 300, limits, False, "notebook")),
        ("digitize_edges", (values, limits)),
        ("joint_histogram", (x, y, 5, 7, "aligned")),
        ("joint_histogram", (x, y, 5, 7, "pairwise")),
        ("binned_histogram", (values, values, 5, None, limits, "uniform")),
        ("pairwise_information", (x, y, 5, 7, "miller-madow")),
        ("permuted_information", (x, y, 5, 7, orders, torch.zeros(4, 4).double().to(device))),
    ]


@pytest.mark.skipif(not has_ops(), reason="modfast's library is not built")
@pytest.mark.slow
def test_opcheck(device: torch.device) -> None:
    for name, arguments in calls(device):
        torch.library.opcheck(getattr(torch.ops.modfast, name).default, arguments)


@pytest.mark.slow
def test_compile(device: torch.device) -> None:
    def measure(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        x_codes, _, bad = ops.digitize(x, 6, per_column=True)
        y_codes = ops.digitize_edges(y, torch.zeros(1, 1, device=y.device))
        found = ops.pairwise_information(x_codes, y_codes, 6, 2, "miller-madow")
        return *found, bad, ops.joint_histogram(x_codes, y_codes, 6, 2, "all")

    x, y = torch.randn(50, 3, device=device), torch.randn(50, 2, device=device)
    compiled = torch.compile(measure, fullgraph=True)(x, y)
    for a, b in zip(compiled, measure(x, y), strict=True):
        assert torch.equal(a, b)
