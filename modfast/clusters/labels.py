"""Clusters of a weight's outputs and inputs, as one label vector each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import index as as_index

import torch
from torch import Tensor

from modfast import checks
from modfast.reference import same_cluster

IndexLists = Sequence[Sequence[int]] | Mapping[int, Sequence[int]]


@dataclass(frozen=True, eq=False)
class Clusters:
    """Which cluster each output (row) and each input (column) of a weight belongs to.

    Args:
        rows: integer labels `[n_out]`, -1 for "in no cluster".
        cols: integer labels `[n_in]`, -1 for "in no cluster".
        n_clusters: how many clusters there are; by default the largest label plus one. A cluster
            may be empty: it then joins no entries.

    Labels are kept as int32 tensors.

    Raises:
        TypeError: labels that are not integers.
        ValueError: labels that are not one-dimensional, below -1, or not below `n_clusters`.

    Example:
        >>> clusters = Clusters(rows=[0, 0, 1], cols=[0, 1])
        >>> clusters.n_clusters
        2
        >>> clusters.mask()
        tensor([[ True, False],
                [ True, False],
                [False,  True]])
    """

    rows: Tensor
    cols: Tensor
    n_clusters: int = -1
    labels: Tensor = field(init=False, repr=False)
    """Row labels and then column labels, in one tensor."""
    shape: tuple[int, int] = field(init=False, repr=False)
    """(n_out, n_in) of the weight that these clusters fit."""

    def __post_init__(self) -> None:
        rows, cols = checked_labels("rows", self.rows), checked_labels("cols", self.cols)
        largest = max((int(x.max()) for x in (rows, cols) if x.numel()), default=-1)
        count = (
            largest + 1 if self.n_clusters == -1 else checks.count("n_clusters", self.n_clusters)
        )
        if largest >= count:
            raise ValueError(f"labels must be below n_clusters={count}, got label {largest}")
        labels = torch.cat([rows, cols])
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "rows", labels[: len(rows)])
        object.__setattr__(self, "cols", labels[len(rows) :])
        object.__setattr__(self, "n_clusters", count)
        object.__setattr__(self, "shape", (len(rows), len(cols)))

    @classmethod
    def equal(cls, n_out: int, n_in: int, k: int) -> Clusters:
        """`k` clusters of consecutive units, sizes differing by at most one.

        Raises:
            ValueError: `k` is not between 1 and the smaller of `n_out` and `n_in`.

        Example:
            >>> Clusters.equal(4, 5, 2).cols.tolist()
            [0, 0, 0, 1, 1]
        """
        n_out, n_in, k = (
            checks.count("n_out", n_out),
            checks.count("n_in", n_in),
            checks.count("k", k),
        )
        if k > min(n_out, n_in):
            raise ValueError(
                f"n_clusters must be at most the number of outputs and of inputs, "
                f"got {k} clusters for a {n_out} x {n_in} weight"
            )
        rows, cols = (torch.arange(n, device="cpu") * k // n for n in (n_out, n_in))
        return cls(rows, cols, k)

    @classmethod
    def from_indices(
        cls,
        row_lists: IndexLists,
        col_lists: IndexLists,
        shape: tuple[int, int] | None = None,
    ) -> Clusters:
        """Clusters from the indices of their members.

        Args:
            row_lists: for each cluster the indices of its rows; a dict's keys are the labels.
            col_lists: the same for columns.
            shape: (n_out, n_in) of the weight; by default just as large as the largest index needs.

        Raises:
            TypeError: an index that is no integer.
            ValueError: an index in two clusters, negative, or outside `shape`.

        Example:
            >>> Clusters.from_indices([[0, 2], [1]], {0: [1], 1: [0]}).rows.tolist()
            [0, 1, 0]
        """
        n_out, n_in = (None, None) if shape is None else shape
        rows, k_rows = labels_of_lists("row_lists", row_lists, n_out)
        cols, k_cols = labels_of_lists("col_lists", col_lists, n_in)
        return cls(rows, cols, max(k_rows, k_cols))

    @classmethod
    def from_masks(cls, row_masks: Tensor, col_masks: Tensor) -> Clusters:
        """Clusters from boolean membership masks `[k, n_out]` and `[k, n_in]`.

        Raises:
            TypeError: masks that are not boolean.
            ValueError: masks that are not two-dimensional, differ in `k`, or overlap.

        Example:
            >>> Clusters.from_masks(torch.eye(2).bool(), torch.eye(2).bool()).rows.tolist()
            [0, 1]
        """
        rows, cols = (
            labels_of_masks("row_masks", row_masks),
            labels_of_masks("col_masks", col_masks),
        )
        if len(row_masks) != len(col_masks):
            raise ValueError(
                f"row_masks and col_masks must have one row per cluster each, "
                f"got {len(row_masks)} and {len(col_masks)}"
            )
        return cls(rows, cols, len(row_masks))

    def mask(self) -> Tensor:
        """Boolean `[n_out, n_in]`: True where row and column share a cluster."""
        return same_cluster(self.rows, self.cols)

    def to(self, device: torch.device | str) -> Clusters:
        """The same clusters with their labels on `device`."""
        return Clusters(self.rows.to(device), self.cols.to(device), self.n_clusters)


def checked_labels(argument: str, values: Tensor | Sequence[int]) -> Tensor:
    """Labels as int32 `[n]`; see `Clusters` for what it raises."""
    labels = values if isinstance(values, Tensor) else torch.as_tensor(values, device="cpu")
    if labels.numel() == 0:
        labels = labels.to(torch.int32)
    if labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype == torch.bool:
        raise TypeError(f"{argument} must be integer labels, got {labels.dtype}")
    if labels.dim() != 1:
        raise ValueError(f"{argument} must be one-dimensional, got shape {tuple(labels.shape)}")
    if labels.numel() and int(labels.min()) < -1:
        at = int(labels.argmin())
        raise ValueError(f"{argument}[{at}] must be at least -1, got {int(labels[at])}")
    if labels.numel() and int(labels.max()) >= 2**31:
        raise ValueError(f"{argument} must be below 2**31, got {int(labels.max())}")
    return labels.to(torch.int32)


def labels_of_lists(argument: str, lists: IndexLists, size: int | None) -> tuple[Tensor, int]:
    """Labels `[size]` of lists of indices, and their number; see `Clusters.from_indices`."""
    groups = dict(lists.items()) if isinstance(lists, Mapping) else dict(enumerate(lists))
    for label in groups:
        if isinstance(label, bool) or not isinstance(label, int) or label < 0:
            raise ValueError(f"{argument} must have cluster labels >= 0 as keys, got {label!r}")
    try:
        members = [(as_index(index), label) for label, group in groups.items() for index in group]
    except TypeError as error:
        raise TypeError(f"{argument} must hold lists of integers: {error}") from error
    needed = max((index for index, _ in members), default=-1) + 1
    size = needed if size is None else size
    labels = torch.full((size,), -1, dtype=torch.int32, device="cpu")
    for index, label in members:
        if not 0 <= index < size:
            raise ValueError(f"{argument} must hold indices from 0 to {size - 1}, got {index}")
        if labels[index] not in (-1, label):
            raise ValueError(
                f"{argument} must not overlap: index {index} is in "
                f"clusters {int(labels[index])} and {label}"
            )
        labels[index] = label
    return labels, max(groups, default=-1) + 1


def labels_of_masks(argument: str, masks: Tensor) -> Tensor:
    """Labels `[n]` of membership masks `[k, n]`; see `Clusters.from_masks`."""
    if not isinstance(masks, Tensor) or masks.dtype != torch.bool:
        found = masks.dtype if isinstance(masks, Tensor) else type(masks).__name__
        raise TypeError(f"{argument} must be a boolean tensor, got {found}")
    if masks.dim() != 2 or len(masks) == 0:
        raise ValueError(f"{argument} must be [n_clusters, n_units], got {tuple(masks.shape)}")
    count = masks.sum(0)
    if count.numel() and int(count.max()) > 1:
        raise ValueError(
            f"{argument} must not overlap: unit {int(count.argmax())} is in "
            f"{int(count.max())} clusters"
        )
    return torch.where(count == 1, masks.to(torch.uint8).argmax(0), -1)
