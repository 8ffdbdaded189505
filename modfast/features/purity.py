"""Do the samples that activate a unit most belong together?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from modfast import checks, plots
from modfast.features.result import TopActivations
from modfast.results import Result

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True, eq=False, repr=False)
class LabelPurity(Result):
    """How few labels the samples that activate each of d units most have; c classes.

    Example:
        >>> import torch
        >>> label_purity(torch.tensor([[3, 3], [1, 2]]), 4).distinct
        tensor([1, 2])
    """

    score: float
    """1 - mean(distinct) / c: 1 - 1/c where each unit's samples are of one class."""
    distinct: Tensor
    """The number of distinct labels of each unit, int64 `[d]`."""
    histogram: Tensor
    """How many units have 1, 2, ..., c distinct labels: int64 `[c]`."""
    survival: Tensor
    """The share of units that have more than 0, 1, ..., c distinct labels: float64 `[c + 1]`."""

    def plot(self) -> Figure:
        """The histogram, and the survival curve."""
        return self.overlay({"": self})

    @classmethod
    def overlay(cls, results: Mapping[str, LabelPurity]) -> Figure:
        """Several networks' over each other, by name.

        Raises:
            TypeError, ValueError: other values than results, none.
        """
        named = cls.by_name(results)
        return plots.label_purity(
            {name: each.histogram for name, each in named.items()},
            {name: each.survival for name, each in named.items()},
            {name: each.score for name, each in named.items()},
        )


def label_purity(
    top: TopActivations | Tensor, n_classes: int, skip_dead: bool = False
) -> LabelPurity:
    """How few labels the samples that activate each unit most have: a rough interpretability.

    score = 1 - (mean over units of the distinct labels among their top k) / (number of classes).

    Args:
        top: of `max_activating`, with labels; or the labels alone, integers `[d, k]`.
        n_classes: labels are from 0 to n_classes - 1.
        skip_dead: leave dead units out, whose samples are arbitrary; the notebook does not.

    Raises:
        TypeError: another kind of `top`; labels that are not integers; `skip_dead` with labels
            alone.
        ValueError: no labels, no units or no samples; labels out of range.

    Source: N1, its rough interpretability.

    Example:
        >>> import torch, modfast
        >>> purity = modfast.label_purity(torch.tensor([[3, 3, 3], [1, 2, 1]]), n_classes=4)
        >>> purity.score, purity.survival.tolist()
        (0.625, [1.0, 0.5, 0.0, 0.0, 0.0])
    """
    c = checks.count("n_classes", n_classes)
    checks.room("n_classes", 16 * c)
    checks.flag("skip_dead", skip_dead)
    if isinstance(top, TopActivations):
        if top.labels is None:
            raise ValueError("top must have labels: give max_activating pairs (samples, targets)")
        labels = top.labels[~top.dead] if skip_dead else top.labels
    elif isinstance(top, Tensor):
        if skip_dead:
            raise TypeError("skip_dead needs a TopActivations, labels do not tell which are dead")
        labels = top
    else:
        raise TypeError(f"top must be a TopActivations or labels, got {type(top).__name__}")
    checks.dense("labels" if labels is not top else "top", labels)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    if labels.dim() != 2 or labels.numel() == 0:
        raise ValueError(
            f"labels must be [units, k] and not empty, got shape {tuple(labels.shape)}"
        )
    labels = labels.long()
    low, high = (int(x) for x in labels.aminmax())
    if low < 0 or high >= c:
        wrong = low if low < 0 else high
        raise ValueError(f"labels must be from 0 to {c - 1}, got {wrong}")
    distinct = 1 + labels.sort(1).values.diff().ne(0).sum(1)
    counts = torch.bincount(distinct, minlength=c + 1)
    survival = 1 - counts.cumsum(0).double() / len(labels)
    score = 1 - float(distinct.double().mean()) / c
    return LabelPurity(score, distinct.cpu(), counts[1:].cpu(), survival.cpu())
