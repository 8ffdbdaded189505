"""Operator family `digitize`, `joint_histogram`, `pairwise_information`: counts and information.

Values `[n, d]` are float32, float64, bfloat16 or float16. Codes `[n, d]` are integers in [0, bins):
uint8 up to 256 bins, int16 beyond. Counts are int64, information is float64, in nats. Results are
the same for any number of threads. Nothing here is differentiable.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from modfast import checks
from modfast._extension import operator
from modfast.reference import code_dtype, compute_dtype

Rule = Literal["uniform", "notebook"]
Pairing = Literal["aligned", "all", "pairwise"]
Correction = Literal["miller-madow", "panzeri-treves"]

VALUE_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MAX_BINS = 2**15 - 1


def _fake_digitize(
    x: Tensor, bins: int, range: Tensor | None, per_column: bool, rule: str
) -> tuple[Tensor, Tensor, Tensor]:
    n_ranges = (x.shape[1] if per_column else 1) if range is None else range.shape[0]
    return (
        x.new_empty(x.shape, dtype=code_dtype(bins)),
        x.new_empty((n_ranges, 2), dtype=compute_dtype(x)),
        x.new_empty((x.shape[1],), dtype=torch.int64),
    )


def _fake_digitize_edges(x: Tensor, edges: Tensor) -> Tensor:
    return x.new_empty(x.shape, dtype=code_dtype(edges.shape[1] + 1))


def _fake_joint(x_codes: Tensor, y_codes: Tensor, bins_x: int, bins_y: int, pairing: str) -> Tensor:
    pairs = (x_codes.shape[1], y_codes.shape[1]) if pairing == "pairwise" else ()
    return x_codes.new_empty((*pairs, bins_x, bins_y), dtype=torch.int64)


def _fake_binned(x: Tensor, y: Tensor, bins: int, *_: Any) -> tuple[Tensor, Tensor]:
    counts = x.new_empty((bins, bins), dtype=torch.int64)
    return counts, x.new_empty((2,), dtype=torch.int64)


def _fake_pairwise(x_codes: Tensor, y_codes: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    pairs = x_codes.new_empty((x_codes.shape[1], y_codes.shape[1]), dtype=torch.float64)
    return pairs, torch.empty_like(pairs)


def _fake_permuted(x_codes: Tensor, y_codes: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    shape = x_codes.shape[1], y_codes.shape[1]
    mean = x_codes.new_empty(shape, dtype=torch.float64)
    return x_codes.new_empty(shape, dtype=torch.int64), mean, torch.empty_like(mean)


_digitize = operator("digitize", _fake_digitize)
_digitize_edges = operator("digitize_edges", _fake_digitize_edges)
_joint = operator("joint_histogram", _fake_joint)
_binned = operator("binned_histogram", _fake_binned)
_pairwise = operator("pairwise_information", _fake_pairwise)
_permuted = operator("permuted_information", _fake_permuted)


def digitize(
    x: Tensor,
    bins: int,
    range: Tensor | None = None,
    *,
    per_column: bool,
    rule: Rule = "uniform",
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of values, the ranges used, and how many values of each column are NaN or infinite.

    Args:
        x: values `[n, d]`.
        bins: number of bins, 2 to 32,767.
        range: `[1, 2]` or `[d, 2]`, lowest and highest value, of all columns or of each; finite
            and in order, which is not checked. Values outside go to the nearest bin. In x's type
            (float32 for 16-bit types), in which edges are then made; or float64, for edges that
            are made in float64 and rounded to x's own type, as numpy.histogram's of a given range
            are. None: found in the same call, over finite values.
        per_column: without `range`, whether each column has its own.
        rule: "uniform": equal-width bins with numpy.histogram's edges, the right edge in the last
            bin, constants in bin 0. "notebook": with e = torch.linspace(lo, hi, bins), the number
            of edges below x, less one, where -1 wraps to bins - 1; hi - lo must not overflow. Its
            edges are made on the CPU, for which a GPU's queue is waited for.

    Returns:
        Codes `[n, d]`, 0 for NaN and infinite values; ranges; counts int64 `[d]`.

    Raises:
        TypeError: x or range of another type.
        ValueError: x that is not `[n, d]` or requires grad; another rule, bins or shape of range.

    Example:
        >>> import torch
        >>> digitize(torch.tensor([[0.0], [0.4], [1.0]]), 2, per_column=True)[0].flatten().tolist()
        [0, 0, 1]
    """
    x = _values("x", x)
    _check_bins("bins", bins)
    checks.flag("per_column", per_column)
    checks.choice("rule", rule, get_args(Rule))
    if range is not None:
        range = _limits("range", range, x, (1, x.shape[1]), rule)
    codes, found, not_finite = _digitize(x, bins, range, per_column, rule)
    return codes, found, not_finite


