"""Joint histograms of more samples than fit in memory, or than one process sees."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from modfast import checks, plots
from modfast.information.binning import Binning, Outside, Range, matrices
from modfast.information.counts import Pairing, Terms, count_codes
from modfast.results import Result

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True, eq=False, repr=False)
class JointInformation(Result):
    """Joint counts and what follows from them, in nats; float64 but for the counts, on the CPU.

    Example:
        >>> import torch
        >>> codes = torch.tensor([0, 1])
        >>> JointHistogram(bins=2).update(codes, 1 - codes).compute().mutual_information
        tensor(0.6931, dtype=torch.float64)
    """

    counts: Tensor
    """int64 `[bins, bins]`; for pairing="pairwise" `[dx, dy, bins, bins]`, and all others
    `[dx, dy]` instead of scalars."""
    x_entropy: Tensor
    """H(x)."""
    y_entropy: Tensor
    """H(y)."""
    joint_entropy: Tensor
    """H(x, y)."""
    conditional_entropy: Tensor
    """H(x | y)."""
    mutual_information: Tensor
    """I(x; y)."""

    def plot(self) -> Figure:
        """The pooled table of counts as a heat map; for pairs, the matrix of information."""
        return plots.joint_information(self.counts, self.mutual_information)


class JointHistogram:
    """Counts of x's codes against y's, batch by batch: exact integers in any order of batches.

    Where torch.distributed is initialized, `compute` adds up the counts of all ranks, as
    torchmetrics' metrics do.

    Args:
        bins: number of bins of each, or the codes' cardinality.
        range: `(lo, hi)` of x, numbers or tensors `[dx]`, which no batch can find for the others;
            None takes integer codes only.
        y_range: the same for y; by default that of x.
        pairing: as in `joint_histogram`.
        outside: as in `digitize`, for values outside the range.
        features: `(dx, dy)`, for pairing="pairwise" only.
        device: of the counts; batches are counted where they are.

    Raises:
        TypeError, ValueError: as `joint_histogram`, here and in `update`.

    Example:
        >>> import torch
        >>> histogram = JointHistogram(bins=10, range=(-3.0, 3.0))
        >>> for batch in torch.linspace(-2, 2, 1000).split(300):
        ...     _ = histogram.update(batch, batch.square() - 2)
        >>> result = histogram.compute()
        >>> int(result.counts.sum()), f"{result.conditional_entropy:.2f}"
        (1000, '0.89')
    """

    def __init__(
        self,
        bins: int = 10,
        range: tuple[float | Tensor, float | Tensor] | None = None,
        *,
        y_range: tuple[float | Tensor, float | Tensor] | None = None,
        pairing: Pairing = "aligned",
        outside: Outside = "clip",
        features: tuple[int, int] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        checks.choice("pairing", pairing, get_args(Pairing))
        for argument, given in (("range", range), ("y_range", y_range)):
            if isinstance(given, str):
                raise ValueError(
                    f"{argument} must be (lo, hi): no batch knows the others', got {given!r}"
                )
        if (features is not None) != (pairing == "pairwise"):
            raise ValueError(
                f"features must be (dx, dy) with pairing='pairwise' and None with any other, "
                f"got {features!r} with pairing={pairing!r}"
            )
        y_range = range if y_range is None else y_range
        whole: Range = "global"
        self.x_binning = Binning(bins, whole if range is None else range, outside=outside)
        try:
            self.y_binning = Binning(bins, whole if y_range is None else y_range, outside=outside)
        except (TypeError, ValueError) as error:
            raise type(error)(f"y_range: {error}") from None
        self.pairing = pairing
        pairs = () if features is None else _pair(features)
        bins = self.x_binning.bins
        checks.room("features and bins", 8 * math.prod((*pairs, bins, bins)))
        device = checks.device("device", device)
        self.counts = torch.zeros((*pairs, bins, bins), dtype=torch.int64, device=device)

    def update(self, x: Tensor, y: Tensor) -> JointHistogram:
        """Counts a batch `[n, dx]`, `[n, dy]`, and returns the histogram."""
        x, y = matrices(x, y)
        if self.pairing == "pairwise" and (x.shape[1], y.shape[1]) != self.counts.shape[:2]:
            raise ValueError(
                f"x and y must have features={tuple(self.counts.shape[:2])}, "
                f"got {x.shape[1]} and {y.shape[1]}"
            )
        if self.pairing == "aligned" and x.shape != y.shape:
            raise ValueError(
                f"x and y must have as many features with pairing='aligned', "
                f"got {x.shape[1]} and {y.shape[1]}"
            )
        x_codes, y_codes = _codes("x", x, self.x_binning), _codes("y", y, self.y_binning)
        new = count_codes(x_codes, y_codes, self.x_binning.bins, self.pairing)
        self.counts += new.to(self.counts.device)
        return self

    def merge(self, other: JointHistogram) -> JointHistogram:
        """Adds another histogram's counts, and returns this one.

        Raises:
            TypeError: not a `JointHistogram`.
            ValueError: other bins, ranges or pairing.
        """
        if not isinstance(other, JointHistogram):
            raise TypeError(f"other must be a JointHistogram, got {type(other).__name__}")
        self._require_same("other", other.state_dict())
        self.counts += other.counts.to(self.counts.device)
        return self

    def compute(self) -> JointInformation:
        """Counts and information of all batches so far, of all ranks.

        Raises:
            ValueError: no batch was counted.
        """
        counts = self.counts.clone()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
        if not counts.any():
            raise ValueError("JointHistogram must be updated before compute, got no samples")
        found = Terms.of_counts(counts)
        x, y = found.entropies()
        mutual = found.mutual
        return JointInformation(counts, x, y, x + y - mutual, x - mutual, mutual).cpu()

    def reset(self) -> None:
        """Forgets all batches."""
        self.counts.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Counts of this rank, and what they are counts of."""
        bounds = (each.bounds for each in (self.x_binning, self.y_binning))
        low_high = (None if each is None else each.tolist() for each in bounds)
        return {
            **dict(zip(("range", "y_range"), low_high, strict=True)),
            "pairing": self.pairing,
            "shape": tuple(self.counts.shape),
            "counts": self.counts.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up the counts of a histogram of the same bins, ranges and pairing.

        Raises:
            TypeError: no such state.
            ValueError: it was of other ones, or counts are negative.
        """
        self._require_same("state", state)
        counts = state["counts"]
        checks.tensor("state['counts']", counts, torch.int64)
        if counts.shape != self.counts.shape or bool((counts < 0).any()):
            raise ValueError(f"state must have counts {list(self.counts.shape)} of at least 0")
        self.counts.copy_(counts)

    def _require_same(self, argument: str, state: dict[str, Any]) -> None:
        if not isinstance(state, Mapping):
            raise TypeError(f"{argument} must be a mapping, got {checks.shown(state)}")
        own = self.state_dict()
        if own.keys() != state.keys():
            raise ValueError(f"{argument} must have keys {list(own)}, got {list(state)}")
        for name in own.keys() - {"counts"}:
            if type(own[name]) is not type(state[name]) or own[name] != state[name]:
                raise ValueError(f"{argument} must have {name}={own[name]}, got {state[name]}")


def _pair(features: Any) -> tuple[int, ...]:
    if not isinstance(features, (tuple, list)) or len(features) != 2:
        raise TypeError(f"features must be (dx, dy), got {features!r}")
    return tuple(checks.count("features", d) for d in features)


def _codes(argument: str, values: Tensor, binning: Binning) -> Tensor:
    if binning.bounds is None and values.is_floating_point():
        raise ValueError(f"range must be given for floating values of {argument}, got None")
    return binning.codes(argument, values)
