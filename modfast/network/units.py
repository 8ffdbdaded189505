"""Which units? The one reader of groups of units, and of labels that say the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from operator import index as as_index
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from modfast import checks

IndexLists: TypeAlias = Sequence[Sequence[int]] | Mapping[int, Sequence[int]]


class Labeled(Protocol):
    """Labels of a weight's rows and columns, such as `modfast.Clusters`."""

    @property
    def rows(self) -> Tensor: ...  # noqa: D102
    @property
    def cols(self) -> Tensor: ...  # noqa: D102
    @property
    def n_clusters(self) -> int: ...  # noqa: D102


Units: TypeAlias = Tensor | Sequence[int] | IndexLists | Labeled


def read_groups(
    argument: str, units: Any, d: int, *, overlap: bool = True, cols: bool = False, least: int = 1
) -> list[Tensor]:
    """The units of each group among d, in ascending order, int64 on the CPU.

    Args:
        argument: how messages call `units`.
        units: a boolean or 0-1 matrix `[groups, d]`; labels `[d]`, -1 for "in no group"; a list
            with a list of unit indices for each group, or a mapping of labels to such lists; or
            `Clusters`, whose rows are taken.
        d: number of units.
        overlap: whether a unit may be in several groups.
        cols: takes the columns of `Clusters`.
        least: how many groups there must be.

    Raises:
        TypeError: none of them; indices that are no integers.
        ValueError: another number of units, indices out of range, too few groups, empty ones,
            groups that overlap where they must not.

    Example:
        >>> [group.tolist() for group in read_groups("units", [0, 1, -1, 0], 4)]
        [[0, 3], [1]]
        >>> [group.tolist() for group in read_groups("units", {0: [2, 1], 1: [0]}, 3)]
        [[1, 2], [0]]
    """
    if all(hasattr(units, name) for name in ("rows", "cols", "n_clusters")):
        units = units.cols if cols else units.rows
    if hasattr(units, "__array__"):
        with suppress(TypeError, RuntimeError):  # what torch has no type for, or no memory
            units = torch.as_tensor(units, device="cpu")
    if isinstance(units, Tensor):
        checks.dense(argument, units)
    elif not isinstance(units, (Sequence, Mapping)) or isinstance(units, str):
        raise TypeError(
            f"{argument} must be a matrix [groups, d], labels [d] or a list of unit indices for "
            f"each group, got {type(units).__name__}"
        )
    if isinstance(units, Tensor) and units.dim() == 2:
        groups = _of_matrix(argument, units, d)
    elif isinstance(units, Tensor) or not (
        isinstance(units, Mapping) or any(isinstance(group, Iterable) for group in units)
    ):
        groups = _of_labels(argument, checked_labels(argument, units), d)
    else:
        groups = [
            torch.tensor(sorted(set(group)), dtype=torch.int64, device="cpu")
            for group in _lists(argument, units, d).values()
        ]
    if len(groups) < least:
        raise ValueError(f"{argument} must have at least {least} groups, got {len(groups)}")
    for number, group in enumerate(groups):
        if not len(group):
            raise ValueError(
                f"{argument} must have units in each group, got none in group {number}"
            )
    if not overlap and groups:
        unit, times = torch.cat(groups).unique(return_counts=True)
        if len(unit) and int(times.max()) > 1:
            at = int(unit[times.argmax()])
            raise ValueError(
                f"{argument} must not overlap: unit {at} is in {int(times.max())} groups"
            )
    return groups


def read_indices(argument: str, units: Any, d: int) -> Tensor:
    """One group's units, int64 in the order given, on the device of a tensor.

    Raises:
        TypeError: no integers.
        ValueError: none, some that are repeated or out of range.
    """
    found = checks.integers(argument, units)
    if found.dim() != 1 or not found.numel():
        raise ValueError(f"{argument} must be one or more unit indices, got {units!r}")
    low, high = int(found.min()), int(found.max())
    if low < 0 or high >= d:
        raise ValueError(
            f"{argument} must have units from 0 to {d - 1}, got {low if low < 0 else high}"
        )
    values, times = found.unique(return_counts=True)
    if len(values) < len(found):
        raise ValueError(f"{argument} must not repeat units, got {int(values[times.argmax()])}")
    return found


