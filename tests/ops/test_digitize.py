"""digitize, digitize_edges and binned_histogram against modfast.reference and numpy."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from modfast import ops, reference
from modfast.ops.information import Rule

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
RULES: list[Rule] = ["uniform", "notebook"]
# Nothing, one value, rows shorter and longer than a block.
SHAPES = [(0, 3), (3, 0), (1, 1), (1000, 7), (5001, 1), (33, 3000)]
# On the GPU: one and several rounds of packs, more columns than threads, or than ranges are merged.
SMALL = [(0, 3), (3, 0), (1, 1), (150, 7), (1101, 1), (2, 1100), (8, 1100)]


def values(
    shape: tuple[int, int], dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Tensor:
    """Normal numbers, many of them equal to others, and often on edges."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    x = torch.where(torch.rand(shape, generator=generator) < 0.3, (4 * x).round() / 4, x)
    return x.to(device, dtype)


def same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize("bins", [2, 10, 256, 257, pytest.param(3000, marks=pytest.mark.slow)])
def test_matches_reference(
    bins: int, per_column: bool, rule: Rule, dtype: torch.dtype, device: torch.device, small: bool
) -> None:
    check_matches_reference(bins, per_column, rule, dtype, device, SMALL if small else SHAPES)


def check_matches_reference(
    bins: int,
    per_column: bool,
    rule: Rule,
    dtype: torch.dtype,
    device: torch.device,
    shapes: list[tuple[int, int]],
) -> None:
    for shape in shapes:
        if bins * shape[1] > 10**6 and rule == "notebook":
            continue  # the reference makes edges of each column
        x = values(shape, dtype, device)
        found = ops.digitize(x, bins, per_column=per_column, rule=rule)
        same(found, reference.digitize(x, bins, None, per_column, rule))
        limits = torch.tensor([[-0.75, 0.5]], dtype=found[1].dtype, device=device)
        if per_column:
            limits = limits.repeat(shape[1], 1)
        for given in (limits, limits.double()):
            found = ops.digitize(x, bins, given, per_column=per_column, rule=rule)
            same(found, reference.digitize(x, bins, given, per_column, rule))


@pytest.mark.parametrize("rule", RULES)
def test_every_simd_level(simd: str, rule: Rule) -> None:
    for dtype in DTYPES:
        for per_column in (False, True):
            check_matches_reference(10, per_column, rule, dtype, torch.device("cpu"), SHAPES)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hard_ranges(rule: Rule, dtype: torch.dtype, device: torch.device, small: bool) -> None:
    check_hard_ranges(rule, dtype, device, (2, 10, 1000), 15 if small else 500)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hard_ranges_at_every_simd_level(rule: Rule, dtype: torch.dtype, simd: str) -> None:
    check_hard_ranges(rule, dtype, torch.device("cpu"), (2, 10), 500)


def check_hard_ranges(
    rule: Rule, dtype: torch.dtype, device: torch.device, numbers_of_bins: tuple[int, ...], n: int
) -> None:
    x = values((n, 4), dtype, device).unique()[:, None].to(dtype)
    tiny, huge = torch.finfo(dtype).tiny, torch.finfo(dtype).max
    for hard in (
        x * 0,  # constants
        x * 0 - 3,
        x * tiny,  # subnormal widths
        (x * 4).round() * torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps,
        x / x.abs().max() * huge,  # hi - lo overflows
        1e8 + x,  # bins narrower than the numbers' spacing
        1e5 + x,
        x.sign() * 0.0,
    ):
        if rule == "notebook" and not (hard.max() - hard.min()).isfinite():
            continue  # torch.linspace overflows
        for bins in numbers_of_bins:
            for per_column in (False, True):
                wide = torch.cat([hard, x, hard[:, :1]], 1)
                found = ops.digitize(wide, bins, per_column=per_column, rule=rule)
                same(found, reference.digitize(wide, bins, None, per_column, rule))
                assert (found[0] >= 0).all()
                assert (found[0].long() < bins).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bins", [3, 10, 97, 256])
