"""Entropies and mutual information of binned values, in nats."""

from __future__ import annotations

from typing import get_args

from torch import Tensor

from modfast import checks
from modfast.information import notebook
from modfast.information.binning import Binning, Outside, Range, Rule
from modfast.information.counts import (
    Correction,
    Pairing,
    corrected_entropies,
    joint_counts,
    marginals,
    terms,
)
from modfast.precision import precise


@precise
def joint_histogram(
    x: Tensor,
    y: Tensor,
    bins: int = 10,
    *,
    pairing: Pairing = "aligned",
    range: Range | None = None,
    rule: Rule = "uniform",
    outside: Outside = "clip",
) -> Tensor:
    """Counts of x's codes against y's, exact whatever their number.

    Args:
        x: `[n, dx]` or `[n]`; values or integer codes, see `digitize`.
        y: `[n, dy]` or `[n]`, the same samples.
        bins: number of bins of each, or the codes' cardinality.
        pairing: which columns meet: "aligned", column j of x and column j of y, all pooled into one
            table; "all", every column of x and every column of y, pooled; "pairwise", the same with
            a table for each pair.
        range: as in `digitize`, found for x and y apart, or given for both; by default "column"
            for pairwise tables and "global" for pooled ones.
        rule: as in `digitize`. "notebook" pairs x with the first columns of a wider y, as the
            notebook silently did, and no other rule does.
        outside: as in `digitize`.

    Returns:
        int64 `[bins, bins]`, for "pairwise" `[dx, dy, bins, bins]`.

    Raises:
        TypeError: values of another type.
        ValueError: as `digitize`; different numbers of samples, or of features if aligned.

    Source: N0, the modularity-metric notebook.

    Example:
        >>> import torch
        >>> joint_histogram(torch.tensor([0, 0, 1]), torch.tensor([1, 1, 0]), bins=2)
        tensor([[0, 2],
                [1, 0]])
    """
    return joint_counts(x, y, _binning(bins, range, rule, pairing, outside), pairing)


@precise
def entropy(
    x: Tensor,
    bins: int = 10,
    *,
    range: Range | None = None,
    rule: Rule = "uniform",
    pairing: Pairing = "aligned",
    correction: Correction = None,
) -> Tensor:
    """H(x) = -sum p log p over bins, in nats; from counts, log N - (1/N) sum c log c.

    Args:
        x: `[n, d]` or `[n]`; values or integer codes, see `digitize`.
        bins: number of bins, or the codes' cardinality.
        range: as in `joint_histogram`.
        rule: as in `digitize`. With "notebook", the source notebook's number: over `bins` real
            bins, where its conditional entropy has bins - 1, and log(p + 1e-8).
        pairing: "pairwise" gives each column's own entropy, the others that of all columns pooled.
        correction: None, or "miller-madow" or "panzeri-treves", which add (occupied bins - 1) / 2N.

    Returns:
        A float64 scalar, for "pairwise" `[d]`.

    Raises:
        TypeError: values of another type.
        ValueError: as `digitize`; "shuffle" as correction, which corrects information only.

    Source: N0, the modularity-metric notebook.

    Example:
        >>> import torch
        >>> entropy(torch.tensor([0, 0, 1, 1]), bins=2)
        tensor(0.6931, dtype=torch.float64)
    """
    binning = _binning(bins, range, rule, pairing)
    if _is_notebook(rule, pairing, correction):
        return notebook.entropy("x", x, binning)
    checks.choice("correction", correction, get_args(Correction))
    if correction == "shuffle":
        raise ValueError("correction must not be 'shuffle' for an entropy, which has no pairs")
    codes = binning.codes("x", x)
    if pairing == "pairwise":
        return corrected_entropies(marginals(codes, bins), correction)
    return corrected_entropies(marginals(codes.reshape(-1, 1), bins)[0], correction)


@precise
def joint_entropy(
    x: Tensor,
    y: Tensor,
    bins: int = 10,
    *,
    range: Range | None = None,
    rule: Rule = "uniform",
    pairing: Pairing = "aligned",
    correction: Correction = None,
    seed: int | None = None,
) -> Tensor:
    """H(x, y) = H(x) + H(y) - I(x; y), in nats.

    Arguments, result and errors are those of `mutual_information`. With rule="notebook" it is the
    notebook's H(y) + H(x | y), whose two terms have different bins.

    Source: N0, the modularity-metric notebook.

    Example:
        >>> import torch
        >>> joint_entropy(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]), bins=2)
        tensor(1.3863, dtype=torch.float64)
    """
    binning = _binning(bins, range, rule, pairing, seed=seed)
    if _is_notebook(rule, pairing, correction):
        return notebook.joint_entropy(x, y, binning)
    found = terms(x, y, binning, pairing, correction, seed)
    x_entropy, y_entropy = found.entropies()
    return x_entropy + y_entropy - found.mutual