def digitize_edges(x: Tensor, edges: Tensor) -> Tensor:
    """Codes of values: the number of edges <= x.

    Args:
        x: finite values `[n, d]`.
        edges: ascending, `[1, m]` for all columns or `[d, m]` for each, 1 <= m < 32,767, in x's
            type (float32 for 16-bit types).

    Raises:
        TypeError: x or edges of another type.
        ValueError: x that is not `[n, d]` or requires grad; edges of another shape or device.
    """
    x = _values("x", x)
    checks.tensor("edges", edges, compute_dtype(x))
    if edges.dim() != 2 or edges.shape[0] not in (1, x.shape[1]):
        raise ValueError(
            f"edges must be [1, m] or [{x.shape[1]}, m], got shape {tuple(edges.shape)}"
        )
    if not 1 <= edges.shape[1] < MAX_BINS:
        raise ValueError(f"edges must be 1 to {MAX_BINS - 1} per column, got {edges.shape[1]}")
    _check_device("edges", edges, "x", x)
    codes: Tensor = _digitize_edges(x, edges.detach().contiguous())
    return codes


def joint_histogram(
    x_codes: Tensor, y_codes: Tensor, bins_x: int, bins_y: int, pairing: Pairing
) -> Tensor:
    """Counts of pairs of codes.

    Args:
        x_codes: codes `[n, dx]` in [0, bins_x), uint8 or int16.
        y_codes: codes `[n, dy]` in [0, bins_y).
        bins_x: number of x's codes, 2 to 32,767.
        bins_y: number of y's codes.
        pairing: "aligned": column j with column j, pooled; "all": every column of x with every
            column of y, pooled; "pairwise": the same, apart.

    Returns:
        int64 `[bins_x, bins_y]`, or `[dx, dy, bins_x, bins_y]` for "pairwise".

    Raises:
        TypeError: codes of another type.
        ValueError: shapes or devices that do not match, bins that the codes' type cannot hold.
        RuntimeError: a code out of range (on the CPU; unchecked on a GPU).
    """
    x_codes, y_codes = _codes(x_codes, y_codes, bins_x, bins_y)
    checks.choice("pairing", pairing, get_args(Pairing))
    if pairing == "aligned" and x_codes.shape != y_codes.shape:
        raise ValueError(
            f"x_codes and y_codes must have one shape to be aligned, "
            f"got {tuple(x_codes.shape)} and {tuple(y_codes.shape)}"
        )
    counts: Tensor = _joint(x_codes, y_codes, bins_x, bins_y, pairing)
    return counts


def binned_histogram(
    x: Tensor,
    y: Tensor,
    bins: int,
    range_x: Tensor | None = None,
    range_y: Tensor | None = None,
    rule: Rule = "uniform",
) -> tuple[Tensor, Tensor]:
    """`digitize` of x and of y and their aligned `joint_histogram`, without codes in memory.

    Args:
        x: values `[n, d]`.
        y: values of the same shape.
        bins: number of bins of each, 2 to 32,767.
        range_x: `[1, 2]`, see `digitize`.
        range_y: the same for y.
        rule: see `digitize`.

    Returns:
        Counts int64 `[bins, bins]`, and how many values of x and of y are not finite, int64 `[2]`.

    Raises:
        TypeError, ValueError: see `digitize`; shapes or devices that do not match.
    """
    x, y = _values("x", x), _values("y", y)
    if x.shape != y.shape:
        raise ValueError(f"x and y must have one shape, got {tuple(x.shape)} and {tuple(y.shape)}")
    _check_device("y", y, "x", x)
    _check_bins("bins", bins)
    checks.choice("rule", rule, get_args(Rule))
    if range_x is not None:
        range_x = _limits("range_x", range_x, x, (1,), rule)
    if range_y is not None:
        range_y = _limits("range_y", range_y, y, (1,), rule)
    counts, not_finite = _binned(x, y, bins, range_x, range_y, rule)
    return counts, not_finite


def pairwise_information(
    x_codes: Tensor,
    y_codes: Tensor,
    bins_x: int,
    bins_y: int,
    correction: Correction | None = None,
) -> tuple[Tensor, Tensor]:
    """Mutual information of every column of x with every column of y, and its bias.

    Args:
        x_codes: codes `[n, dx]`, see `joint_histogram`.
        y_codes: codes `[n, dy]`.
        bins_x: number of x's codes.
        bins_y: number of y's codes.
        correction: how the bias is estimated, from the same counts; None: zeros.

    Returns:
        Plug-in information and bias, float64 `[dx, dy]`, in nats; zeros without samples.

    Raises:
        TypeError, ValueError, RuntimeError: see `joint_histogram`; another correction.
    """
    x_codes, y_codes = _codes(x_codes, y_codes, bins_x, bins_y)
    if correction is not None:
        checks.choice("correction", correction, get_args(Correction))
    information, bias = _pairwise(x_codes, y_codes, bins_x, bins_y, correction)
    return information, bias


