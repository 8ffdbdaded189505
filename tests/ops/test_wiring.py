"""Sums over a layer's rows and columns, against modfast.reference and the dense matrix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from modfast import ops, reference
from modfast._extension import has_ops

NORMS = ["linear", "softmax", "sigmoid"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# Groups, outputs, inputs, taps, kinds of in- and of out-positions: a fully connected layer, tiles
# with rests, segments and blocks with rests, one group for each channel, many kinds, nothing.
SHAPES = [
    (1, 7, 9, 1, 1, 1),
    (1, 6, 5, 9, 9, 9),
    (3, 5, 4, 6, 2, 7),
    (1, 70, 1300, 3, 4, 11),
    (40, 1, 1, 49, 49, 49),
    (2, 3, 2, 25, 16, 300),
    (1, 2, 2000, 1, 1, 1),
    (2, 0, 3, 2, 2, 2),
    (2, 3, 0, 2, 2, 2),
    (0, 3, 2, 2, 2, 2),
]


def example(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A weight, and positions of which no two are joined by two taps."""
    *_, taps, n_sources, n_kinds = shape
    generator = torch.Generator().manual_seed(sum(shape))
    weight = torch.randn(shape[:4], generator=generator, dtype=torch.float64).to(dtype)
    # Each kind of out-position takes its taps from others in turn, and some from nowhere.
    sources = (torch.arange(taps)[:, None] + torch.arange(n_kinds)) % n_sources
    sources[torch.rand(taps, n_kinds, generator=generator) < 0.2] = n_sources
    counts = [
        torch.randint(taps, taps + 9, (n,), generator=generator).double()
        for n in (n_sources, n_kinds)
    ]
    return weight, sources, *counts


def run(function: Any, arguments: tuple[Tensor, ...], norm: str, scale: Tensor | None = None):
    weight, *kinds = arguments
    return function(weight, scale, *kinds, norm, 2, 3, 4)


