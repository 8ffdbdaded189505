"""update_top_ against sorting in NumPy, and against modfast.reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from modfast import ops, reference
from modfast._extension import has_ops

# Samples, units, k: nothing, one, odd sizes, more than one part of units, more places than samples.
SIZES = [(0, 3, 2), (5, 0, 2), (1, 1, 1), (7, 5, 3), (40, 33, 11), (300, 70, 50), (9, 17, 20)]
SIZES += [(2000, 3, 130)]


def fresh(
    d: int, k: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    values = torch.full((d, k), -torch.inf, dtype=dtype, device=device)
    return values, torch.full((d, k), -1, device=device)


def example(n: int, d: int, dtype: torch.dtype, ties: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(n + d)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    if ties:  # many, as zeros are after a ReLU; of both signs
        x = (4 * x).round() / 4 * torch.tensor([1.0, 0.0, -1.0])[torch.arange(d) % 3]
    return x.to(dtype)


def sorted_top(x: Tensor, k: int, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The k largest of each column, by NumPy: value descending, then index ascending."""
    columns = x.double().numpy().T
    order = np.stack([np.lexsort((np.arange(len(x)), -column)) for column in columns])[:, :k]
    return np.take_along_axis(columns, order, 1), order + first


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("update", [ops.update_top_, reference.update_top_])
def test_is_what_sorting_gives(update, size: tuple[int, int, int], dtype: torch.dtype) -> None:
    n, d, k = size
    for ties in (False, True):
        x = example(n, d, dtype, ties)
        values, indices = fresh(d, k, dtype)
        assert update(values, indices, x, 5).item() == 0
        if d:
            wanted_values, wanted_indices = sorted_top(x, k, 5)
            m = wanted_values.shape[1]
            np.testing.assert_array_equal(values[:, :m], wanted_values)
            np.testing.assert_array_equal(indices[:, :m], wanted_indices)
            assert (indices[:, m:] == -1).all()
            assert (values[:, m:] == -torch.inf).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_batches_give_what_one_gives(batch: int, dtype: torch.dtype, simd: str) -> None:
    x = example(301, 70, dtype)
    state, whole = fresh(70, 20, dtype), fresh(70, 20, dtype)
    for first in range(0, 301, batch):
        ops.update_top_(*state, x[first : first + batch], first)
    ops.update_top_(*whole, x, 0)
    wanted_values, wanted_indices = sorted_top(x, 20)
    for values, indices in (state, whole):
        np.testing.assert_array_equal(values, wanted_values)
        np.testing.assert_array_equal(indices, wanted_indices)


@pytest.mark.parametrize("order", ["up", "down", "constant"])
def test_orders_in_which_all_or_none_pass(order: str, simd: str) -> None:
    x = torch.arange(500.0)[:, None].repeat(1, 37)
    x = {"up": x, "down": x.flip(0), "constant": torch.full_like(x, -2.0)}[order]
    values, indices = fresh(37, 50)
    ops.update_top_(values, indices, x, 0)
    first = torch.arange(499, 449, -1) if order == "up" else torch.arange(50)
    assert torch.equal(indices, first.expand(37, 50))
    assert torch.equal(values, x.gather(0, indices.T).T)


def test_large_and_same_bits_for_any_number_of_threads(n_threads: int) -> None:
    x = example(9000, 130, torch.float32)
    assert x.numel() > 2**19  # threads are woken
    state, again = fresh(130, 50), fresh(130, 50)
    for each in (state, again):
        # Full lists, as of the last batch, and many rows: then threads share the rows.
        for part, first in ((x[:100], 0), (x[100:], 100)):
            ops.update_top_(*each, part, 2**40 + first)
        torch.set_num_threads(1)
    wanted_values, wanted_indices = sorted_top(x, 50, 2**40)
    np.testing.assert_array_equal(state[0], wanted_values)
    np.testing.assert_array_equal(state[1], wanted_indices)
    assert torch.equal(state[1], again[1])
    assert torch.equal(state[0], again[0])


def test_non_contiguous_values() -> None:
    x = example(40, 33, torch.float32)
    for view in (x.T.contiguous().T, torch.stack([x, x], -1)[..., 0]):
        values, indices = fresh(33, 4)
        ops.update_top_(values, indices, view, 0)
        np.testing.assert_array_equal(indices, sorted_top(x, 4)[1])