@precise
def conditional_entropy(
    x: Tensor,
    y: Tensor,
    bins: int = 10,
    *,
    range: Range | None = None,
    rule: Rule = "uniform",
    pairing: Pairing = "aligned",
    correction: Correction = None,
    seed: int | None = None,
) -> Tensor:
    """H(x | y) = H(x, y) - H(y), in nats: what is left unknown of x once y is known.

    Arguments, result and errors are those of `mutual_information`. With rule="notebook" it is
    -sum p log(p / (p_y + 1e-8) + 1e-8) over the notebook's bins - 1 intervals.

    Source: N0, the modularity-metric notebook.

    Example:
        >>> import torch
        >>> x = torch.tensor([0, 0, 1, 1])
        >>> conditional_entropy(x, torch.tensor([0, 1, 0, 1]), bins=2)
        tensor(0.6931, dtype=torch.float64)
        >>> conditional_entropy(x, 1 - x, bins=2)
        tensor(0., dtype=torch.float64)
    """
    binning = _binning(bins, range, rule, pairing, seed=seed)
    if _is_notebook(rule, pairing, correction):
        return notebook.conditional_entropy(x, y, binning)
    found = terms(x, y, binning, pairing, correction, seed)
    x_entropy, _ = found.entropies()
    return x_entropy - found.mutual


@precise
def mutual_information(
    x: Tensor,
    y: Tensor,
    bins: int = 10,
    *,
    range: Range | None = None,
    rule: Rule = "uniform",
    pairing: Pairing = "aligned",
    correction: Correction = None,
    seed: int | None = None,
) -> Tensor:
    """I(x; y) = H(x) + H(y) - H(x, y) = sum p log(p / (p_x p_y)), in nats.

    All four quantities come from one table of counts, so that I(x; x) = H(x), I(x; y) = I(y; x) >=
    0 and the rest of the identities hold to rounding. The estimate of N independent samples is too
    high by about (bins - 1)^2 / 2N, which `correction` removes.

    Args:
        x: `[n, dx]` or `[n]`; values or integer codes, see `digitize`.
        y: `[n, dy]` or `[n]`, the same samples.
        bins: number of bins of each, or the codes' cardinality.
        range: as in `joint_histogram`: x and y each have one range over all their columns, unless
            pairing="pairwise" or range="column", by which `pairwise_mutual_information` bins.
        rule: as in `digitize`. "notebook" gives the source notebook's number, H(x) of `entropy`
            less H(x | y) of `conditional_entropy`. One has `bins` bins and the other bins - 1,
            which alone adds about log(bins / (bins - 1)) nats, .105 for 10 bins: all of the .0997
            that the notebook printed.
        pairing: as in `joint_histogram`: pooled over columns, or "pairwise" for each pair. For a
            matrix with significance see `pairwise_mutual_information`.
        correction: None; "miller-madow", by the number of occupied bins; "panzeri-treves", by the
            number that a Bayesian estimate expects to be relevant, better for few samples;
            "shuffle", by the mean over 100 shuffles of y's samples. The first two take pooled
            values as independent and are refused for "all". Corrected values may be below 0.
        seed: of the shuffles; None takes torch's global random state.

    Returns:
        A float64 scalar, for "pairwise" `[dx, dy]`.

    Raises:
        TypeError: values of another type.
        ValueError: as `joint_histogram`; a correction that does not go with rule or pairing.

    Source: N0, the modularity-metric notebook; Miller (1955); Panzeri and Treves (1996).

    Example:
        >>> import torch
        >>> x = torch.tensor([0, 0, 1, 1])
        >>> mutual_information(x, 1 - x, bins=2)
        tensor(0.6931, dtype=torch.float64)
        >>> _ = torch.manual_seed(0)
        >>> a, b = torch.rand(2, 1_000_000)  # independent
        >>> [f"{mutual_information(a, b, rule=rule):.3f}" for rule in ("uniform", "notebook")]
        ['0.000', '0.105']
    """
    binning = _binning(bins, range, rule, pairing, seed=seed)
    if _is_notebook(rule, pairing, correction):
        return notebook.mutual_information(x, y, binning)
    return terms(x, y, binning, pairing, correction, seed).mutual


def _binning(
    bins: int,
    range: Range | None,
    rule: Rule,
    pairing: Pairing,
    outside: Outside = "clip",
    seed: int | None = None,
) -> Binning:
    checks.choice("rule", rule, get_args(Rule))
    checks.choice("pairing", pairing, get_args(Pairing))
    if seed is not None:
        checks.seed("seed", seed)
    if range is None:
        range = "column" if pairing == "pairwise" and rule != "notebook" else "global"
    return Binning(bins, range, rule, outside)


def _is_notebook(rule: Rule, pairing: Pairing, correction: Correction) -> bool:
    """Whether the notebook's own numbers are asked for, which have no pairing and no correction."""
    if rule != "notebook":
        return False
    if pairing != "aligned" or correction is not None:
        raise ValueError(
            "rule='notebook' must have pairing='aligned' and correction=None, "
            f"got pairing={pairing!r} and correction={correction!r}"
        )
    return True
