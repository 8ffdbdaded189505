"""What ablations did, as small bundles of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from modfast import checks, plots
from modfast.results import Result

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MEASURES = ("entropy_difference", "kl_ablated_original", "kl_original_ablated", "loss", "accuracy")


@dataclass(frozen=True, eq=False, repr=False)
class AblationResult(Result):
    """What each of several ablations does to a network's class probabilities.

    p are the probabilities of the whole network, q those of the ablated one; entropies, divergences
    and losses are in nats. All are float64 tensors on the CPU, one entry per ablation in the order
    in which they were asked for: `[a]`, summed over the samples, or `[n, a]` with
    `per_sample=True`. Where logits come by token, each token is a sample.
    """

    entropy_difference: Tensor
    """H(p) - H(q): above 0 where the ablation makes the network surer."""
    kl_ablated_original: Tensor
    """KL(q | p) = sum over classes of q log(q / p)."""
    kl_original_ablated: Tensor
    """KL(p | q) = sum over classes of p log(p / q)."""
    n_samples: int
    loss: Tensor | None = None
    """-log q(target), with targets."""
    accuracy: Tensor | None = None
    """With targets: the share of samples whose largest logit is the target's, `[a]`; for each
    sample 1 or 0, `[n, a]`, with `per_sample=True`."""
    class_accuracy: Tensor | None = None
    """With targets: the same among the samples of each class, `[a, c]`; NaN for a class without."""
    kind: str = "ablation"
    """What was ablated: "unit", "direction" or "group"."""
    numbers: Tensor | None = None
    """Which: int64 `[a]`, by default 0, 1, ..."""
    backend: str = ""
    """How the network was resumed from the site."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Their names: "unit 3", "direction 0"."""
        n = self.kl_ablated_original.shape[-1]
        numbers = range(n) if self.numbers is None else self.numbers.tolist()
        return tuple(f"{self.kind} {i}" for i in numbers)

    def top(
        self, k: int = 10, by: str = "kl_ablated_original", largest: bool = True
    ) -> tuple[Tensor, Tensor]:
        """The k ablations that do most, most first: their values and positions, `[k]` each.

        Per-sample values are summed over the samples first.

        Raises:
            TypeError, ValueError: `k` is no integer from 1 to the number of ablations, or there is
                no such measure.

        Example:
            >>> import torch
            >>> ones = torch.ones(2).double()
            >>> values, positions = AblationResult(ones, torch.tensor([1.0, 3.0]), ones, 5).top(1)
            >>> values.item(), positions.item()
            (3.0, 1)
        """
        values = self.total(by)
        checks.flag("largest", largest)
        if checks.count("k", k) > len(values):
            raise ValueError(f"k must be at most {len(values)}, the ablations, got {k}")
        found = values.topk(k, largest=largest)
        return found.values, found.indices

    def total(self, measure: str) -> Tensor:
        """One measure per ablation, `[a]`: summed over the samples, accuracies averaged.

        Raises:
            ValueError: no such measure, or one that needs targets and got none.
        """
        known = isinstance(measure, str) and measure in MEASURES
        values = getattr(self, measure) if known else None
        if not isinstance(values, Tensor):
            names = [name for name in MEASURES if getattr(self, name) is not None]
            raise ValueError(f"the measure must be one of {names}, got {measure!r:.60}")
        if values.dim() == 1:
            return values
        return values.mean(0) if measure == "accuracy" else values.sum(0)

    def mean(self, measure: str) -> Tensor:
        """One measure per ablation, mean over the samples: `[a]`.

        Raises:
            ValueError: as `total`.

        Example:
            >>> import torch
            >>> ones = torch.ones(2).double()
            >>> AblationResult(ones, ones, ones, 4).mean("kl_ablated_original")
            tensor([0.2500, 0.2500], dtype=torch.float64)
        """
        total = self.total(measure)
        return total if measure == "accuracy" else total / self.n_samples

    def plot(self, measure: str = "kl_ablated_original") -> Figure:
        """One measure, mean over the samples, as a line: in the ablations' order, and sorted."""
        return self.overlay({"": self}, measure)

    @classmethod
    def overlay(
        cls, results: Mapping[str, AblationResult], measure: str = "kl_ablated_original"
    ) -> Figure:
        """Several results' lines over each other, by name.

        Raises:
            TypeError, ValueError: other values than results, none; as `total`.
        """
        named = cls.by_name(results)
        return plots.ablation_lines(
            {name: each.mean(measure) for name, each in named.items()},
            {name: each.labels for name, each in named.items()},
            measure,
        )


@dataclass(frozen=True, eq=False, repr=False)
class DirectionResult(Result):
    """The direction whose removal changes a network's class probabilities most, as searched for.

    `r` restarts, `d` features at the site; float64 on the CPU but for the directions, which have
    the dtype of the site.
    """

    direction: Tensor
    """Of unit length: `[d]`."""
    kl: Tensor
    """KL(ablated | original) of its removal, summed over the samples: scalar, in nats."""
    history: Tensor
    """The same of each restart after each step, and before the first: `[steps + 1, r]`."""
    directions: Tensor
    """The best that each restart found: `[r, d]`."""
    kls: Tensor
    """Theirs: `[r]`."""
    backend: str = ""
    """How the network was resumed from the site."""

    def plot(self) -> Figure:
        """The divergence over the steps, one line per restart."""
        return plots.direction_search(self.history)


def class_shares(correct: Tensor, targets: Tensor) -> Tensor:
    """`[a, c]` correct samples as shares of each class's samples; NaN for a class without."""
    return correct / torch.bincount(targets, minlength=correct.shape[1]).double()
