"""How much do the outputs of a layer tell about its inputs, if these are driven by noise?"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from modfast import checks, plots
from modfast.effective.driven import Driven, Limits
from modfast.information import Binning, entropies_of_counts
from modfast.network.logits import Output
from modfast.ops import information as ops
from modfast.progress import bar
from modfast.results import Result

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Mode: TypeAlias = Literal["parts", "whole"]
Correction: TypeAlias = Literal["miller-madow", "panzeri-treves", None]

_CORRECTIONS = ("miller-madow", "panzeri-treves", None)
_LEAST_CHANGE = 0.01  # bits


@dataclass(frozen=True, eq=False, repr=False)
class PerturbationalInformation(Result):
    """What outputs tell about inputs driven by noise; see `perturbational_ei` and `sensitivity`.

    `history` and `pairs` are float64 on the CPU.

    Example:
        >>> import torch
        >>> PerturbationalInformation(1.0, None, 100, True, torch.ones(1), "whole").bits
        1.0
    """

    bits: float
    """The information: the sum of `pairs`, or that of the whole."""
    pairs: Tensor | None
    """Of each input with each output, in bits: `[n_in, n_out]`; None for mode="whole"."""
    n_samples: int
    """How many were drawn in the end; for `sensitivity`, for each input."""
    converged: bool
    """Whether the last doubling of the samples changed `bits` by no more than the tolerance."""
    history: Tensor
    """`bits` after each doubling."""
    kind: str
    """"parts", "whole" or "sensitivity"."""
    backend: str = ""
    """Which way it was computed."""

    def plot(self) -> Figure:
        """The matrix of pairs as a heat map; for mode="whole" the values found by doubling."""
        return plots.perturbational_information(
            self.bits, self.pairs, self.n_samples, self.history, self.kind, self.converged
        )


def perturbational_ei(
    model: nn.Module,
    input_shape: Sequence[int] | int,
    layer: str | None = None,
    mode: Mode = "parts",
    *,
    in_range: Limits = (0.0, 1.0),
    out_range: Limits | None = None,
    output: Output = None,
    activation: Callable[[Tensor], Tensor] | None = None,
    bins: int = 16,
    correction: Correction = "miller-madow",
    samples: int = 10_000,
    tolerance: float | None = 0.05,
    max_samples: int = 1_000_000,
    seed: int | None = None,
    progress: bool = True,
) -> PerturbationalInformation:
    """Effective information by perturbation, in bits.

    All inputs x of a layer are driven by independent uniform noise, and its outputs y, binned as
    the inputs are, are observed:

        mode="parts":  EI = sum over inputs i and outputs j of I(x_i; y_j)
        mode="whole":  EI = I(x; y) of all inputs together with all outputs together

    By parts nothing is seen of what inputs do only together, such as an exclusive or, and what
    several outputs repeat counts several times. The whole needs samples for each of the
    bins^n_in cells of the inputs, and so is for a few inputs.

    Samples are doubled until a doubling changes the value by no more than `tolerance` times it (or
    0.01 bits). The bias of information, which falls as 1 / samples, is then no more than that.

    Args:
        model: a network, or one layer. It runs in eval mode and is left as it was.
        input_shape: of its input, without the batch axis.
        layer: the name of a module whose own inputs are driven; by default the whole model's are.
        mode: "parts" or "whole".
        in_range: lowest and highest input.
        out_range: what the bins of all outputs span; values outside fall into the outer bins. By
            default each output has the range of its first `samples` values.
        output: what the model's outputs are in what it returns: a function or a key; see
            `ablate_units`. Not for a `layer`.
        activation: applied to the outputs.
        bins: of each input and of each output, equally wide.
        correction: of the bias, as in `mutual_information`; "whole" takes None or "miller-madow".
        samples: how many to begin with.
        tolerance: see above; None takes just `samples`, and reports no convergence.
        max_samples: at most so many; `converged` tells whether they were enough.
        seed: of the noise; None takes torch's global random state.
        progress: show a progress bar, where standard error is a terminal and tqdm is installed.

    Raises:
        TypeError: `model` is no module, a module that returns no tensor, other types of options.
        ValueError: an input that does not fit, an unknown layer or one that is not called once,
            ranges or counts out of order, outputs that are not finite, "whole" with more cells of
            the inputs than `max_samples`.

    Source: N2, the effective-information notebook; Mattsson, Michaud and Hoel (2020), "EI" and
    "EI_parts".

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(2, 2, bias=False)
        >>> _ = layer.weight.data.copy_(torch.eye(2))
        >>> found = perturbational_ei(layer, 2, bins=8, seed=0)  # two wires of 3 bits
        >>> round(found.bits, 1), found.converged
        (6.0, True)
    """
    checks.choice("mode", mode, get_args(Mode))
    if mode == "whole" and correction not in (None, "miller-madow"):
        raise ValueError(
            f"correction must be None or 'miller-madow' with mode='whole', got {correction!r}"
        )
    driven = Driven(model, input_shape, layer, in_range, out_range, activation, bins, seed, output)
    rule = _Rule(samples, tolerance, max_samples)
    if mode == "whole" and driven.n_in * math.log(driven.bins) > math.log(rule.most):
        raise ValueError(
            f"mode='whole' needs samples for {bins}^{driven.n_in} cells of the inputs, more than "
            f"max_samples={max_samples}: raise max_samples, take fewer bins, or mode='parts'"
        )
    return rule.follow(_Together(driven, correction, mode), mode, progress)


def sensitivity(
    model: nn.Module,
    input_shape: Sequence[int] | int,
    layer: str | None = None,
    *,
    silent: float = 0.0,
    in_range: Limits = (0.0, 1.0),
    out_range: Limits | None = None,
    output: Output = None,
    activation: Callable[[Tensor], Tensor] | None = None,
    bins: int = 16,
    correction: Correction = "miller-madow",
    samples: int = 10_000,
    tolerance: float | None = 0.05,
    max_samples: int = 1_000_000,
    seed: int | None = None,
    progress: bool = True,
) -> PerturbationalInformation:
    """What outputs tell about each input that is driven alone, in bits.

    One input i at a time is driven by uniform noise, while all others are held at `silent`:

        sensitivity = sum over inputs i and outputs j of I(x_i; y_j)

    The other inputs' noise, which hides a weak one in `perturbational_ei` by parts, is absent; what
    the source calls degeneracy of the perturbed layer is sensitivity - EI by parts.

    Args:
        model: as in `perturbational_ei`, and so are all arguments that are not named here.
        input_shape: of its input, without the batch axis.
        layer: the name of a module whose own inputs are driven; by default the whole model's are.
        silent: the value of the inputs that are not driven.
        in_range: lowest and highest value of the one that is.
        out_range: as in `perturbational_ei`; by default each output has, for each input, its own.
        output: what the model's outputs are in what it returns: a function or a key; see
            `ablate_units`. Not for a `layer`.
        activation: applied to the outputs.
        bins: of each input and of each output.
        correction: of the bias.
        samples: how many to begin with, for each input.
        tolerance: when to stop.
        max_samples: at most so many for each input.
        seed: of the noise, which is the same for each input.
        progress: show a progress bar.

    Raises:
        TypeError, ValueError: as `perturbational_ei`; `silent` is not finite.

    Source: N2, the effective-information notebook; Mattsson, Michaud and Hoel (2020).

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, -0.1]]))
        >>> found = sensitivity(layer, 2, bins=8, seed=0)  # both inputs, also the weak one
        >>> [round(bits, 1) for bits in found.pairs.flatten().tolist()]
        [3.0, 3.0]
    """
    driven = Driven(model, input_shape, layer, in_range, out_range, activation, bins, seed, output)
    estimate = _OneByOne(driven, correction, checks.finite_number("silent", silent))
    return _Rule(samples, tolerance, max_samples).follow(estimate, "sensitivity", progress)


class _Estimate(ABC):
    """Information after ever more samples."""

    def __init__(self, driven: Driven, correction: Correction) -> None:
        checks.choice("correction", correction, _CORRECTIONS)
        self.driven, self.correction = driven, correction

    @abstractmethod
    def after(self, n: int, progress: bool) -> tuple[float, Tensor | None]:
        """Information with n samples, those of the calls before among them; in all and by pair."""

    def of_pairs(self, x_codes: Tensor, y_codes: Tensor) -> Tensor:
        """Information of all pairs of columns in bits."""
        bins = self.driven.bins
        found, bias = ops.pairwise_information(x_codes, y_codes, bins, bins, self.correction)
        return (found - bias).cpu() / math.log(2)


class _Together(_Estimate):
    """All inputs are driven at once."""

    def __init__(self, driven: Driven, correction: Correction, mode: Mode) -> None:
        super().__init__(driven, correction)
        self.mode = mode
        self.n, self.x, self.y = 0, list[Tensor](), list[Tensor]()
        self.out_binning: Binning | None = None

    def after(self, n: int, progress: bool) -> tuple[float, Tensor | None]:
        driven, new = self.driven, self.driven.rows(n - self.n)
        self.n = n
        if self.out_binning is None:
            limits = driven.out_range or self._spans(new)
            self.out_binning = Binning(driven.bins, limits)
        for rows in bar(new, f"{n} samples", progress):
            x = driven.noise(rows, driven.n_in)
            self.x.append(driven.binning.codes("inputs", x))
            self.y.append(self.out_binning.codes("outputs", driven.outputs(x)))
        self.x, self.y = [torch.cat(self.x)], [torch.cat(self.y)]
        if self.mode == "whole":
            return self._of_whole(self.x[0], self.y[0]), None
        pairs = self.of_pairs(self.x[0], self.y[0])
        return float(pairs.sum()), pairs

    def _spans(self, batches: list[int]) -> tuple[Tensor, Tensor]:
        """Lowest and highest value of each output over samples that are then drawn once more."""
        state = self.driven.generator.get_state()
        found = [
            torch.stack(self.driven.outputs(self.driven.noise(n, self.driven.n_in)).aminmax(dim=0))
            for n in batches
        ]
        self.driven.generator.set_state(state)
        low, high = torch.stack(found).double().unbind(1)
        low, high = low.amin(0), high.amax(0)
        return low, high.where(high > low, low + low.abs().clamp(min=1.0))

    def _of_whole(self, x_codes: Tensor, y_codes: Tensor) -> float:
        x, y = _cells(x_codes), _cells(y_codes)
        counts = [each.bincount() for each in (x, y, _cells(torch.stack([x, y], 1)))]
        one, other, both = (entropies_of_counts(each) for each in counts)
        found = one + other - both
        if self.correction is not None:
            one, other, both = (each.count_nonzero() for each in counts)
            found = found - (both - one - other + 1) / (2 * len(x))
        return float(found) / math.log(2)


class _OneByOne(_Estimate):
    """One input is driven at a time, all others are silent."""

    def __init__(self, driven: Driven, correction: Correction, silent: float) -> None:
        super().__init__(driven, correction)
        self.silent = silent
        self.noise = torch.empty(0, 1, **driven.like)

    def after(self, n: int, progress: bool) -> tuple[float, Tensor | None]:
        driven = self.driven
        self.noise = torch.cat([self.noise, driven.noise(n - len(self.noise), 1)])
        codes = driven.binning.codes("inputs", self.noise)
        out_binning = Binning(driven.bins, driven.out_range or "column")
        found = []
        for unit in bar(range(driven.n_in), f"inputs, {n} samples", progress):
            parts = []
            for values in self.noise.split(driven.rows(n)):
                x = values.new_full((len(values), driven.n_in), self.silent)
                x[:, unit] = values[:, 0]
                parts.append(driven.outputs(x))
            found.append(self.of_pairs(codes, out_binning.codes("outputs", torch.cat(parts))))
        pairs = torch.cat(found)
        return float(pairs.sum()), pairs


class _Rule:
    """When there are samples enough."""

    def __init__(self, samples: int, tolerance: float | None, max_samples: int) -> None:
        self.first, self.most = (
            checks.count("samples", samples),
            checks.count("max_samples", max_samples),
        )
        if self.first > self.most:
            raise ValueError(f"samples must be at most max_samples={max_samples}, got {samples}")
        if tolerance is not None and checks.finite_number("tolerance", tolerance) <= 0:
            raise ValueError(f"tolerance must be above 0, got {tolerance}")
        self.tolerance = tolerance

    def follow(self, estimate: _Estimate, kind: str, progress: bool) -> PerturbationalInformation:
        """Doubles the samples until that changes little."""
        n, history = self.first, list[float]()
        while True:
            bits, pairs = estimate.after(n, progress)
            history.append(bits)
            converged = len(history) > 1 and self._is_small(bits - history[-2], bits)
            if self.tolerance is None or converged or 2 * n > self.most:
                break
            n *= 2
        values = torch.tensor(history, dtype=torch.float64, device="cpu")
        return PerturbationalInformation(bits, pairs, n, converged, values, kind)

    def _is_small(self, change: float, bits: float) -> bool:
        return abs(change) <= max((self.tolerance or 0.0) * abs(bits), _LEAST_CHANGE)


def _cells(codes: Tensor) -> Tensor:
    """Rows of codes `[n, d]` as numbers of distinct rows, int64 `[n]`."""
    cell = torch.zeros(len(codes), dtype=torch.int64, device=codes.device)
    for column in codes.unbind(1):
        # Renumbered each time, so that no product overflows.
        wide = cell * (int(column.max()) + 1) + column
        cell = wide.unique(return_inverse=True)[1]
    return cell
