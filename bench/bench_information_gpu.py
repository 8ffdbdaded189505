"""Counts and information of binned values on a GPU, beside what it can do and plain torch.

Apart from bench_information.py, whose peers are libraries for the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from compare import Case, in_turn, n_inputs
from torch import Tensor

from modfast import ops, reference

COPY = {"ceiling": 0.8}
PRODUCT = "torch int8 product of one-hot codes, alone"


def gpu_cases(device: str) -> Iterator[partial[Case]]:
    large = device == "cuda"
    n, d = (2**19, 256) if large else (500, 16)
    for dtype in (torch.float32, torch.bfloat16):
        for found in (False, True):
            yield partial(digitize_case, n, d, dtype, found, device)
    for bins in (10, 128):
        yield partial(binned_case, n, d, bins, device)
        yield partial(joint_case, n, 4 * d, bins, device)
    for samples, units in [(60_000, 512), (100_000, 4096)] if large else [(64, 32)]:
        yield partial(pairs_case, samples, units, 10, {"ceiling": 0.6}, device)
    yield partial(pairs_case, *((60_000, 512) if large else (64, 32)), 32, {}, device)


def values(n: int, d: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """As many as `n_inputs` says."""
    count = n_inputs(n * d * dtype.itemsize, device)
    return [torch.randn(n, d, device=device).to(dtype) for _ in range(count)]


def digitize_case(n: int, d: int, dtype: torch.dtype, found: bool, device: str) -> Case:
    """Each column with its range, given or found; torch only searches among given edges."""
    torch.manual_seed(0)
    xs = values(n, d, dtype, device)
    limits = torch.tensor([[-2.0, 2.0]], device=device).repeat(d, 1)
    edges = reference.inner_edges(limits[:1], 10)[0].to(dtype)
    given = None if found else limits
    codes, _, _ = ops.digitize(xs[0], 10, given, per_column=True)
    expected, _, _ = reference.digitize(
        xs[0][:, :2], 10, None if found else limits[:2], True, "uniform"
    )
    assert torch.equal(codes[:, :2], expected)
    return Case(
        f"digitize, {n} x {d}, {str(dtype)[6:]}, ranges {'found' if found else 'given'}",
        {
            "modfast": in_turn(lambda x: ops.digitize(x, 10, given, per_column=True), xs),
            "torch.bucketize": in_turn(lambda x: torch.bucketize(x, edges, out_int32=True), xs),
        },
        COPY,
        device=device,
        bytes=(2 if found else 1) * xs[0].nbytes + codes.nbytes,
    )


def binned_case(n: int, d: int, bins: int, device: str) -> Case:
    torch.manual_seed(0)
    xs, ys = (values(n, d, torch.float32, device) for _ in range(2))
    limits = torch.tensor([[-4.0, 4.0]], device=device)

    def ours(pair: tuple[Tensor, Tensor]) -> Tensor:
        return ops.binned_histogram(*pair, bins, limits, limits)[0]

    def bincount(pair: tuple[Tensor, Tensor]) -> Tensor:
        x, y = (((v + 4) * (bins / 8)).int().clamp_(0, bins - 1) for v in pair)
        return torch.bincount((x * bins + y).flatten(), minlength=bins**2).view(bins, bins)

    pairs = list(zip(xs, ys, strict=True))
    # Multiplying alone puts a few values on the other side of an edge.
    assert (ours(pairs[0]) - bincount(pairs[0])).abs().sum() <= 1e-4 * xs[0].numel()
    return Case(
        f"binned_histogram, {n} x {d}, {bins} bins",
        {"modfast": in_turn(ours, pairs), "torch bincount": in_turn(bincount, pairs)},
        COPY,
        device=device,
        bytes=2 * xs[0].nbytes,
    )


def random_codes(n: int, d: int, bins: int, device: str) -> Tensor:
    """Of normal numbers."""
    x = torch.randn(n, d, device=device)
    return ops.digitize(x, bins, per_column=True)[0]


def joint_case(n: int, d: int, bins: int, device: str) -> Case:
    torch.manual_seed(0)
    pairs = [
        (random_codes(n, d, bins, device), random_codes(n, d, bins, device))
        for _ in range(n_inputs(2 * n * d, device))
    ]

    def ours(pair: tuple[Tensor, Tensor]) -> Tensor:
        return ops.joint_histogram(*pair, bins, bins, "aligned")

    def bincount(pair: tuple[Tensor, Tensor]) -> Tensor:
        cells = pair[0].int() * bins + pair[1]
        return torch.bincount(cells.flatten(), minlength=bins**2).view(bins, bins)

    assert torch.equal(ours(pairs[0]), bincount(pairs[0]))
    return Case(
        f"joint_histogram, aligned, {n} x {d}, {bins} bins",
        {"modfast": in_turn(ours, pairs), "torch bincount": in_turn(bincount, pairs)},
        COPY,
        device=device,
        bytes=2 * n * d,
    )


def one_hot(codes: Tensor, bins: int) -> Tensor:
    """int8 `[d * bins, n]`, the samples running fastest."""
    found = torch.empty(codes.shape[1], bins, codes.shape[0], dtype=torch.int8, device=codes.device)
    for code in range(bins):
        found[:, code] = (codes == code).t()
    return found.flatten(0, 1)


def pairs_case(n: int, d: int, bins: int, targets: dict[str, float], device: str) -> Case:
    """`ops` are those of the product of one-hot codes, whose operands are made beforehand."""
    torch.manual_seed(0)
    x, y = (random_codes(n, d, bins, device) for _ in range(2))
    found = ops.pairwise_information(x, y, bins, bins)[0]
    expected = reference.pairwise_information(x[:, :4], y[:, -4:], bins, bins, None)[0]
    torch.testing.assert_close(found[:4, -4:], expected, rtol=1e-9, atol=1e-12)
    a, b = one_hot(x, bins), one_hot(y, bins).t()
    return Case(
        f"pairwise_information, {n} x {d} x {d}, {bins} bins",
        {
            "modfast": lambda: ops.pairwise_information(x, y, bins, bins),
            PRODUCT: lambda: torch._int_mm(a, b),
        },
        targets,
        rounds=5,
        device=device,
        ops=2 * n * (d * bins) ** 2,
    )
