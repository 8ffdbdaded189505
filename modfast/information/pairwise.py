"""Mutual information of all pairs of features, with its significance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from modfast import checks, plots
from modfast._renamed import WasTensor
from modfast.information.binning import Binning, Range, Rule
from modfast.information.counts import Correction, Terms, pair_codes, permutations
from modfast.ops import information as ops
from modfast.precision import precise
from modfast.results import Result

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Normalized: TypeAlias = Literal["min", "geometric", "arithmetic", "max", None]


@dataclass(frozen=True, eq=False, repr=False)
class PairwiseInformation(WasTensor, Result):
    """Mutual information of pairs of features, and what it would be if they were independent.

    All are float64 tensors `[dx, dy]` on the CPU, in nats; what permutations tell is None without.
    For one release it may still be used as the tensor `mi`, with a DeprecationWarning.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1]])
        >>> pairwise_mutual_information(x, bins=2, n_permutations=9, seed=0).mi
        tensor([[0.6931, 0.0000, 0.0000],
                [0.0000, 0.6931, 0.6931],
                [0.0000, 0.6931, 0.6931]], dtype=torch.float64)
    """

    mi: Tensor
    """I(x_i; y_j), corrected and normalized as was asked for."""
    p_value: Tensor | None = None
    """(1 + nulls at least as large) / (1 + nulls)."""
    q_value: Tensor | None = None
    """The least rate of false discoveries at which the pair is among the discoveries (Benjamini and
    Hochberg, 1995). Of x with itself each pair counts once, and the diagonal keeps its p-value."""
    null_mean: Tensor | None = None
    """Mean plug-in information of the nulls, normalized as `mi` is."""
    null_std: Tensor | None = None
    """Its standard deviation; NaN for one permutation."""

    def plot(self, alpha: float = 0.05) -> Figure:
        """The matrix as a heat map; pairs whose q-value is above `alpha` are left blank."""
        alpha = checks.finite_number("alpha", alpha)
        return plots.pairwise_information(
            self.mi, self.p_value, self.q_value, self.null_mean, alpha
        )


@precise
def pairwise_mutual_information(
    x: Tensor,
    y: Tensor | None = None,
    bins: int = 10,
    *,
    range: Range = "column",
    rule: Rule = "uniform",
    correction: Correction = None,
    normalized: Normalized = None,
    n_permutations: int = 0,
    seed: int | None = None,
) -> PairwiseInformation:
    """I(x_i; y_j) of every feature of x with every feature of y, in nats.

    The tables of counts are never held: one pass gives the matrix.

    Args:
        x: `[n, dx]` or `[n]`; values or integer codes, see `digitize`.
        y: `[n, dy]` or `[n]`, the same samples; by default x itself, whose diagonal is then H(x_i).
        bins: number of bins of each feature, or the codes' cardinality.
        range: as in `digitize`, by default each feature's own, where `digitize` and
            `mutual_information` take one for all: `range="global"` here, or "column" or
            pairing="pairwise" there, gives the same numbers.
        rule: "uniform" or "quantile", as in `digitize`.
        correction: as in `mutual_information`.
        normalized: divides by the "min", "geometric" or "arithmetic" mean, or "max" of H(x_i) and
            H(y_j), as scikit-learn's `average_method`; 0 where that is 0 (for two constants
            scikit-learn says 1).
        n_permutations: how many times to permute the samples of y, for a null of each pair.
        seed: of the permutations; None takes torch's global random state.

    Returns:
        The information, and with permutations its significance.

    Raises:
        TypeError: values of another type; `n_permutations` no integer.
        ValueError: as `digitize`; different numbers of samples; rule="notebook", which has pooled
            values only; a negative `n_permutations`.

    Source: N0, the modularity-metric notebook; Benjamini and Hochberg (1995).

    Example:
        >>> import torch
        >>> x = torch.arange(8)[:, None] >> torch.arange(3) & 1  # three independent bits
        >>> pairwise_mutual_information(x, x[:, 0], bins=2).mi
        tensor([[0.6931],
                [0.0000],
                [0.0000]], dtype=torch.float64)
    """
    checks.choice("rule", rule, get_args(Literal["uniform", "quantile"]))
    checks.choice("correction", correction, get_args(Correction))
    checks.choice("normalized", normalized, get_args(Normalized))
    if seed is not None:
        checks.seed("seed", seed)
    n_permutations = checks.integer("n_permutations", n_permutations)
    if n_permutations < 0:
        raise ValueError(f"n_permutations must be at least 0, got {n_permutations}")
    binning = Binning(bins, range, rule)
    if y is None:
        x_codes = y_codes = binning.codes("x", x)
    else:
        x_codes, y_codes = pair_codes(x, y, binning, "pairwise")
    if not n_permutations:
        found = Terms.of_pairs(x_codes, y_codes, bins, correction, seed)
        return PairwiseInformation(found.mutual / _divisor(found, normalized)).cpu()

    checks.room("n_permutations", 8 * n_permutations * len(x_codes))
    orders = permutations(len(x_codes), n_permutations, seed, x_codes.device)
    plain, _ = ops.pairwise_information(x_codes, y_codes, bins, bins)
    at_least, mean, deviations = ops.permuted_information(
        x_codes, y_codes, bins, bins, orders, plain
    )
    found = Terms.of_pairs(x_codes, y_codes, bins, correction, seed, null_mean=mean)
    p_value = (1 + at_least).double() / (1 + n_permutations)
    if y is None:
        # A null of (i, j) is none of (j, i), but their test is one.
        p_value = p_value.triu() + p_value.triu(1).T
        q_value = p_value.clone()
        upper = torch.ones_like(p_value, dtype=torch.bool).triu(1)
        q_value[upper] = _benjamini_hochberg(p_value[upper])
        q_value = q_value.triu() + q_value.triu(1).T
    else:
        q_value = _benjamini_hochberg(p_value.flatten()).reshape(p_value.shape)
    std = (deviations / (n_permutations - 1)).sqrt() if n_permutations > 1 else mean * torch.nan
    divisor = _divisor(found, normalized)
    return PairwiseInformation(
        found.mutual / divisor, p_value, q_value, mean / divisor, std / divisor
    ).cpu()


def _divisor(found: Terms, normalized: Normalized) -> Tensor:
    """What information is divided by; infinite where there is no entropy to divide by."""
    if normalized is None:
        return found.mutual.new_ones(())
    x, y = found.entropies()
    means: dict[str, Callable[[], Tensor]] = {
        "min": lambda: torch.minimum(x, y),
        "geometric": lambda: (x * y).sqrt(),
        "arithmetic": lambda: (x + y) / 2,
        "max": lambda: torch.maximum(x, y),
    }
    mean = means[normalized]()
    return torch.where(mean > 0, mean, torch.inf)


def _benjamini_hochberg(p: Tensor) -> Tensor:
    """q-values of p-values `[m]`: the least p_(j) m / j among those that are not smaller."""
    ordered, order = p.sort(descending=True)
    ranks = torch.arange(len(p), 0, -1, device=p.device)
    found = torch.empty_like(p)
    found[order] = (ordered * len(p) / ranks).cummin(0).values if len(p) else ordered
    return found