def test_counts_are_those_of_numpy(bins: int, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    for x in (
        rng.standard_normal(50_000),
        np.linspace(-1, 1, bins * 20 + 1),
        rng.integers(0, 50, 10_000) / 10,
    ):
        x = x.astype(dtype)
        codes, *_ = ops.digitize(torch.from_numpy(x)[:, None], bins, per_column=False)
        found = np.bincount(codes[:, 0].numpy(), minlength=bins)
        assert np.array_equal(found, np.histogram(x, bins)[0])


def decimals(lo: float, hi: float, bins: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Values on, beside and between numpy's edges of a given range, and their codes."""
    wide = np.linspace(lo, hi, bins + 1)
    if dtype == torch.bfloat16:  # unknown to numpy; torch's own way there rounds twice
        parts = [math.frexp(edge) for edge in wide]
        edges = torch.tensor([math.ldexp(round(m * 256), e - 8) for m, e in parts]).double()
    else:
        edges = torch.from_numpy(wide.astype(str(dtype).removeprefix("torch."))).double()
    on = edges.to(dtype)
    up, down = (torch.nextafter(on, torch.full_like(on, end)) for end in (np.inf, -np.inf))
    between = (
        lo
        - 0.05
        + (hi - lo + 0.1) * torch.rand(3000, generator=torch.Generator().manual_seed(0)).double()
    )
    x = torch.cat([on, up, down, between.to(dtype)])
    codes = torch.bucketize(x.double(), edges[1:-1], right=True)
    return x, codes


@pytest.mark.parametrize("dtype", DTYPES)
def test_given_ranges_have_the_edges_of_numpy(
    dtype: torch.dtype, device: torch.device, small: bool
) -> None:
    check_given_ranges(dtype, device, (10, 257) if small else (2, 3, 10, 16, 17, 20, 100, 256, 257))


@pytest.mark.parametrize("dtype", DTYPES)
def test_given_ranges_at_every_simd_level(dtype: torch.dtype, simd: str) -> None:
    check_given_ranges(dtype, torch.device("cpu"), (2, 10, 20, 100, 300))


def check_given_ranges(dtype: torch.dtype, device: torch.device, all_bins: tuple[int, ...]) -> None:
    for bins in all_bins:
        for lo, hi in ((0.0, 1.0), (-1.0, 1.0), (-0.3, 0.7), (0.1, 12.9), (-80.1, 4.2)):
            x, codes = decimals(lo, hi, bins, dtype)
            limits = torch.tensor([[lo, hi]], dtype=torch.float64, device=device)
            x = x[: len(x) // 7 * 7].view(-1, 7).to(device)
            codes = codes[: x.numel()].view(x.shape).to(device)
            for given in (limits, limits.repeat(7, 1)):
                found = ops.digitize(x, bins, given, per_column=len(given) > 1)
                assert torch.equal(found[0].long(), codes)
                same(found, reference.digitize(x, bins, given, len(given) > 1, "uniform"))
            counts, _ = ops.binned_histogram(x, x, bins, limits, limits)
            assert torch.equal(counts.diagonal(), codes.flatten().bincount(minlength=bins))
            assert int(counts.diagonal().sum()) == x.numel()
            if dtype == torch.float32 and device.type == "cpu":
                numbers = x.flatten().numpy()
                expected, _ = np.histogram(numbers, bins, (lo, hi))
                inside = (numbers >= np.float32(lo)) & (numbers <= np.float32(hi))
                own = torch.from_numpy(inside)
                here = codes.flatten().cpu()[own].bincount(minlength=bins).numpy()
                assert np.array_equal(here, expected)


def test_notebook_rule_is_the_notebooks(device: torch.device) -> None:
    x = values((640, 8), torch.float32, device)
    edges = torch.linspace(x.min().item(), x.max().item(), 10).to(device)
    expected = torch.stack([(x > e).long() for e in edges]).sum(0) - 1
    expected[expected < 0] += 10
    codes, *_ = ops.digitize(x, 10, per_column=False, rule="notebook")
    assert torch.equal(codes.long(), expected)
    assert codes.flatten()[x.argmin()] == 9
    assert codes.flatten()[x.argmax()] == 8


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES)
def test_not_finite_values_are_counted(
    rule: Rule, dtype: torch.dtype, device: torch.device, small: bool
) -> None:
    x = values((3000, 5), dtype, device)[:: 10 if small else 1]
    x[7, 1] = x[290, 1] = float("nan")
    x[8, 2], x[9, 2], x[9, 4] = float("inf"), float("-inf"), float("nan")
    for per_column in (False, True):
        found = ops.digitize(x, 10, per_column=per_column, rule=rule)
        same(found, reference.digitize(x, 10, None, per_column, rule))
        assert found[2].tolist() == [0, 2, 2, 0, 1]
    x[:, 0] = float("nan")
    found = ops.digitize(x, 10, per_column=True, rule=rule)
    same(found, reference.digitize(x, 10, None, True, rule))
    counts, bad = ops.binned_histogram(x, x, 10, rule=rule)
    assert bad.tolist() == [len(x) + 5] * 2
    assert counts.sum() == x.numel()


def test_nan_range_stays_in_bounds(device: torch.device) -> None:
    x = values((100, 3), torch.float32, device)
    for limits in ([float("nan"), 1.0], [0.0, float("nan")], [1.0, -1.0]):
        for rule, dtype in product(RULES, (torch.float32, torch.float64)):
            given = torch.tensor([limits], device=device, dtype=dtype)
            codes, *_ = ops.digitize(x, 5, given, per_column=False, rule=rule)
            assert (codes < 5).all()
            assert ops.binned_histogram(x, x, 5, given, None, rule)[0].sum() == x.numel()


@pytest.mark.parametrize("dtype", DTYPES)
def test_unaligned(dtype: torch.dtype, device: torch.device) -> None:
    x = values((1, 351), dtype, device).flatten()[1:].view(50, 7)
    for per_column in (False, True):
        found = ops.digitize(x, 5, per_column=per_column)
        same(found, reference.digitize(x, 5, None, per_column, "uniform"))
    edges = torch.zeros(7, 1, device=device, dtype=reference.compute_dtype(x))
    same((ops.digitize_edges(x, edges),), (reference.digitize_edges(x, edges),))
    found = ops.binned_histogram(x, x.clone(), 5)
    same(found, reference.binned_histogram(x, x, 5, None, None, "uniform"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [1, 9, 255, 256, 2000])
def test_edges(m: int, dtype: torch.dtype, device: torch.device, small: bool) -> None:
    for shape in SMALL if small else SHAPES:
        x = values(shape, dtype, device)
        for rows in {1, shape[1]} - {0}:
            edges = torch.randn(rows, m, device=device, dtype=reference.compute_dtype(x))
            edges = edges.sort(1)[0]
            edges[:, -1] = x.max() if x.numel() else 0
            edges = edges.sort(1)[0]
            same((ops.digitize_edges(x, edges),), (reference.digitize_edges(x, edges),))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES)
def test_binned_histogram(
    rule: Rule, dtype: torch.dtype, device: torch.device, small: bool
) -> None:
    # In one table, in several, and without any on the GPU.
    for shape in SMALL if small else SHAPES:
        x = values(shape, dtype, device)
        y = x.flip(0).square()
        limits = torch.tensor([[-0.5, 0.75]], dtype=reference.compute_dtype(x), device=device)
        for bins in (2, 10, 300, 700) if len(x) == 8 or not small else (10,):
            for given in (None, limits):
                found = ops.binned_histogram(x, y, bins, given, None, rule)
                same(found, reference.binned_histogram(x, y, bins, given, None, rule))


def test_mixed_types(device: torch.device) -> None:
    x, y = (values((99, 3), dtype, device) for dtype in (torch.float64, torch.float16))
    same(ops.binned_histogram(x, y, 4), reference.binned_histogram(x, y, 4, None, None, "uniform"))


def test_same_codes_for_any_number_of_threads(n_threads: int) -> None:
    x = values((40_000, 9), torch.float32)
    found = ops.digitize(x, 10, per_column=True)
    pooled = ops.binned_histogram(x, x, 10)
    torch.set_num_threads(1)
    same(found, ops.digitize(x, 10, per_column=True))
    same(pooled, ops.binned_histogram(x, x, 10))


def test_non_contiguous(device: torch.device) -> None:
    x = values((60, 8), torch.float32, device)
    same(
        ops.digitize(x.t(), 5, per_column=True), reference.digitize(x.t(), 5, None, True, "uniform")
    )


def test_bad_input() -> None:
    x = values((6, 4), torch.float32)
    with pytest.raises(TypeError, match="x must be float32 or .*, got torch.int64"):
        ops.digitize(x.long(), 5, per_column=True)
    with pytest.raises(ValueError, match=r"x must be \[n, d\], got shape \(6,\)"):
        ops.digitize(x[:, 0], 5, per_column=True)
    with pytest.raises(ValueError, match="x must not require grad.*detach it"):
        ops.digitize(x.clone().requires_grad_(), 5, per_column=True)
    for bins in (1, 0, -3, 32_768):
        with pytest.raises(ValueError, match=f"bins must be 2 to 32767, got {bins}"):
            ops.digitize(x, bins, per_column=True)
    with pytest.raises(ValueError, match="rule must be one of 'uniform', 'notebook', got 'x'"):
        ops.digitize(x, 5, per_column=True, rule="x")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="range must be float32 or float64, got torch.float16"):
        ops.digitize(x, 5, torch.zeros(1, 2).half(), per_column=True)
    with pytest.raises(ValueError, match=r"range must be \[1, 2\] or \[4, 2\], got shape \(3, 2\)"):
        ops.digitize(x, 5, torch.zeros(3, 2), per_column=True)
    with pytest.raises(ValueError, match=r"edges must be \[1, m\] or \[4, m\], got shape \(5,\)"):
        ops.digitize_edges(x, torch.zeros(5))
    with pytest.raises(ValueError, match="edges must be 1 to 32766 per column, got 0"):
        ops.digitize_edges(x, torch.zeros(1, 0))
    with pytest.raises(ValueError, match=r"one shape, got \(6, 4\) and \(5, 4\)"):
        ops.binned_histogram(x, x[1:], 5)
    with pytest.raises(TypeError, match="y must be a dense tensor in memory, got a meta"):
        ops.binned_histogram(x, x.to("meta"), 5)
    with pytest.raises(ValueError, match=r"range_x must be \[1, 2\], got shape \(4, 2\)"):
        ops.binned_histogram(x, x, 5, torch.zeros(4, 2))
