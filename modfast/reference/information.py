"""Codes, counts of them, and the information that they hold.

Codes are integers in [0, bins), `[n, d]`: uint8 up to 256 bins, int16 beyond. Counts are int64,
entropies and information float64, in nats.
"""

from __future__ import annotations

import torch
from torch import Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type in which values of x are compared with edges: float32 for 16-bit numbers."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def code_dtype(bins: int) -> torch.dtype:
    """The type of codes in [0, bins)."""
    return torch.uint8 if bins <= 256 else torch.int16


def inner_edges(limits: Tensor, bins: int) -> Tensor:
    """The edges between `bins` equal-width bins, `[r, bins - 1]`, from ranges `[r, 2]`.

    lo + i * step, as numpy.linspace computes them in the ranges' own type.
    """
    lo, hi = limits[:, :1], limits[:, 1:]
    i = torch.arange(1, bins, dtype=limits.dtype, device=limits.device)
    step = (hi - lo) / bins
    step = torch.where(step.isfinite(), step, hi / bins - lo / bins)
    # A range of a few subnormals has no step; one that overflows is taken by halves.
    edges = torch.where(step == 0, i / bins * (hi - lo), i * step) + lo
    return torch.where((hi - lo).isfinite(), edges, 2 * (i * (step / 2) + lo / 2))