def checked_labels(argument: str, values: Tensor | Sequence[int]) -> Tensor:
    """Labels as int32 `[n]`.

    Raises:
        TypeError: no integers.
        ValueError: not one-dimensional, below -1, or 2^31 and more.
    """
    labels = checks.integers(argument, values)
    if labels.dim() != 1:
        raise ValueError(f"{argument} must be one-dimensional, got shape {tuple(labels.shape)}")
    if labels.numel() and int(labels.min()) < -1:
        at = int(labels.argmin())
        raise ValueError(f"{argument}[{at}] must be at least -1, got {int(labels[at])}")
    if labels.numel() and int(labels.max()) >= 2**31:
        raise ValueError(f"{argument} must be below 2**31, got {int(labels.max())}")
    return labels.to(torch.int32)


def labels_of_lists(argument: str, lists: IndexLists, size: int | None) -> tuple[Tensor, int]:
    """Labels `[size]` of lists of indices, int32, and their number.

    Raises:
        TypeError: an index that is no integer.
        ValueError: an index in two groups, negative, or not below `size`; 2^31 without one.
    """
    groups = _lists(argument, lists, size)
    if size is None:
        size = max((unit for group in groups.values() for unit in group), default=-1) + 1
    labels = torch.full((size,), -1, dtype=torch.int32, device="cpu")
    for label, group in groups.items():
        for unit in group:
            if labels[unit] not in (-1, label):
                raise ValueError(
                    f"{argument} must not overlap: index {unit} is in "
                    f"clusters {int(labels[unit])} and {label}"
                )
            labels[unit] = label
    return labels, max(groups, default=-1) + 1


def labels_of_masks(argument: str, masks: Tensor) -> Tensor:
    """Labels `[n]` of boolean membership masks `[k, n]`.

    Raises:
        TypeError: masks that are not boolean.
        ValueError: not two-dimensional, no masks, or some that overlap.
    """
    checks.dense(argument, masks)
    if masks.dtype != torch.bool:
        raise TypeError(f"{argument} must be a boolean tensor, got {masks.dtype}")
    if masks.dim() != 2 or len(masks) == 0:
        raise ValueError(f"{argument} must be [n_clusters, n_units], got {tuple(masks.shape)}")
    count = masks.sum(0)
    if count.numel() and int(count.max()) > 1:
        raise ValueError(
            f"{argument} must not overlap: unit {int(count.argmax())} is in "
            f"{int(count.max())} clusters"
        )
    return torch.where(count == 1, masks.to(torch.uint8).argmax(0), -1)


def _of_matrix(argument: str, masks: Tensor, d: int) -> list[Tensor]:
    if masks.dtype != torch.bool and not ((masks == 0) | (masks == 1)).all():
        raise ValueError(f"{argument} must be 0 or 1 everywhere as a matrix, got other values")
    _require_units(argument, masks.shape[1], d)
    return [mask.nonzero()[:, 0] for mask in masks.bool()]


def _of_labels(argument: str, labels: Tensor, d: int) -> list[Tensor]:
    _require_units(argument, len(labels), d)
    found = labels[labels >= 0].unique()
    # Told from the labels that there are: one of billions would make as many groups.
    missing = (found != torch.arange(len(found), device=found.device)).nonzero()
    if len(missing):
        raise ValueError(
            f"{argument} must have units in each group, got none in group {int(missing[0])} with "
            f"labels up to {int(found[-1])}"
        )
    return [(labels == label).nonzero()[:, 0] for label in found]


def _require_units(argument: str, n: int, d: int) -> None:
    if n != d:
        raise ValueError(f"{argument} must be of the {d} units there are, got {n}")


def _lists(argument: str, lists: Any, size: int | None) -> dict[int, list[int]]:
    """Indices by label, all from 0 to `size` - 1."""
    if not isinstance(lists, Mapping):
        lists = checks.several(argument, lists)
    groups: dict[int, list[int]] = {}
    for label, group in lists.items() if isinstance(lists, Mapping) else enumerate(lists):
        # An integer of NumPy is one, as the labels of scikit-learn are.
        if isinstance(label, bool) or not hasattr(label, "__index__") or as_index(label) < 0:
            raise ValueError(f"{argument} must have cluster labels >= 0 as keys, got {label!r}")
        if as_index(label) >= 2**31:
            raise ValueError(f"{argument} must have labels below 2**31 as keys, got {label}")
        try:
            if isinstance(group, str):
                raise TypeError(f"got {group!r}")
            groups[as_index(label)] = [as_index(unit) for unit in group]
        except TypeError as error:
            raise TypeError(
                f"{argument} must hold lists of integer unit indices: {error}"
            ) from None
        for unit in groups[as_index(label)]:
            if not 0 <= unit < (2**31 if size is None else size):
                upper = "2**31 - 1" if size is None else str(size - 1)
                raise ValueError(f"{argument} must hold indices from 0 to {upper}, got {unit}")
    return groups