@pytest.mark.parametrize("update", [ops.update_top_, reference.update_top_])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nan_is_counted_and_infinity_ordered(update, dtype: torch.dtype) -> None:
    x = example(60, 37, dtype)
    x[3, 36] = x[50, 0] = x[:, 1] = torch.nan
    x[7, 2], x[8, 2] = torch.inf, -torch.inf
    values, indices = fresh(37, 5, dtype)
    assert update(values, indices, x, 0).item() == 62
    assert (indices[1] == -1).all()
    assert indices[2, 0] == 7
    clean = torch.where(x.isnan(), -torch.inf, x)
    rows = torch.arange(37) != 1
    np.testing.assert_array_equal(indices[rows], sorted_top(clean, 5)[1][rows.numpy()])


def test_on_the_gpu(cuda: torch.device) -> None:
    x = example(300, 70, torch.float32)
    values, indices = fresh(70, 20, device=cuda)
    ops.update_top_(values, indices, x.to(cuda), 0)
    wanted_values, wanted_indices = sorted_top(x, 20)
    np.testing.assert_array_equal(values.cpu(), wanted_values)
    np.testing.assert_array_equal(indices.cpu(), wanted_indices)


@pytest.mark.skipif(not has_ops(), reason="modfast's library is not built")
def test_opcheck() -> None:
    raw = torch.ops.modfast.update_top_.default
    torch.library.opcheck(raw, (*fresh(6, 3), example(9, 6, torch.float32), 4))
    torch.library.opcheck(raw, (*fresh(6, 3, torch.float64), example(9, 6, torch.float64), 4))


@pytest.mark.skipif(not has_ops(), reason="modfast's library is not built")
def test_compiles_whole() -> None:
    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(values: Tensor, indices: Tensor, x: Tensor) -> Tensor:
        return ops.update_top_(values, indices, x.relu(), 0)

    x, compiled, plain = example(9, 6, torch.float32), fresh(6, 3), fresh(6, 3)
    step(*compiled, x)
    ops.update_top_(*plain, x.relu(), 0)
    assert torch.equal(compiled[0], plain[0])
    assert torch.equal(compiled[1], plain[1])


@pytest.mark.skipif(not has_ops(), reason="modfast's library is not built")
def test_the_operator_refuses_what_would_reach_memory_wrongly() -> None:
    raw = torch.ops.modfast.update_top_.default
    (values, indices), x = fresh(6, 3), example(9, 6, torch.float32)
    with pytest.raises(RuntimeError, match=r"top_values must be contiguous and of shape \[6, k\]"):
        raw(values[:5], indices[:5], x, 0)
    with pytest.raises(RuntimeError, match="top_indices must be contiguous int64"):
        raw(values, indices.int(), x, 0)
    with pytest.raises(RuntimeError, match="values must be contiguous"):
        raw(values, indices, x.T.contiguous().T, 0)
    with pytest.raises(RuntimeError, match="values must be float32 or float64"):
        raw(values.half(), indices, x.half(), 0)
    with pytest.raises(RuntimeError, match="top_values must have the dtype"):
        raw(values.double(), indices, x, 0)


def test_bad_input() -> None:
    (values, indices), x = fresh(6, 3), example(9, 6, torch.float32)
    with pytest.raises(TypeError, match="values must be float32 or float64.*got torch.float16"):
        ops.update_top_(values, indices, x.half(), 0)
    with pytest.raises(TypeError, match="as top_values torch.float64, got torch.float32"):
        ops.update_top_(values.double(), indices, x, 0)
    with pytest.raises(TypeError, match="top_indices must be int64, got torch.int32"):
        ops.update_top_(values, indices.int(), x, 0)
    with pytest.raises(ValueError, match=r"top_values must have shape \[6, k\], got \(5, 3\)"):
        ops.update_top_(values[:5], indices[:5], x, 0)
    with pytest.raises(ValueError, match=r"shape of top_values, \(6, 3\), got \(6, 2\)"):
        ops.update_top_(values, indices[:, :2].contiguous(), x, 0)
    with pytest.raises(ValueError, match="top_values must be contiguous"):
        ops.update_top_(values.T.contiguous().T, indices, x, 0)
    with pytest.raises(ValueError, match="2 dimensions, got shape \\(9,\\)"):
        ops.update_top_(values, indices, x[:, 0], 0)
    with pytest.raises(TypeError, match="top_values must be a dense tensor in memory, got a meta"):
        ops.update_top_(values.to("meta"), indices, x, 0)
    with pytest.raises(ValueError, match="require a gradient"):
        ops.update_top_(values, indices, x.requires_grad_(), 0)
