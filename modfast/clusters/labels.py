"""Clusters of a weight's outputs and inputs, as one label vector each."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from modfast import checks, plots
from modfast.files import holds_no, load_values, save_values
from modfast.network.units import IndexLists, checked_labels, labels_of_lists, labels_of_masks
from modfast.reference import same_cluster

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


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
        count = checks.integer("n_clusters", self.n_clusters)
        count = largest + 1 if count == -1 else checks.count("n_clusters", count)
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
        if max(n_out, n_in) >= 2**31:
            raise ValueError(f"n_out and n_in must be below 2**31, got {n_out} and {n_in}")
        checks.room("n_out and n_in", 16 * (n_out + n_in))
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
        n_out, n_in = None, None
        if shape is not None:
            sizes = checks.several("shape", shape)
            if len(sizes) != 2:
                raise ValueError(f"shape must be (n_out, n_in), got {len(sizes)} numbers")
            n_out, n_in = (checks.integer("shape", size) for size in sizes)
            checks.room("shape", 4 * (max(n_out, 0) + max(n_in, 0)))
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

    def plot(self, weight: Tensor, title: str | None = None) -> Figure:
        """The weight's matrix with rows and columns in the order of their clusters.

        See `modfast.plots.weight_matrix`.

        Raises:
            TypeError, ValueError: a weight of other sizes, or that is not finite.
            ImportError: plotly is missing.
        """
        checks.dense("weight", weight)
        title = None if title is None else checks.text("title", title)
        return plots.weight_matrix(weight, self.rows, self.cols, title)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a file of safetensors, under a temporary name first.

        Raises:
            TypeError, ValueError: no path of a file.
            OSError: it cannot be written.
        """
        names = ("rows", "cols", "n_clusters")
        values = {name: getattr(self, name) for name in names}
        save_values(checks.path("path", path), "Clusters", values)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Clusters:
        """The clusters that `save` wrote, on the CPU; no code of the file runs.

        Raises:
            OSError: there is no such file.
            ValueError: the file holds something else.

        Example:
            >>> import tempfile
            >>> path = tempfile.mkdtemp() + "/found.safetensors"
            >>> Clusters.equal(4, 4, 2).save(path)
            >>> Clusters.load(path).rows.tolist()
            [0, 0, 1, 1]
        """
        values = load_values(checks.path("path", path), "Clusters")
        try:
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{holds_no(path, 'Clusters')}: {error}") from error

    def to(self, device: torch.device | str) -> Clusters:
        """The same clusters with their labels on `device`."""
        device = checks.device("device", device)
        return Clusters(self.rows.to(device), self.cols.to(device), self.n_clusters)
