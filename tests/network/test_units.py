"""The one reader of groups of units and of labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from modfast import Clusters, digitize, modularity_measures, total_correlation
from modfast.network.units import read_groups

KINDS = [
    [[0, 3], [1]],
    {0: [0, 3], 1: [1]},
    {np.int32(0): np.array([3, 0]), np.int64(1): [np.uint8(1)]},
    [0, 1, -1, 0],
    np.array([0, 1, -1, 0], dtype=np.int8),
    torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0]]),
    torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0]]).bool(),
    Clusters([0, 1, -1, 0], [0]),
]


@pytest.mark.parametrize("units", KINDS)
def test_every_kind_says_the_same(units: Any) -> None:
    found = read_groups("units", units, 4, overlap=False)
    assert [group.tolist() for group in found] == [[0, 3], [1]]
    with torch.device("meta"):
        found = read_groups("units", units, 4)
    assert [group.tolist() for group in found] == [[0, 3], [1]]


def test_columns_of_clusters() -> None:
    found = read_groups("units", Clusters([0], [1, 0]), 2, cols=True)
    assert [group.tolist() for group in found] == [[1], [0]]


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
def test_unsigned_integers(dtype: torch.dtype) -> None:
    labels = torch.tensor([0, 1, 1]).to(dtype)
    assert [group.tolist() for group in read_groups("units", labels, 3)] == [[0], [1, 2]]
    assert Clusters(labels, labels).rows.tolist() == [0, 1, 1]
    assert digitize(labels, 2).tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("units", "error", "message"),
    [
        ([0, 1, 150_000_000, 0], ValueError, "none in group 2 with labels up to 150000000"),
        ([0, 1, 2**70, 0], ValueError, r"units must be integer labels from -2\*\*63"),
        (np.array([2**64 - 1] * 4, dtype=np.uint64), ValueError, "must be below"),
        ({2**40: [0]}, ValueError, r"labels below 2\*\*31 as keys"),
        ([[0, 10**1000]], ValueError, "indices from 0 to 3"),
        ([[0], []], ValueError, "none in group 1"),
        ([[0, 1], [1]], ValueError, "must not overlap: unit 1 is in 2 groups"),
        (torch.eye(4).to_sparse(), TypeError, "must be a dense tensor"),
        ("ab", TypeError, "got str"),
        (None, TypeError, "got NoneType"),
    ],
)
def test_bad_groups(units: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_groups("units", units, 4, overlap=False)


def test_huge_clusters_are_refused() -> None:
    with pytest.raises(ValueError, match=r"n_out must be below 2\*\*63, got 184"):
        Clusters.equal(2**64, 4, 2)
    with pytest.raises(ValueError, match=r"must be below 2\*\*31"):
        Clusters.equal(2**40, 4, 2)
    with pytest.raises(ValueError, match="device must be the name of a device .*, got 'mean'"):
        Clusters.equal(4, 4, 2).to("mean")
    with pytest.raises(ValueError, match="indices from 0 to"):
        Clusters.from_indices([[2**40]], [[0]])


def test_old_names_warn() -> None:
    x = torch.randn(20, 4)
    with pytest.warns(DeprecationWarning, match=r"total_correlation\(units=...\)"):
        total_correlation(x, partition=[[0], [1]])  # type: ignore[call-arg]
    with pytest.warns(DeprecationWarning, match=r"modularity_measures\(units=...\)"):
        modularity_measures({"a": x, "b": x}, module={"a": [0], "b": [1]})  # type: ignore[call-arg]
