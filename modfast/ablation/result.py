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
class Screening(Result):
    """How the units of an exact ablation were chosen, and what may have been missed.

    The `k` units that an estimate puts first were ablated, and as many drawn at random from the
    others (or all of them). float64 tensors on the CPU.

    Example:
        >>> import torch, modfast
        >>> model, x = modfast.models.MLP([8, 64, 3]), torch.randn(200, 8)
        >>> told = modfast.ablate_units(model, x, "act1", screen=10).screening
        >>> len(told.units), len(told.drawn), told.most_missed < 54
        (10, 10, True)
    """

    estimate: Tensor
    """Of all units, `[d]`: what `attribute_units` gives, summed over the samples."""
    units: Tensor
    """The units that it puts first, most first: int64 `[k]`."""
    drawn: Tensor
    """Those drawn at random, int64 `[m]`."""
    correlation: float
    """Of the estimate with the exact values, over the ones drawn; NaN below two."""
    n_exceeding: int
    """How many drawn ones exceed the least exact value of the `k`, by their absolute values."""
    most_missed: int
    """As many of all others may exceed it, at most, with a confidence of 95 %."""
    measure: str = "kl_ablated_original"
    """Which of the result's measures is estimated."""

    def plot(self) -> Figure:
        """The estimates, most first, with those that were ablated marked."""
        return plots.screening(self.estimate, self.units, self.drawn)


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
    positions: Tensor | None = None
    """With `positions="each"`: at which position each was made, int64 `[a]`."""
    metrics: Mapping[str, Tensor] | None = None
    """With `metric=`: what each function gives after the ablation minus what it gave before, summed
    over the samples of the inputs `[a]`, or of each `[n, a]`, with `per_sample=True`."""
    n_inputs: int | None = None
    """How many samples the inputs have; these are what `metrics` is of."""
    values: Tensor | None = None
    """With `value="optimal"`: what was put in the activations' place, `[a]` or, of groups,
    `[a, d]`."""
    screening: Screening | None = None
    """With `screen=`: what stands for the units that were not ablated."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Their names: "unit 3", "direction 0"."""
        n = self.kl_ablated_original.shape[-1]
        numbers = range(n) if self.numbers is None else self.numbers.tolist()
        if self.positions is None:
            return tuple(f"{self.kind} {i}" for i in numbers)
        pairs = zip(numbers, self.positions.tolist(), strict=True)
        return tuple(f"{self.kind} {i} at {p}" for i, p in pairs)

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
        metrics = self.metrics or {}
        values = None
        if isinstance(measure, str):
            values = getattr(self, measure) if measure in MEASURES else metrics.get(measure)
        if not isinstance(values, Tensor):
            names = [name for name in MEASURES if getattr(self, name) is not None]
            names += metrics
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
        if measure == "accuracy":
            return total
        of_inputs = measure not in MEASURES and self.n_inputs is not None
        return total / (self.n_inputs if of_inputs and self.n_inputs else self.n_samples)

    def grid(self, measure: str = "kl_ablated_original") -> Tensor:
        """With `positions="each"`: one measure, mean over the samples, `[units, positions]`.

        Raises:
            ValueError: ablations that are not of each position; as `total`.
        """
        if self.positions is None:
            raise ValueError("positions must be 'each' in the ablations of a grid, got none")
        return self.mean(measure).reshape(-1, int(self.positions.max()) + 1)

    def plot(self, measure: str = "kl_ablated_original") -> Figure:
        """One measure, mean over the samples, as a line: in the ablations' order, and sorted.

        Of ablations at each position, a heat map of units and positions.
        """
        if self.positions is not None:
            grid = self.grid(measure)
            assert self.numbers is not None
            names = [f"{self.kind} {i}" for i in self.numbers[:: grid.shape[1]].tolist()]
            return plots.ablation_map(grid, names, "position", measure)
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
class SiteAblations(Result):
    """What the ablations of several sites do, by site.

    Example:
        >>> import torch, modfast
        >>> model = modfast.models.MLP([8, 6, 6, 3])
        >>> found = modfast.ablate_units(model, torch.randn(20, 8), ["act1", "act2"])
        >>> list(found.sites), found["act2"].kl_ablated_original.shape
        (['act1', 'act2'], torch.Size([6]))
    """

    sites: Mapping[str, AblationResult]

    def __getitem__(self, site: str) -> AblationResult:
        """The result of one site."""
        if site not in self.sites:
            raise KeyError(f"site must be one of {list(self.sites)}, got {site!r}")
        return self.sites[site]

    def top(self, k: int = 10, by: str = "kl_ablated_original") -> list[tuple[str, int, float]]:
        """The k ablations of any site that do most: site, number and value in all, most first.

        By the absolute value, since a metric may fall.

        Raises:
            TypeError, ValueError: `k` is no integer from 1 on; no such measure.
        """
        checks.count("k", k)
        every = [
            (site, number, value)
            for site, result in self.sites.items()
            for number, value in enumerate(result.total(by).tolist())
        ]
        return sorted(every, key=lambda each: -abs(each[2]))[:k]

    def plot(self, measure: str = "kl_ablated_original") -> Figure:
        """One measure, mean over the samples, as a heat map with a row for each site.

        Columns are the ablations of a site, such as its heads; of ablations at each position, the
        positions, at which all ablations of a site are added up.
        """
        each = list(self.sites.values())
        by_position = all(result.positions is not None for result in each)
        rows = [x.grid(measure).sum(0) if by_position else x.mean(measure) for x in each]
        values = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=torch.nan)
        kinds = " or ".join(dict.fromkeys(result.kind for result in each))
        across = "position" if by_position else kinds
        return plots.ablation_map(values, list(self.sites), across, measure)