def nearest(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Float64 values as the nearest ones of `dtype`, in the type to compute with.

    torch rounds to 16 bits by way of float32, and so twice: what that leaves out is told by the
    last bit of the float32 number.
    """
    near = values.float()
    if dtype.itemsize == 2:
        bits = near.view(torch.int32)
        beyond = torch.where(values.abs() > near.double().abs(), 1, -1)
        bits = torch.where((near.double() != values) & (bits & 1 == 0), bits + beyond, bits)
        near = bits.to(torch.int32).view(torch.float32).to(dtype).float()
    return values if dtype == torch.float64 else near


def digitize_edges(x: Tensor, edges: Tensor) -> Tensor:
    """Codes: how many of a column's edges are <= x. `edges` is `[1 or d, m]`, ascending."""
    columns = x.to(edges.dtype).t().contiguous()
    edges = edges.expand(len(columns), -1).contiguous()
    codes = torch.searchsorted(edges, columns, right=True).t().contiguous()
    return codes.to(code_dtype(edges.shape[1] + 1))


def digitize(
    x: Tensor, bins: int, range: Tensor | None, per_column: bool, rule: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of x, the ranges that they divide `[1 or d, 2]`, and each column's NaN and inf.

    The range is that of the finite values, of all columns or of each, unless it is given; values
    outside go to the nearest bin. rule="uniform": equal-width bins, each without its right edge but
    the last; a constant goes to bin 0. Edges of a float64 range are rounded to x's type, as numpy's
    are where a range is given. rule="notebook": with e = linspace(lo, hi, bins), the number
    of edges < x, less one; the minimum's -1 wraps to bins - 1. NaN and inf have code 0.
    """
    values = x.to(compute_dtype(x))
    finite = values.isfinite()
    if range is None:
        columns = values if per_column else values.reshape(-1, 1)
        known = columns.isfinite()
        lo = torch.where(known, columns, torch.inf)
        hi = torch.where(known, columns, -torch.inf)
        inf = torch.full_like(columns.new_empty(1, columns.shape[1]), torch.inf)
        limits = torch.stack([torch.cat([lo, inf]).amin(0), torch.cat([hi, -inf]).amax(0)], 1)
        limits[limits[:, 0] > limits[:, 1]] = 0
    else:
        limits = range.to(values.dtype, copy=True)
    lo, hi = limits[:, 0], limits[:, 1]
    values = torch.where(finite, values, lo)
    if rule == "uniform":
        if range is not None and range.dtype != values.dtype:
            edges = nearest(inner_edges(range, bins), x.dtype)
        else:
            edges = inner_edges(limits, bins)
        codes = digitize_edges(values, edges).long()
        codes = torch.where(lo == hi, 0, codes)
    else:
        values = values.clamp(lo, hi)
        edges = limits.new_empty(len(limits), bins)
        for row, (a, b) in zip(edges, limits.tolist(), strict=True):
            row.copy_(torch.linspace(a, b, bins, dtype=limits.dtype, device="cpu"))
        columns = values.t().contiguous()
        edges = edges.expand(len(columns), -1).contiguous()
        codes = torch.searchsorted(edges, columns).t().contiguous() - 1
        codes = torch.where(codes < 0, bins - 1, codes)
    codes = torch.where(finite, codes, 0)
    return codes.to(code_dtype(bins)), limits, (~finite).sum(0)


def joint_histogram(
    x_codes: Tensor, y_codes: Tensor, bins_x: int, bins_y: int, pairing: str
) -> Tensor:
    """Counts of pairs of codes.

    pairing="aligned": column j of x with column j of y, pooled, `[bins_x, bins_y]`; "all": every
    column of x with every column of y, pooled; "pairwise": the same apart,
    `[dx, dy, bins_x, bins_y]`.
    """
    if pairing == "aligned":
        cells = x_codes.long() * bins_y + y_codes.long()
        return cells.reshape(-1).bincount(minlength=bins_x * bins_y).reshape(bins_x, bins_y)
    # Counts below 2^53 are exact in float64.
    x = one_hot(x_codes, bins_x)
    y = one_hot(y_codes, bins_y)
    counts = torch.einsum("nia,njb->ijab", x, y).long()
    return counts.sum((0, 1)) if pairing == "all" else counts


def one_hot(codes: Tensor, bins: int) -> Tensor:
    """Float64 `[n, d, bins]`."""
    return (codes.long()[:, :, None] == torch.arange(bins, device=codes.device)).double()


def binned_histogram(
    x: Tensor,
    y: Tensor,
    bins: int,
    range_x: Tensor | None,
    range_y: Tensor | None,
    rule: str,
) -> tuple[Tensor, Tensor]:
    """Counts `[bins, bins]` of x's values with y's, pooled, and how many of each are NaN or inf."""
    x_codes, _, bad_x = digitize(x, bins, range_x, False, rule)
    y_codes, _, bad_y = digitize(y, bins, range_y, False, rule)
    counts = joint_histogram(x_codes, y_codes, bins, bins, "aligned")
    return counts, torch.stack([bad_x.sum(), bad_y.sum()])


def mutual_information(counts: Tensor) -> Tensor:
    """Mutual information of the tables `[..., bins_x, bins_y]`, 0 of an empty one."""
    n = counts.double()
    total = n.sum((-2, -1), keepdim=True)
    independent = n.sum(-1, keepdim=True) * n.sum(-2, keepdim=True)
    logs = torch.where(n > 0, n * total / independent, 1).log()
    return (n * logs).sum((-2, -1)) / total[..., 0, 0].clamp(min=1)


def relevant_bins(counts: list[int]) -> float:
    """How many bins can be filled: at least those that are, at most all (Panzeri & Treves, 1996).

    A prior that gives each filled bin one more sample, and the empty ones a common share, grows by
    one empty bin at a time while the number of bins that it expects to see filled nears that seen.
    """
    filled = [n for n in counts if n > 0]
    n_filled, total = len(filled), sum(filled)
    expected = sum(1 - (1 - n / total) ** total for n in filled)
    error, before, extra = n_filled - expected, float(len(counts)), 0
    while error < before and n_filled + extra < len(counts):
        extra += 1
        share = extra * (1 - (total / (total + n_filled)) ** (1 / total))
        rest = (1 - share) / (total + n_filled)
        expected = sum(1 - (1 - (n + 1) * rest) ** total for n in filled)
        expected += extra * (1 - (1 - share / extra) ** total)
        error, before = abs(n_filled - expected), error
    return n_filled + (extra if error < before or extra == 0 else extra - 1)


def information_bias(counts: Tensor, correction: str | None) -> Tensor:
    """The expected excess of `mutual_information` over the truth, to first order in 1 / N.

    "miller-madow": from the numbers of filled cells, rows and columns. "panzeri-treves": x given
    each value of y against x, with `relevant_bins` of each. None: 0.
    """
    bias = torch.zeros(counts.shape[:-2], dtype=torch.float64, device="cpu")
    total = counts.sum((-2, -1)).clamp(min=1).double().cpu()
    if correction == "miller-madow":
        cells = (counts > 0).sum((-2, -1))
        rows = (counts.sum(-1) > 0).sum(-1)
        cols = (counts.sum(-2) > 0).sum(-1)
        bias = (cells - rows - cols + (cells > 0)).cpu() / (2 * total)
    elif correction == "panzeri-treves":
        for i, table in enumerate(counts.flatten(0, -3).cpu() if counts.numel() else []):
            given = sum(relevant_bins(y) - 1 for y in table.t().tolist() if any(y))
            x = table.sum(1).tolist()
            bias.view(-1)[i] = given - (relevant_bins(x) - 1 if any(x) else 0)
        bias = bias / (2 * total)
    return bias.to(counts.device)


def pairwise_information(
    x_codes: Tensor, y_codes: Tensor, bins_x: int, bins_y: int, correction: str | None
) -> tuple[Tensor, Tensor]:
    """Mutual information of every column of x with every column of y, and its bias."""
    counts = joint_histogram(x_codes, y_codes, bins_x, bins_y, "pairwise")
    return mutual_information(counts), information_bias(counts, correction)


# Two values of information of the same counts differ by rounding less than this.
INFORMATION_ROUNDING = 1e-12


def permuted_information(
    x_codes: Tensor,
    y_codes: Tensor,
    bins_x: int,
    bins_y: int,
    permutations: Tensor,
    observed: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """`pairwise_information` with y's rows in each of the orders `permutations` `[p, n]`.

    How many are >= observed (up to rounding), their mean, and their sum of squared deviations.
    """
    shape = x_codes.shape[1], y_codes.shape[1]
    nulls = [
        pairwise_information(x_codes, y_codes[order], bins_x, bins_y, None)[0]
        for order in permutations
    ]
    if not nulls:
        zero = torch.zeros(shape, dtype=torch.float64, device=x_codes.device)
        return zero.long(), zero, zero.clone()
    null = torch.stack(nulls)
    at_least = (null >= observed - INFORMATION_ROUNDING).sum(0)
    mean = null.mean(0)
    return at_least, mean, (null - mean).square().sum(0)
