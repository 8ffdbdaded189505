"""How do values become integer codes? The one place that knows rules, ranges and their errors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from modfast import checks
from modfast.ops import information as ops
from modfast.ops.information import MAX_BINS, VALUE_DTYPES
from modfast.precision import precise
from modfast.reference import code_dtype, compute_dtype, nearest

Range: TypeAlias = Literal["global", "column"] | tuple[float | Tensor, float | Tensor]
Rule: TypeAlias = Literal["uniform", "quantile", "notebook"]
Outside: TypeAlias = Literal["clip", "error"]

# Types for which torch has next to no kernels.
_FEW_KERNELS = (torch.uint16, torch.uint32, torch.uint64)
_CODE_DTYPES = (
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *_FEW_KERNELS,
)


@dataclass(frozen=True, eq=False)
class Binning:
    """Number of bins, range and rule: all that turns values into codes. See `digitize`."""

    bins: int = 10
    range: Range = "global"
    rule: Rule = "uniform"
    outside: Outside = "clip"
    bounds: Tensor | None = field(init=False, repr=False)
    """A given range as float64 `[1 or d, 2]`; None for one that is found."""

    def __post_init__(self) -> None:
        bins = checks.count("bins", self.bins)
        if not 2 <= bins <= MAX_BINS:
            raise ValueError(f"bins must be from 2 to {MAX_BINS}, got {bins}")
        object.__setattr__(self, "bins", bins)
        checks.choice("rule", self.rule, get_args(Rule))
        checks.choice("outside", self.outside, get_args(Outside))
        object.__setattr__(self, "bounds", _bounds(self.range))
        if self.rule == "notebook" and self.range != "global":
            raise ValueError(f"range must be 'global' with rule='notebook', got {self.range!r}")
        if self.rule == "quantile" and self.bounds is not None:
            raise ValueError(
                f"range must not be given with rule='quantile', whose bins have equal mass, "
                f"got {self.range!r}"
            )

    def codes(self, argument: str, values: Tensor) -> Tensor:
        """Codes `[n, d]` of values `[n, d]` or `[n]`: uint8 for up to 256 bins, else int16."""
        values = matrix(argument, values)
        if not values.is_floating_point():
            return self._given_codes(argument, values)
        if self.rule == "quantile":
            refuse_not_finite(argument, not_finite(values))
            # Values themselves are the edges, so that columns of distinct values get equal masses.
            n, inner = len(values), torch.arange(1, self.bins, device=values.device)
            places = (inner * n + self.bins - 1) // self.bins
            edges = values.sort(dim=0).values[places.clamp_(max=n - 1)]
            return ops.digitize_edges(values, edges.T.to(compute_dtype(values)))
        codes, _, wrong = ops.digitize(
            values,
            self.bins,
            self.bounds_for(argument, values),
            per_column=self.range == "column",
            rule=self.rule,
        )
        refuse_not_finite(argument, wrong)
        return codes

    def bounds_for(self, argument: str, values: Tensor) -> Tensor | None:
        """A given range in float64, fitted to `values` `[n, d]`; None for one that is found.

        Raises:
            ValueError: another number of features, or values outside where that is an error.
        """
        if self.bounds is None:
            return None
        checks.dense(argument, values)
        bounds, d = self.bounds.to(values.device), values.shape[1]
        if len(bounds) not in (1, d):
            raise ValueError(
                f"range must have one bound or one per feature, "
                f"got {len(bounds)} for the {d} features of {argument}"
            )
        # As numpy rounds them: a float32 .9 is not below a bound of .9.
        rounded = nearest(bounds, values.dtype)
        low, high = rounded.unbind(1)
        if not (low < high).all():
            raise ValueError(f"range={self.range!r} must be finite, lo < hi, as {values.dtype}")
        if self.outside == "error":
            wrong = (values < low) | (values > high)
            if wrong.any():
                at = int(wrong.any(0).int().argmax())
                raise ValueError(
                    f"{argument} must lie within range={self.range!r} with outside='error', "
                    f"got {int(wrong[:, at].sum())} values outside in feature {at}"
                )
        return bounds

    def _given_codes(self, argument: str, codes: Tensor) -> Tensor:
        if self.rule != "uniform" or self.bounds is not None:
            option = f"rule={self.rule!r}" if self.bounds is None else f"range={self.range!r}"
            raise ValueError(
                f"{argument} must hold floating values with {option}, got codes ({codes.dtype})"
            )
        low, high = (int(bound) for bound in codes.aminmax())
        if low < 0 or high >= self.bins:
            wrong = low if low < 0 else high
            at = int((codes == wrong).any(0).int().argmax())
            raise ValueError(
                f"{argument} must have codes from 0 to {self.bins - 1} (bins={self.bins}), "
                f"got {wrong} in feature {at}"
            )
        return codes.to(code_dtype(self.bins))


@precise
def digitize(
    x: Tensor,
    bins: int = 10,
    *,
    range: Range = "global",
    rule: Rule = "uniform",
    outside: Outside = "clip",
) -> Tensor:
    """Integer codes of values: which bin each one lies in.

    With the uniform rule, code k means edge_k <= x < edge_(k+1), edges being
    linspace(lo, hi, bins + 1) as in `numpy.histogram` (of a given range in float64, rounded to the
    type of `x`), and hi itself lies in the last bin. Constant features go to bin 0.

    Args:
        x: `[n, d]` or `[n]`: float32, float64, bfloat16 or float16 values, or integer codes, which
            are checked and returned.
        bins: number of bins, for codes their cardinality, from 2 to 32,767.
        range: "global", one lo and hi for the tensor; "column", one for each feature; or given as
            `(lo, hi)`, numbers or tensors `[d]`. `pairwise_mutual_information` takes "column" by
            default: codes of `range="column"` give its numbers.
        rule: "uniform"; "quantile", equal mass per feature (ties stay together); or "notebook",
            the source notebook's: bins - 1 intervals between linspace(min, max, bins) over the
            whole tensor, closed on the right; the minimum itself wraps round to bin bins - 1.
        outside: what becomes of values outside a given range: "clip" puts them into the outer bins,
            "error" refuses them.

    Returns:
        Codes of the shape of `x`: uint8 for up to 256 bins, else int16.

    Raises:
        TypeError: `x` is no tensor of such a type.
        ValueError: NaN or infinite values (feature and count are named), no values, codes out of
            range, bins or range out of order, or `x` requires grad (counts have no gradient).

    Source: N0, the modularity-metric notebook.

    Example:
        >>> import torch
        >>> x = torch.tensor([0.0, 0.4, 0.5, 1.0])
        >>> digitize(x, bins=2).tolist()
        [0, 0, 1, 1]
        >>> digitize(x, bins=3, rule="notebook").tolist()  # 2 intervals, and the minimum wraps
        [2, 0, 0, 1]
    """
    return Binning(bins, range, rule, outside).codes("x", x).reshape(x.shape)


def matrix(argument: str, values: Tensor, differentiable: bool = False) -> Tensor:
    """`values` as `[n, d]`.

    Raises:
        TypeError: not a tensor of floating values or integer codes.
        ValueError: another shape, no values, or values that require grad, unless `differentiable`.
    """
    checks.dense(argument, values)
    if values.dtype not in (VALUE_DTYPES if differentiable else VALUE_DTYPES + _CODE_DTYPES):
        wanted = "" if differentiable else ", or integer codes"
        raise TypeError(
            f"{argument} must have float32, float64, bfloat16 or float16 values{wanted}, "
            f"got {values.dtype}"
        )
    if values.dim() not in (1, 2) or values.numel() == 0:
        raise ValueError(
            f"{argument} must be [n, d] or [n] and not empty, got shape {tuple(values.shape)}"
        )
    if values.requires_grad and not differentiable:
        if torch.is_grad_enabled():
            raise ValueError(
                f"{argument} must not require grad, as counts have no gradient: detach it, "
                "or use soft_mutual_information or soft_conditional_entropy"
            )
        values = values.detach()
    if values.dtype in _FEW_KERNELS:
        values = checks.integers(argument, values)
    return values if values.dim() == 2 else values[:, None]


def matrices(x: Tensor, y: Tensor, differentiable: bool = False) -> tuple[Tensor, Tensor]:
    """`matrix` of both.

    Raises:
        ValueError: different numbers of samples, or different devices.
    """
    x, y = matrix("x", x, differentiable), matrix("y", y, differentiable)
    if len(x) != len(y):
        raise ValueError(f"x and y must have the same samples, got {len(x)} and {len(y)} rows")
    if x.device != y.device:
        raise ValueError(f"x and y must be on one device, got {x.device} and {y.device}")
    return x, y


def not_finite(values: Tensor) -> Tensor:
    """How many values of each feature are NaN or infinite: `[d]`."""
    return values.isfinite().logical_not().sum(0)


def refuse_not_finite(argument: str, wrong: Tensor) -> None:
    """Raises ValueError, naming feature and count, where counts `[d]` say that there are some."""
    if wrong.any():
        at = int((wrong > 0).int().argmax())
        raise ValueError(
            f"{argument} must be finite, got {int(wrong[at])} NaN or infinite values in "
            f"feature {at}"
        )


def _bounds(given: Range) -> Tensor | None:
    if isinstance(given, str) and given in ("global", "column"):
        return None
    if not isinstance(given, tuple) or len(given) != 2:
        raise ValueError(f"range must be 'global', 'column' or (lo, hi), got {given!r}")
    try:
        low, high = (torch.as_tensor(x, dtype=torch.float64, device="cpu") for x in given)
        low, high = low.reshape(-1), high.reshape(-1)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(f"range must have numbers or tensors, got {given!r:.60}") from None
    if len(low) != len(high):
        raise ValueError(
            f"range must have as many lower as upper bounds, got {len(low)} and {len(high)}"
        )
    bounds = torch.stack([low, high], dim=1)
    if len(bounds) == 0 or not bounds.isfinite().all() or not (low < high).all():
        raise ValueError(f"range must have finite bounds lo < hi, got {given!r}")
    return bounds