def permuted_information(
    x_codes: Tensor,
    y_codes: Tensor,
    bins_x: int,
    bins_y: int,
    permutations: Tensor,
    observed: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """`pairwise_information` under permutations of y's rows.

    Args:
        x_codes: codes `[n, dx]`, see `joint_histogram`.
        y_codes: codes `[n, dy]`.
        bins_x: number of x's codes.
        bins_y: number of y's codes.
        permutations: int64 `[p, n]`, the order of y's rows in each null.
        observed: float64 `[dx, dy]`.

    Returns:
        How many nulls are at least `observed` up to rounding (1e-12), int64; their mean and their
        sum of squared deviations, float64; all `[dx, dy]`.

    Raises:
        TypeError, ValueError, RuntimeError: see `joint_histogram`; an entry out of range (on the
            CPU).
    """
    x_codes, y_codes = _codes(x_codes, y_codes, bins_x, bins_y)
    n, dx = x_codes.shape
    for name, tensor, dtype in (
        ("permutations", permutations, torch.int64),
        ("observed", observed, torch.float64),
    ):
        checks.tensor(name, tensor, dtype)
        _check_device(name, tensor, "x_codes", x_codes)
    if permutations.dim() != 2 or permutations.shape[1] != n:
        raise ValueError(f"permutations must be [p, {n}], got shape {tuple(permutations.shape)}")
    if observed.shape != (dx, y_codes.shape[1]):
        raise ValueError(
            f"observed must be [{dx}, {y_codes.shape[1]}], got shape {tuple(observed.shape)}"
        )
    at_least, mean, m2 = _permuted(
        x_codes, y_codes, bins_x, bins_y, permutations.contiguous(), observed.contiguous()
    )
    return at_least, mean, m2


def _check_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.device != other.device:
        raise ValueError(
            f"{name} and {other_name} must be on one device, got {tensor.device} and {other.device}"
        )


def _check_bins(name: str, bins: int) -> None:
    if not 2 <= checks.integer(name, bins) <= MAX_BINS:
        raise ValueError(f"{name} must be 2 to {MAX_BINS}, got {bins}")


def _values(name: str, x: Tensor) -> Tensor:
    """Contiguous values `[n, d]`."""
    checks.tensor(name, x, *VALUE_DTYPES)
    if x.dim() != 2:
        raise ValueError(f"{name} must be [n, d], got shape {tuple(x.shape)}")
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name} must not require grad, for counts have none: detach it")
    return x.contiguous()


def _limits(name: str, limits: Tensor, x: Tensor, rows: tuple[int, ...], rule: Rule) -> Tensor:
    checks.tensor(name, limits, *dict.fromkeys((compute_dtype(x), torch.float64)))
    if limits.dim() != 2 or limits.shape[1] != 2 or limits.shape[0] not in rows:
        words = " or ".join(f"[{r}, 2]" for r in dict.fromkeys(rows))
        raise ValueError(f"{name} must be {words}, got shape {tuple(limits.shape)}")
    _check_device(name, limits, "x", x)
    limits = limits.detach().contiguous()
    # The notebook's edges are those of torch.linspace in x's type.
    return limits if rule == "uniform" else limits.to(compute_dtype(x))


def _codes(x_codes: Tensor, y_codes: Tensor, bins_x: int, bins_y: int) -> tuple[Tensor, Tensor]:
    """Contiguous codes of as many rows each."""
    for name, codes, bins_name, bins in (
        ("x_codes", x_codes, "bins_x", bins_x),
        ("y_codes", y_codes, "bins_y", bins_y),
    ):
        checks.tensor(name, codes, torch.uint8, torch.int16)
        _check_bins(bins_name, bins)
        if codes.dim() != 2:
            raise ValueError(f"{name} must be [n, d], got shape {tuple(codes.shape)}")
        if codes.dtype == torch.uint8 and bins > 256:
            raise ValueError(f"{bins_name} must be at most 256 for uint8 codes, got {bins}")
    if len(x_codes) != len(y_codes):
        raise ValueError(
            f"x_codes and y_codes must have as many rows, got {len(x_codes)} and {len(y_codes)}"
        )
    _check_device("y_codes", y_codes, "x_codes", x_codes)
    return x_codes.contiguous(), y_codes.contiguous()
