"""Integer counts of codes, and what follows from them: the one way to entropies and information."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from modfast import checks
from modfast.information.binning import Binning, matrices, not_finite, refuse_not_finite
from modfast.ops import information as ops
from modfast.reference import compute_dtype, relevant_bins

Pairing: TypeAlias = Literal["aligned", "all", "pairwise"]
Correction: TypeAlias = Literal["miller-madow", "panzeri-treves", "shuffle", None]

_CODES_AT_ONCE = 2**20
_SHUFFLES = 100  # Their mean is then known to a tenth of the null's own spread.


@dataclass(frozen=True)
class Terms:
    """I(x; y), and H(x) and H(y) for those who need them; float64, in nats.

    Scalars for pooled counts; for pairs `[dx, dy]`, `[dx, 1]` and `[1, dy]`.
    """

    mutual: Tensor
    entropies: Callable[[], tuple[Tensor, Tensor]]

    @classmethod
    def of_counts(cls, counts: Tensor) -> Terms:
        """Plug-in values of joint counts `[..., bins_x, bins_y]`."""
        counts = counts.double()
        x, y = _plug_in(counts.sum(-1)), _plug_in(counts.sum(-2))
        # No table of counts has less than no information, but a rounded difference may.
        mutual = (x + y - _plug_in(counts.flatten(-2))).clamp_(min=0)
        return cls(mutual, lambda: (x, y))

    @classmethod
    def of_pairs(
        cls,
        x: Tensor,
        y: Tensor,
        bins: int,
        correction: Correction,
        seed: int | None,
        null_mean: Tensor | None = None,
    ) -> Terms:
        """Of all pairs of columns of codes; `null_mean` saves new shuffles."""
        by_formula = None if correction == "shuffle" else correction
        mutual, bias = ops.pairwise_information(x, y, bins, bins, by_formula)
        if correction == "shuffle":
            if null_mean is None:
                orders = permutations(len(x), _SHUFFLES, seed, x.device)
                _, null_mean, _ = ops.permuted_information(x, y, bins, bins, orders, mutual)
            bias = null_mean

        def both() -> tuple[Tensor, Tensor]:
            x_entropy = corrected_entropies(marginals(x, bins), by_formula)
            y_entropy = corrected_entropies(marginals(y, bins), by_formula)
            return x_entropy[:, None], y_entropy[None, :]

        return cls(mutual if correction is None else mutual - bias, both)


def entropies_of_counts(counts: Tensor) -> Tensor:
    """Plug-in entropies in nats of counts `[..., bins]`: log N - (1/N) sum c log c, in float64.

    NaN where there are no counts.

    Raises:
        TypeError: no tensor of real numbers.
        ValueError: no bins, negative or infinite counts.
    """
    checks.dense("counts", counts)
    if counts.is_complex():
        raise TypeError(f"counts must be real, got {counts.dtype}")
    counts = counts.double()
    if counts.dim() == 0 or counts.numel() == 0:
        raise ValueError(f"counts must be [..., bins], got shape {tuple(counts.shape)}")
    if not bool(((counts >= 0) & counts.isfinite()).all()):
        raise ValueError("counts must be finite and at least 0")
    return _plug_in(counts)


def _plug_in(counts: Tensor) -> Tensor:
    counts = counts.double()
    total = counts.sum(-1)
    found: Tensor = total.log() - torch.special.xlogy(counts, counts).sum(-1) / total
    return found


def corrected_entropies(counts: Tensor, correction: Correction) -> Tensor:
    """Entropies of counts `[..., bins]`, plus (R - 1) / 2N with R bins, unless correction is None.

    R is the number of occupied bins ("miller-madow") or of relevant ones ("panzeri-treves").
    """
    found = _plug_in(counts)
    if correction is None:
        return found
    if correction == "miller-madow":
        filled = (counts > 0).sum(-1).double()
    else:
        rows = counts.reshape(-1, counts.shape[-1]).tolist()
        filled = found.new_tensor([relevant_bins(row) for row in rows]).reshape(found.shape)
    return found + (filled - 1) / (2 * counts.sum(-1))


def marginals(codes: Tensor, bins: int) -> Tensor:
    """Counts `[d, bins]` of each column of codes `[n, d]`."""
    d = codes.shape[1]
    offsets = torch.arange(0, d * bins, bins, device=codes.device)
    found = torch.zeros(d * bins, dtype=torch.int64, device=codes.device)
    # By parts, as bincount takes eight bytes for each code.
    for part in codes.split(max(1, _CODES_AT_ONCE // d)):
        found += (part + offsets).flatten().bincount(minlength=d * bins)
    return found.reshape(d, bins)


def joint_counts(x: Tensor, y: Tensor, binning: Binning, pairing: Pairing) -> Tensor:
    """Joint counts of values or codes; see `joint_histogram`."""
    checks.choice("pairing", pairing, get_args(Pairing))
    x, y = matrices(x, y)
    if pairing == "aligned":
        _require_columns(x, y, binning)
    if (
        pairing != "aligned"
        or binning.rule == "quantile"
        or binning.range == "column"
        or (binning.bounds is not None and len(binning.bounds) > 1)
        or x.dtype != y.dtype
        or not x.is_floating_point()
    ):
        return count_codes(binning.codes("x", x), binning.codes("y", y), binning.bins, pairing)
    range_x, range_y = binning.bounds_for("x", x), binning.bounds_for("y", y)
    if y.shape != x.shape:  # The notebook's range is that of all columns, paired or not.
        range_y = torch.stack(y.aminmax())[None].to(compute_dtype(y))
        if not range_y.isfinite().all():
            refuse_not_finite("y", not_finite(y))
        y = y[:, : x.shape[1]]
    counts, wrong = ops.binned_histogram(x, y, binning.bins, range_x, range_y, binning.rule)
    if wrong.any():
        refuse_not_finite("x", not_finite(x))
        refuse_not_finite("y", not_finite(y))
    return counts


def count_codes(x: Tensor, y: Tensor, bins: int, pairing: Pairing) -> Tensor:
    """Joint counts of codes `[n, dx]` and `[n, dy]`."""
    if pairing == "aligned":
        y = y[:, : x.shape[1]]
    return ops.joint_histogram(x, y, bins, bins, pairing)


def terms(
    x: Tensor,
    y: Tensor,
    binning: Binning,
    pairing: Pairing,
    correction: Correction,
    seed: int | None,
) -> Terms:
    """I(x; y), H(x) and H(y) of values or codes; see `mutual_information`."""
    checks.choice("correction", correction, get_args(Correction))
    if pairing != "pairwise" and correction is None:
        return Terms.of_counts(joint_counts(x, y, binning, pairing))
    x, y = pair_codes(x, y, binning, pairing)
    bins = binning.bins
    if pairing == "pairwise":
        return Terms.of_pairs(x, y, bins, correction, seed)
    if correction == "shuffle":
        found = Terms.of_counts(count_codes(x, y, bins, pairing))
        orders = permutations(len(x), _SHUFFLES, seed, x.device)
        nulls = torch.stack([count_codes(x, y[order], bins, pairing) for order in orders])
        return Terms(found.mutual - Terms.of_counts(nulls).mutual.mean(), found.entropies)
    if pairing == "all":
        raise ValueError(
            f"correction must be None or 'shuffle' with pairing='all', got {correction!r}: pairs "
            "that share a sample are not independent"
        )
    # Pooled columns are one long column.
    one = Terms.of_pairs(x.reshape(-1, 1), y.reshape(-1, 1), bins, correction, seed)
    x_entropy, y_entropy = one.entropies()
    return Terms(one.mutual.squeeze(), lambda: (x_entropy.squeeze(), y_entropy.squeeze()))


def pair_codes(x: Tensor, y: Tensor, binning: Binning, pairing: Pairing) -> tuple[Tensor, Tensor]:
    """Codes of both, checked against each other."""
    checks.choice("pairing", pairing, get_args(Pairing))
    x, y = matrices(x, y)
    if pairing == "aligned":
        _require_columns(x, y, binning)
    return binning.codes("x", x), binning.codes("y", y)


def permutations(n: int, count: int, seed: int | None, device: torch.device) -> Tensor:
    """Random orders of n samples, int64 `[count, n]`: the same on each device.

    Without a seed they come from torch's global random state.
    """
    generator = None
    if seed is not None:
        generator = torch.Generator("cpu").manual_seed(checks.seed("seed", seed))
    orders = [torch.randperm(n, generator=generator, device="cpu") for _ in range(count)]
    return torch.stack(orders).to(device)


def _require_columns(x: Tensor, y: Tensor, binning: Binning) -> None:
    dx, dy = x.shape[1], y.shape[1]
    if binning.rule == "notebook" and dy < dx:
        raise ValueError(
            f"y must have at least as many features as x with rule='notebook', got {dy} and {dx}"
        )
    if binning.rule != "notebook" and dx != dy:
        raise ValueError(
            f"x and y must have as many features with pairing='aligned', got {dx} and {dy}; "
            "pairing='all' or 'pairwise' takes different numbers"
        )
