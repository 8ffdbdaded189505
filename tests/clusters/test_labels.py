from __future__ import annotations

import numpy as np
import pytest
import torch

from modfast import Clusters


def test_mask_joins_rows_and_columns_of_one_cluster_only() -> None:
    clusters = Clusters([0, -1, 2], torch.tensor([2, 0, -1, 0]))
    expected = [[0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]]
    assert clusters.mask().int().tolist() == expected
    assert clusters.n_clusters == 3
    assert clusters.shape == (3, 4)


@pytest.mark.parametrize(("n_out", "n_in", "k"), [(64, 64, 4), (10, 7, 3), (5, 5, 5), (3, 9, 1)])
def test_equal_clusters_differ_by_one_at_most(n_out: int, n_in: int, k: int) -> None:
    clusters = Clusters.equal(n_out, n_in, k)
    for labels, n in ((clusters.rows, n_out), (clusters.cols, n_in)):
        sizes = labels.bincount(minlength=k)
        assert sizes.max() - sizes.min() <= 1
        assert sizes.sum() == n
        assert labels.equal(labels.sort().values)
    assert clusters.n_clusters == k


def test_from_indices_lists_and_dicts_agree() -> None:
    listed = Clusters.from_indices([[0, 1], [3]], [[2], [0, 1]], shape=(5, 4))
    keyed = Clusters.from_indices({1: [3], 0: [0, 1]}, {0: [2], 1: [0, 1]}, shape=(5, 4))
    assert listed.rows.tolist() == keyed.rows.tolist() == [0, 0, -1, 1, -1]
    assert listed.cols.tolist() == keyed.cols.tolist() == [1, 1, 0, -1]


def test_an_empty_cluster_joins_nothing_and_counts() -> None:
    clusters = Clusters.from_indices([[0], [], [1]], [[0], [1], []])
    assert clusters.n_clusters == 3
    assert clusters.mask().sum() == 1
    assert Clusters([0], [0], n_clusters=4).n_clusters == 4


def test_from_masks_agrees_with_mask() -> None:
    rows = torch.tensor([[True, False, False, True], [False, True, False, False]])
    cols = torch.tensor([[False, True], [True, False]])
    clusters = Clusters.from_masks(rows, cols)
    assert torch.equal(clusters.mask(), (rows.T.int() @ cols.int()).bool())


def test_labels_come_from_numpy_and_any_integer_type() -> None:
    clusters = Clusters(np.array([0, 1], dtype=np.uint8), torch.tensor([1, 0], dtype=torch.int16))
    assert clusters.rows.dtype == clusters.cols.dtype == torch.int32


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Clusters([0.0], [0]), TypeError, "rows must be integer labels, got torch.float32"),
        (lambda: Clusters([True], [0]), TypeError, "rows must be integer labels, got torch.bool"),
        (lambda: Clusters([0], [0, -2]), ValueError, r"cols\[1\] must be at least -1, got -2"),
        (lambda: Clusters([[0]], [0]), ValueError, r"rows must be one-dimensional, got shape"),
        (lambda: Clusters([3], [0], 3), ValueError, "below n_clusters=3, got label 3"),
        (lambda: Clusters([0], [0], 0), ValueError, "n_clusters must be at least 1, got 0"),
        (lambda: Clusters.equal(4, 4, 5), ValueError, "got 5 clusters for a 4 x 4 weight"),
        (lambda: Clusters.equal(4, 4, 0), ValueError, "k must be at least 1, got 0"),
        (lambda: Clusters.equal(4, 4, 2.0), TypeError, "k must be an integer, got 2.0"),
        (
            lambda: Clusters.from_indices([[0], [0]], [[0], [1]]),
            ValueError,
            "row_lists must not overlap: index 0 is in clusters 0 and 1",
        ),
        (
            lambda: Clusters.from_indices([[0]], [[5]], shape=(1, 5)),
            ValueError,
            "col_lists must hold indices from 0 to 4, got 5",
        ),
        (
            lambda: Clusters.from_indices([[-1]], [[0]]),
            ValueError,
            "row_lists must hold indices from 0 to",
        ),
        (
            lambda: Clusters.from_indices([[0.5]], [[0]]),
            TypeError,
            "row_lists must hold lists of integer unit indices: 'float' object",
        ),
        (
            lambda: Clusters.from_indices({-1: [0]}, [[0]]),
            ValueError,
            "row_lists must have cluster labels >= 0 as keys, got -1",
        ),
        (
            lambda: Clusters.from_masks(torch.ones(2, 3), torch.ones(2, 3).bool()),
            TypeError,
            "row_masks must be a boolean tensor, got torch.float32",
        ),
        (
            lambda: Clusters.from_masks(torch.ones(2, 3).bool(), torch.eye(2).bool()),
            ValueError,
            "row_masks must not overlap: unit 0 is in 2 clusters",
        ),
        (
            lambda: Clusters.from_masks(torch.eye(3).bool(), torch.eye(2).bool()),
            ValueError,
            "one row per cluster each, got 3 and 2",
        ),
    ],
)
def test_bad_input(make: object, error: type[Exception], message: str) -> None:
    assert callable(make)
    with pytest.raises(error, match=message):
        make()
