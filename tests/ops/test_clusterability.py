"""cluster_penalty and its gradient against modfast.reference and autograd."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from modfast import ops, reference
from modfast._extension import has_ops

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# Rounding of one stored element: gradients are computed in float32 (float64) and stored once.
ELEMENT = {
    torch.float32: 1e-6,
    torch.float64: 1e-14,
    torch.bfloat16: 2**-8,
    torch.float16: 2**-10,
}
# One element, odd sizes, several rows a tile, a row of several tiles, nothing.
SHAPES = [(1, 1), (5, 7), (64, 64), (300, 129), (3, 17_000), (20_000, 3), (0, 4), (4, 0)]


def example(
    shape: tuple[int, int], dtype: torch.dtype, device: torch.device, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """A weight, and labels for it."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(-1, 4, (sum(shape),), generator=generator, dtype=torch.int32)
    return weight.to(device, dtype), labels.to(device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(
    shape: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> None:
    weight, labels = example(shape, dtype, device)
    value, sums = ops.cluster_penalty([weight], labels, 3.0), ops.cluster_sums([weight], labels)
    expected, expected_sums = reference.cluster_penalty([weight], labels, 3.0)
    torch.testing.assert_close(sums, expected_sums, rtol=1e-13, atol=0)
    torch.testing.assert_close(value, expected)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)

    (gradient,) = ops.cluster_penalty_gradient([weight], labels, 3.0)
    one = torch.ones((), device=device)
    (wanted,) = reference.cluster_penalty_backward(one, [weight.double()], labels, sums, 3.0)
    assert gradient.dtype == dtype
    # Subnormal halves have fewer digits; 1e-7 is their spacing.
    tiny = 1e-7 if dtype == torch.float16 else 1e-30
    torch.testing.assert_close(gradient.double(), wanted, rtol=ELEMENT[dtype], atol=tiny)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_simd_level(simd: str, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        test_matches_reference(shape, dtype, torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.slow
def test_every_16_bit_number_is_read_exactly(dtype: torch.dtype, simd: str) -> None:
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.uint16)
    numbers = bits.view(dtype)
    numbers = numbers[numbers.isfinite()]
    # One weight each, so that every sum is one number's square.
    labels = torch.zeros(2 * len(numbers), dtype=torch.int32)
    sums = ops.cluster_sums(list(numbers[:, None].unbind(0)), labels)
    assert torch.equal(sums[:, 1], numbers.double().square())


def test_same_bits_for_any_number_of_threads(n_threads: int) -> None:
    weight, labels = example((700, 701), torch.float32, torch.device("cpu"))
    found = ops.cluster_sums([weight], labels)
    gradient = ops.cluster_penalty_gradient([weight], labels, 1.0)[0]
    torch.set_num_threads(1)
    assert torch.equal(found, ops.cluster_sums([weight], labels))
    assert torch.equal(gradient, ops.cluster_penalty_gradient([weight], labels, 1.0)[0])


@pytest.mark.slow
def test_large_gradients_go_around_the_cache() -> None:
    weight, labels = example((1500, 1501), torch.float32, torch.device("cpu"))
    assert weight.numel() * 4 > 8 << 20
    weight, labels = weight[1:], labels[1:]  # rows that start off any alignment
    (gradient,) = ops.cluster_penalty_gradient([weight], labels, 1.0)
    sums = ops.cluster_sums([weight], labels)
    (wanted,) = reference.cluster_penalty_backward(torch.ones(()), [weight], labels, sums, 1.0)
    torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=0)


@pytest.mark.slow
def test_more_elements_than_32_bits_count() -> None:
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if free < 14 << 30:
        pytest.skip(f"needs 14 GB of free memory, got {free >> 30}")
    n_rows, n_cols = 2**16 + 1, 2**15
    weight = torch.ones(n_rows, n_cols, dtype=torch.bfloat16)
    # Only the last row, beyond element 2^31, is in a cluster.
    labels = torch.zeros(n_rows + n_cols, dtype=torch.int32)
    labels[: n_rows - 1] = -1
    within, total = ops.cluster_sums([weight], labels)[0].tolist()
    assert (within, total) == (n_cols, n_rows * n_cols)
    (gradient,) = ops.cluster_penalty_gradient([weight], labels, total)
    assert (gradient[-1] == 2).all()
    assert torch.equal(gradient[0], torch.full((n_cols,), -2 / n_rows, dtype=torch.bfloat16))


def test_many_weights_in_one_call(device: torch.device) -> None:
    # More of each dtype than one launch takes.
    shapes = [(5, 7), (1, 1)] * 90 + [(64, 64), (3, 17_000), (0, 4)]
    dtypes = DTYPES * 46
    examples = [
        example(s, d, device, i) for i, (s, d) in enumerate(zip(shapes, dtypes, strict=False))
    ]
    weights = [weight for weight, _ in examples]
    labels = torch.cat([each for _, each in examples])
    value, sums = ops.cluster_penalty(weights, labels, -0.5), ops.cluster_sums(weights, labels)
    expected, expected_sums = reference.cluster_penalty(weights, labels, -0.5)
    torch.testing.assert_close(sums, expected_sums, rtol=1e-13, atol=0)
    torch.testing.assert_close(value, expected)
    assert value.dtype == torch.float64
    for found, (weight, own) in zip(
        ops.cluster_penalty_gradient(weights, labels, -0.5), examples, strict=True
    ):
        assert torch.equal(found, ops.cluster_penalty_gradient([weight], own, -0.5)[0])


def test_non_contiguous_weight(device: torch.device) -> None:
    weight, labels = example((9, 11), torch.float64, device)
    leaf = weight.t().contiguous().requires_grad_()
    value = ops.cluster_penalty([leaf.t()], labels, 1.0)
    value.backward()
    assert leaf.grad is not None
    torch.testing.assert_close(
        leaf.grad.t(), ops.cluster_penalty_gradient([weight], labels, 1.0)[0]
    )


def test_zero_weight_has_value_and_gradient_zero(device: torch.device) -> None:
    weight, labels = example((4, 5), torch.float32, device)
    weight = torch.zeros_like(weight).requires_grad_()
    value = ops.cluster_penalty([weight], labels, 1.0)
    value.backward()
    assert value.item() == 0
    assert weight.grad is not None
    assert not weight.grad.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite_gives_nan(bad: float, device: torch.device) -> None:
    weight, labels = example((4, 5), torch.float32, device)
    weight[2, 3] = bad
    assert ops.cluster_penalty([weight], labels, 1.0).isnan()


def test_gradcheck_once_and_twice(device: torch.device) -> None:
    (first, a), (second, b) = (example(s, torch.float64, device) for s in [(3, 4), (5, 2)])

    def value(*weights: Tensor) -> Tensor:
        return ops.cluster_penalty(weights, torch.cat([a, b]), -2.0)

    leaves = first.requires_grad_(), second.requires_grad_()
    assert torch.autograd.gradcheck(value, leaves)
    assert torch.autograd.gradgradcheck(value, leaves)


def test_frozen_weights_get_no_gradient(device: torch.device) -> None:
    (w1, labels1), (w2, labels2) = (example((4, 5), torch.float64, device, i) for i in range(2))
    w2.requires_grad_()
    for twice in (False, True):
        value = ops.cluster_penalty([w1, w2], torch.cat([labels1, labels2]), 2.0)
        (grad,) = torch.autograd.grad(value, w2, create_graph=twice)
        expected = ops.cluster_penalty_gradient([w2.detach()], labels2, 2.0)[0]
        torch.testing.assert_close(grad.detach(), expected)
        assert w1.grad is None


@pytest.mark.skipif(not has_ops(), reason="modfast's library is not built")
@pytest.mark.slow
def test_opcheck(device: torch.device) -> None:
    weight, labels = example((6, 7), torch.float32, device)
    other = example((3, 2), torch.bfloat16, device)
    weights, labels = [weight, other[0]], torch.cat([labels, other[1]])
    torch.library.opcheck(torch.ops.modfast.cluster_penalty.default, (weights, labels, 1.5))
    sums = ops.cluster_sums(weights, labels)
    grad = torch.tensor(2.0, device=device)
    torch.library.opcheck(
        torch.ops.modfast.cluster_penalty_backward.default, (grad, weights, labels, sums, 1.5)
    )


@pytest.mark.skipif(not has_ops(), reason="modfast's library is not built")
def test_operators_refuse_what_would_reach_memory_wrongly(device: torch.device) -> None:
    weight, labels = example((6, 7), torch.float32, device)
    raw = torch.ops.modfast.cluster_penalty.default
    with pytest.raises(RuntimeError, match=r"got 12, too few for weights\[0\]"):
        raw([weight], labels[:12], 1.0)
    with pytest.raises(RuntimeError, match="got 13, 2 too many"):
        raw([weight[:4]], labels, 1.0)
    with pytest.raises(RuntimeError, match="labels must be int32, got Long"):
        raw([weight], labels.long(), 1.0)
    with pytest.raises(RuntimeError, match=r"weights\[0\] must be contiguous"):
        raw([weight.t()], labels, 1.0)
    with pytest.raises(RuntimeError, match=r"float32, float64, bfloat16 or float16, got Int"):
        raw([weight.int()], labels, 1.0)
    with pytest.raises(RuntimeError, match="weights must not be empty"):
        raw([], labels, 1.0)


def test_bad_input() -> None:
    weight, labels = example((6, 7), torch.float32, torch.device("cpu"))
    with pytest.raises(ValueError, match="weights must not be empty"):
        ops.cluster_penalty([], labels, 1.0)
    with pytest.raises(TypeError, match=r"weights must be float32.*got torch.int64"):
        ops.cluster_penalty([weight.long()], labels, 1.0)
    with pytest.raises(TypeError, match="labels must be int32, got torch.int64"):
        ops.cluster_penalty([weight], labels.long(), 1.0)
    with pytest.raises(ValueError, match=r"13 for shapes \[\(6, 7\)\], got 12"):
        ops.cluster_penalty([weight], labels[:12], 1.0)
    with pytest.raises(TypeError, match="labels must be a dense tensor in memory, got a meta"):
        ops.cluster_penalty([weight], labels.to("meta"), 1.0)
