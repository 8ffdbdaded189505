"""Counts and information of binned values on a GPU, beside what it can do and plain torch.

Apart from bench_information.py, whose peers are libraries for the CPU.
"""

from __future__ import annotations

import pytest
import torch
from timing import Compare, in_turn, n_inputs
from torch import Tensor

from modfast import ops, reference

COPY = {"ceiling": 0.8}
BINS = pytest.mark.parametrize("bins", [10, 128])
PRODUCT = "torch int8 product of one-hot codes, alone"


def size(gpu: str) -> tuple[int, int]:
    return (2**19, 256) if gpu == "cuda" else (500, 16)


def values(n: int, d: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """As many as `n_inputs` says."""
    count = n_inputs(n * d * dtype.itemsize, device)
    return [torch.randn(n, d, device=device).to(dtype) for _ in range(count)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("found", [False, True])
def test_digitize(compare: Compare, gpu: str, dtype: torch.dtype, found: bool) -> None:
    """Each column with its range, given or found; torch only searches among given edges."""
    n, d = size(gpu)
    torch.manual_seed(0)
    xs = values(n, d, dtype, gpu)
    limits = torch.tensor([[-2.0, 2.0]], device=gpu).repeat(d, 1)
    edges = reference.inner_edges(limits[:1], 10)[0].to(dtype)
    given = None if found else limits
    codes, _, _ = ops.digitize(xs[0], 10, given, per_column=True)
    expected, _, _ = reference.digitize(
        xs[0][:, :2], 10, None if found else limits[:2], True, "uniform"
    )
    assert torch.equal(codes[:, :2], expected)
    compare(
        f"digitize, {n} x {d}, {str(dtype)[6:]}, ranges {'found' if found else 'given'}",
        {
            "modfast": in_turn(lambda x: ops.digitize(x, 10, given, per_column=True), xs),
            "torch.bucketize": in_turn(lambda x: torch.bucketize(x, edges, out_int32=True), xs),
        },
        COPY,
        device=gpu,
        bytes=(2 if found else 1) * xs[0].nbytes + codes.nbytes,
    )


@BINS
def test_binned(compare: Compare, gpu: str, bins: int) -> None:
    n, d = size(gpu)
    torch.manual_seed(0)
    xs, ys = (values(n, d, torch.float32, gpu) for _ in range(2))
    limits = torch.tensor([[-4.0, 4.0]], device=gpu)

    def ours(pair: tuple[Tensor, Tensor]) -> Tensor:
        return ops.binned_histogram(*pair, bins, limits, limits)[0]

    def bincount(pair: tuple[Tensor, Tensor]) -> Tensor:
        x, y = (((v + 4) * (bins / 8)).int().clamp_(0, bins - 1) for v in pair)
        return torch.bincount((x * bins + y).flatten(), minlength=bins**2).view(bins, bins)

    pairs = list(zip(xs, ys, strict=True))
    # Multiplying alone puts a few values on the other side of an edge.
    assert (ours(pairs[0]) - bincount(pairs[0])).abs().sum() <= 1e-4 * xs[0].numel()
    compare(
        f"binned_histogram, {n} x {d}, {bins} bins",
        {"modfast": in_turn(ours, pairs), "torch bincount": in_turn(bincount, pairs)},
        COPY,
        device=gpu,
        bytes=2 * xs[0].nbytes,
    )


def random_codes(n: int, d: int, bins: int, device: str) -> Tensor:
    """Of normal numbers."""
    x = torch.randn(n, d, device=device)
    return ops.digitize(x, bins, per_column=True)[0]


@BINS
def test_joint(compare: Compare, gpu: str, bins: int) -> None:
    n, d = size(gpu)[0], 4 * size(gpu)[1]
    torch.manual_seed(0)
    pairs = [
        (random_codes(n, d, bins, gpu), random_codes(n, d, bins, gpu))
        for _ in range(n_inputs(2 * n * d, gpu))
    ]

    def ours(pair: tuple[Tensor, Tensor]) -> Tensor:
        return ops.joint_histogram(*pair, bins, bins, "aligned")

    def bincount(pair: tuple[Tensor, Tensor]) -> Tensor:
        cells = pair[0].int() * bins + pair[1]
        return torch.bincount(cells.flatten(), minlength=bins**2).view(bins, bins)

    assert torch.equal(ours(pairs[0]), bincount(pairs[0]))
    compare(
        f"joint_histogram, aligned, {n} x {d}, {bins} bins",
        {"modfast": in_turn(ours, pairs), "torch bincount": in_turn(bincount, pairs)},
        COPY,
        device=gpu,
        bytes=2 * n * d,
    )


def one_hot(codes: Tensor, bins: int) -> Tensor:
    """int8 `[d * bins, n]`, the samples running fastest."""
    found = torch.empty(codes.shape[1], bins, codes.shape[0], dtype=torch.int8, device=codes.device)
    for code in range(bins):
        found[:, code] = (codes == code).t()
    return found.flatten(0, 1)


@pytest.mark.short
@pytest.mark.parametrize(
    ("n", "d", "bins"), [(60_000, 512, 10), (100_000, 4096, 10), (60_000, 512, 32)]
)
def test_pairs(compare: Compare, gpu: str, n: int, d: int, bins: int) -> None:
    """`ops` are those of the product of one-hot codes, whose operands are made beforehand."""
    n, d = (n, d) if gpu == "cuda" else (64, 32)
    torch.manual_seed(0)
    x, y = (random_codes(n, d, bins, gpu) for _ in range(2))
    found = ops.pairwise_information(x, y, bins, bins)[0]
    expected = reference.pairwise_information(x[:, :4], y[:, -4:], bins, bins, None)[0]
    torch.testing.assert_close(found[:4, -4:], expected, rtol=1e-9, atol=1e-12)
    a, b = one_hot(x, bins), one_hot(y, bins).t()
    compare(
        f"pairwise_information, {n} x {d} x {d}, {bins} bins",
        {
            "modfast": lambda: ops.pairwise_information(x, y, bins, bins),
            PRODUCT: lambda: torch._int_mm(a, b),
        },
        {"ceiling": 0.6} if bins == 10 else {},
        rounds=5,
        device=gpu,
        ops=2 * n * (d * bins) ** 2,
    )