@pytest.mark.parametrize("device", ["cpu", "cuda"], indirect=True)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(
    shape: tuple[int, ...], norm: str, dtype: torch.dtype, device: torch.device
) -> None:
    arguments = example(shape, dtype)
    scale = torch.linspace(-1, 2, shape[0] * shape[1], dtype=torch.float64).view(shape[:2])
    for factors in (None, scale):
        wanted = run(reference.wiring_sums, arguments, norm, factors)
        on_device = tuple(each.to(device) for each in arguments)
        there = None if factors is None else factors.to(device)
        found = run(ops.wiring_sums, on_device, norm, there)
        assert found.dtype == torch.float64
        assert found.device.type == device.type
        torch.testing.assert_close(found.cpu(), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_every_simd_level(simd: str, norm: str) -> None:
    for shape in SHAPES:
        for dtype in DTYPES:
            test_matches_reference(shape, norm, dtype, torch.device("cpu"))


def dense(weight: Tensor, norm: str, blocks: int, ins: int, outs: int) -> Tensor:
    """The sums of a fully connected layer, by its matrix."""
    one = weight[0, :, :, 0].T.repeat_interleave(ins, 0).repeat_interleave(outs, 1)
    matrix = torch.block_diag(*[one] * blocks)
    counted = {"linear": torch.relu, "softmax": torch.exp, "sigmoid": torch.sigmoid}[norm](matrix)
    total = counted.sum(1, keepdim=True)
    rows = torch.where(total > 0, counted / total, 0.0)
    columns = rows.sum(0)
    entropies = torch.special.entr(rows).sum()
    return torch.stack([entropies, columns.sum(), torch.special.xlogy(columns, columns).sum()])


@pytest.mark.parametrize("norm", NORMS)
def test_equals_the_dense_matrix(norm: str) -> None:
    point = (torch.zeros(1, 1, dtype=torch.int64), *torch.ones(2, 1, dtype=torch.float64))
    weight = torch.randn(1, 6, 5, 1, generator=torch.Generator().manual_seed(0)).double()
    for repeats in ((1, 1, 1), (3, 1, 1), (1, 2, 1), (2, 3, 4)):
        wanted = dense(weight, norm, *repeats)
        for function in (ops.wiring_sums, reference.wiring_sums):
            found = function(weight, None, *point, norm, *repeats)
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("value", [0.0, -0.0, 5e-324, 1e-310, 1e-40, -1e-40, -600.0, 600.0])
def test_extreme_weights(norm: str, value: float) -> None:
    weight, *kinds = example((1, 6, 5, 9, 9, 9))
    weight[:, :, 2] = value
    weight[:, 1] = value
    wanted = reference.wiring_sums(weight, None, *kinds, norm, 1, 1, 1)
    found = ops.wiring_sums(weight, None, *kinds, norm)
    assert bool(found.isfinite().all())
    # What is below the smallest normal number counts as nothing.
    if norm != "linear" or not 0 < value < 1e-300:
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_threads_change_no_bit(norm: str, n_threads: int) -> None:
    for shape in ((1, 70, 1300, 3, 4, 11), (400, 3, 2, 49, 49, 49)):
        arguments = example(shape, torch.float32)
        found = run(ops.wiring_sums, arguments, norm)
        torch.set_num_threads(1)
        assert torch.equal(run(ops.wiring_sums, arguments, norm), found)
        torch.set_num_threads(n_threads)


def test_strided_weights() -> None:
    weight, *kinds = example((3, 5, 4, 6, 2, 7), torch.float32)
    wanted = ops.wiring_sums(weight, None, *kinds)
    found = ops.wiring_sums(weight.transpose(1, 2).contiguous().transpose(1, 2), None, *kinds)
    assert torch.equal(found, wanted)
    found = ops.wiring_sums(weight, None, kinds[0].T.contiguous().T, *kinds[1:])
    assert torch.equal(found, wanted)


@pytest.mark.skipif(not has_ops(), reason="the compiled library is not built")
@pytest.mark.parametrize("scaled", [False, True])
def test_opcheck(scaled: bool) -> None:
    weight, *kinds = example((3, 5, 4, 6, 2, 7), torch.float32)
    scale = torch.ones(3, 5, dtype=torch.float64) if scaled else None
    arguments = (weight, scale, *kinds, "linear", 1, 2, 3)
    torch.library.opcheck(torch.ops.modfast.wiring_sums.default, arguments)


@pytest.mark.slow
def test_compiles_without_graph_breaks() -> None:
    weight, *kinds = example((3, 5, 4, 6, 2, 7), torch.float32)

    def twice(weight: Tensor) -> Tensor:
        return 2 * ops.wiring_sums(2 * weight, None, *kinds)

    found = torch.compile(twice, fullgraph=True)(weight)
    torch.testing.assert_close(found, twice(weight))


def test_bad_input() -> None:
    weight, sources, n_in, n_out = example((3, 5, 4, 6, 2, 7))

    def sums(**changes: Any) -> Tensor:
        named = {"weight": weight, "scale": None, "sources": sources, "n_in": n_in, "n_out": n_out}
        return ops.wiring_sums(**{**named, **changes})

    with pytest.raises(TypeError, match="weight must be float32.*got torch.int64"):
        sums(weight=weight.long())
    with pytest.raises(ValueError, match=r"weight must be \[groups, .* got shape \(3, 5, 4\)"):
        sums(weight=weight[..., 0])
    with pytest.raises(ValueError, match="weight requires a gradient"):
        sums(weight=weight.clone().requires_grad_())
    with pytest.raises(ValueError, match="norm must be one of .* got 'relu'"):
        sums(norm="relu")
    with pytest.raises(TypeError, match="n_in must be float64, got torch.float32"):
        sums(n_in=n_in.float())
    with pytest.raises(TypeError, match="sources must be int64, got torch.int32"):
        sums(sources=sources.int())
    with pytest.raises(ValueError, match=r"sources must have shape \(6, 7\), got \(5, 7\)"):
        sums(sources=sources[:5])
    with pytest.raises(ValueError, match=r"scale must have shape \(3, 5\), got \(15,\)"):
        sums(scale=torch.ones(15, dtype=torch.float64))
    with pytest.raises(ValueError, match="blocks must be at least 1, got 0"):
        sums(blocks=0)
    with pytest.raises(TypeError, match="outs must be an integer, got 1.5"):
        sums(outs=1.5)


@pytest.mark.skipif(not has_ops(), reason="the compiled library is not built")
def test_operators_refuse_what_would_reach_memory_wrongly() -> None:
    weight, sources, n_in, n_out = example((3, 5, 4, 6, 2, 7))
    for arguments, message in [
        ((weight[0], None, sources, n_in, n_out), "weight must be contiguous"),
        ((weight.mT, None, sources, n_in, n_out), "weight must be contiguous"),
        ((weight.long(), None, sources, n_in, n_out), "must be float32, float64"),
        ((weight, weight[0, 0, 0], sources, n_in, n_out), "scale must be contiguous float64 of 15"),
        ((weight, None, sources[:4], n_in, n_out), "sources must be contiguous int64"),
        ((weight, None, sources.int(), n_in, n_out), "sources must be contiguous int64"),
        ((weight, None, sources + 1, n_in, n_out), "sources must be from 0 to 2, got 3"),
        ((weight, None, sources - 1, n_in, n_out), "sources must be from 0 to 2, got -1"),
        ((weight, None, sources, n_in.float(), n_out), "n_in must be contiguous float64"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            torch.ops.modfast.wiring_sums(*arguments, "linear", 1, 1, 1)
    with pytest.raises(RuntimeError, match="norm must be linear, softmax or sigmoid, got relu"):
        torch.ops.modfast.wiring_sums(weight, None, sources, n_in, n_out, "relu", 1, 1, 1)