@dataclass(frozen=True, eq=False, repr=False)
class UnitScores(Result):
    """What changing each unit of several sites would do, as estimated from gradients.

    Example:
        >>> import torch, modfast
        >>> model, x = modfast.models.MLP([8, 6, 6, 3]), torch.randn(20, 8)
        >>> found = modfast.attribute_units(model, x, ["act1", "act2"], metric="entropy")
        >>> site, unit, score = found.top(1)[0]
        >>> score == found.scores[site][unit].item()
        True
    """

    scores: Mapping[str, Tensor]
    """By site, float64 `[units]`, or `[units, positions]`: ablated minus original, summed over the
    samples."""
    metric: str
    """"kl", "loss", "entropy" or the name of a function."""
    n_samples: int
    """Of the inputs."""
    steps: int = 1
    """Of the way on which gradients were taken; 1 for those of the unchanged run."""
    kind: str = "unit"
    """"unit" or "group"."""
    corrected: tuple[str, ...] = ()
    """The sites at which attention's softmax was done again."""

    def top(self, k: int = 10) -> list[tuple[str, int, float]]:
        """The k units of the largest absolute scores: site, unit and score, most first.

        Scores at several positions are added up.

        Raises:
            TypeError, ValueError: `k` is no integer from 1 on.
        """
        checks.count("k", k)
        every = [
            (site, unit, score)
            for site, scores in self.scores.items()
            for unit, score in enumerate(
                scores.flatten(1).sum(1).tolist() if scores.dim() > 1 else scores.tolist()
            )
        ]
        return sorted(every, key=lambda each: -abs(each[2]))[:k]

    def plot(self) -> Figure:
        """A heat map with a row for each site: its units, or with `positions="each"` its positions.

        Scores at a position are those of all units there, added up.
        """
        by_position = all(scores.dim() > 1 for scores in self.scores.values())
        rows = [scores.sum(0) if by_position else scores for scores in self.scores.values()]
        across = "position" if by_position else self.kind
        values = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=torch.nan)
        return plots.ablation_map(values / self.n_samples, list(self.scores), across, self.metric)


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
