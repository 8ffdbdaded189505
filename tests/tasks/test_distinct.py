from __future__ import annotations

import pytest
import torch
from tasks.oracle import assert_same_groups
from torch import Tensor

from modfast import DistinctGradients, distinct_gradients


def vectors(found: DistinctGradients) -> Tensor:
    return found.directions * found.norms[:, None]


@pytest.mark.parametrize("d", [1, 2, 7, 300])
@pytest.mark.parametrize("n", [1, 2, 50, 700])
def test_equals_brute_force(n: int, d: int) -> None:
    generator = torch.Generator().manual_seed(n + d)
    kinds = torch.randint(-3, 4, (max(1, n // 3), d), generator=generator).double()
    rows = kinds[torch.randint(len(kinds), (n,), generator=generator)]
    found = distinct_gradients(rows)
    assert_same_groups(vectors(found), found.counts, rows)
    assert (found.counts.diff() <= 0).all()
    assert found.counts.sum() == n
    lengths = found.directions.norm(dim=1)
    torch.testing.assert_close(lengths, (found.norms > 0).double())
    torch.testing.assert_close(found.mean, rows.mean(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_splits_no_rows(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(40, 16, generator=generator, dtype=dtype)
    which = torch.randint(40, (5000,), generator=generator)
    noise = torch.randn(5000, 16, generator=generator, dtype=dtype)
    rows = kinds[which] + 4 * torch.finfo(dtype).eps * noise
    assert len(rows.unique(dim=0)) > 1000
    counts = torch.bincount(which).sort(descending=True).values
    assert torch.equal(distinct_gradients(rows).counts, counts)
    assert torch.equal(distinct_gradients(rows, which).counts, counts)
    assert len(distinct_gradients(rows, tolerance=0.0).counts) > 1000


def test_the_tolerance_is_a_share_of_the_longest() -> None:
    rows = torch.tensor([[0.0, 0.0], [0.0, 10.0], [0.0, 9.9], [0.0, 9.8], [5.0, 0.0]])
    assert distinct_gradients(rows, tolerance=0.005).counts.tolist() == [1] * 5
    # 10 and 9.8 are joined by what lies between.
    assert distinct_gradients(rows, tolerance=0.011).counts.tolist() == [3, 1, 1]
    assert distinct_gradients(rows * 1e30, tolerance=0.011).counts.tolist() == [3, 1, 1]
    assert distinct_gradients(rows, tolerance=2.0).counts.tolist() == [5]


def test_the_first_seen_comes_first_among_equals() -> None:
    rows = torch.tensor([[3.0], [1.0], [2.0], [1.0], [4.0]])
    found = distinct_gradients(rows)
    assert found.norms.tolist() == [1.0, 3.0, 2.0, 4.0]
    assert found.counts.tolist() == [2, 1, 1, 1]


def test_regions_of_equal_gradients_are_one() -> None:
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    found = distinct_gradients(rows, torch.tensor([7, 3, 9, 7]))
    assert found.counts.tolist() == [3, 1]
    assert found.directions.tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_bad_input() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    with pytest.raises(ValueError, match=r"gradients must have shape \[n, d\].*got \[2\]"):
        distinct_gradients(rows[0])
    with pytest.raises(ValueError, match=r"n at least 1.*got \[0, 2\]"):
        distinct_gradients(rows[:0])
    with pytest.raises(TypeError, match="gradients must be a floating tensor, got torch.int64"):
        distinct_gradients(rows.long())
    with pytest.raises(ValueError, match="gradients must be finite, got 4 of 4"):
        distinct_gradients(rows / 0)
    with pytest.raises(ValueError, match="tolerance must be at least 0, got -1"):
        distinct_gradients(rows, tolerance=-1.0)
    with pytest.raises(ValueError, match="regions must hold equal gradients, but row 1 differs"):
        distinct_gradients(rows, torch.tensor([4, 4]))
    with pytest.raises(ValueError, match=r"regions must have shape \[2\].*got \[3\]"):
        distinct_gradients(rows, torch.tensor([4, 4, 4]))
    with pytest.raises(TypeError, match="regions must be integer labels"):
        distinct_gradients(rows, rows[0])
