"""Sums over the rows and columns of a layer's normalized weights, kind of position by kind."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

_ABSENT = {"linear": 0.0, "softmax": 1.0, "sigmoid": 0.5}
_WIRING_CELLS = 2**22


def wiring_sums(
    weight: Tensor,
    scale: Tensor | None,
    sources: Tensor,
    n_in: Tensor,
    n_out: Tensor,
    norm: str,
    blocks: int,
    ins: int,
    outs: int,
) -> Tensor:
    """Sums over a layer's rows and columns of normalized weights, without its dense matrix.

    A layer is a matrix of in-units by out-units. A connection of weight w counts as f(w), an absent
    one as the constant z = f(0), and row i is divided by its sum R_i. With Q = 1 / R:

        R_i = sum over i's connections of f(w) + z * (absent connections of i)
        H_i = ln R_i - (sum over them of f ln f + z ln z * (absent connections of i)) / R_i
        c_j = sum over j's connections of f(w_ij) Q_i + z * (sum of Q_i over those not connected)

    f is ReLU, exp or sigmoid. A row that is all zeros stays so, and has no entropy.

    The weight is `[groups, outputs, inputs, taps]`; `scale`, `[groups, outputs]`, multiplies it.
    Every pair of positions is joined by at most one tap, and positions are of kinds, as many of
    each as `n_in` `[C]` and `n_out` `[O]` say: an out-position of kind k gets through tap t what
    comes from an in-position of kind `sources[t, k]`, or nothing where that is C. All is repeated
    `blocks` times for other in- and out-units, and within a block with `ins` copies of each in-unit
    and `outs` of each out-unit. Weights are finite, and for softmax from -600 to 600.

    Returns the sums of H_i, of c_j and of c_j ln c_j, in nats: float64 `[3]`.
    """
    groups, outputs, _, taps = weight.shape
    z, n_kinds = _ABSENT[norm], len(n_in)
    # [t, c] and [k, c]: whether a tap leads from there, how many in-positions are connected.
    ones = torch.ones_like(sources, dtype=torch.float64)
    leads = ones.new_zeros(taps, n_kinds + 1).scatter_(1, sources, ones)[:, :-1]
    reached = ones.new_zeros(len(n_out), n_kinds + 1).scatter_add_(1, sources.T, ones.T)[:, :-1]
    absent = outs * outputs * (blocks * groups * n_out.sum() - leads.sum(0))
    entropy, column = ones.new_zeros(()), ones.new_zeros(groups, outputs, len(n_out))
    q_sum = ones.new_zeros(groups, n_kinds)
    # By parts of the inputs, as a weight in float64, several times, may not fit.
    for part in weight.split(max(1, _WIRING_CELLS // max(1, groups * outputs * taps)), dim=2):
        w = part.double() if scale is None else part.double() * scale[:, :, None, None]
        if norm == "linear":
            f = w.relu()
            f_log_f = torch.special.xlogy(f, f)
        elif norm == "softmax":
            f = w.exp()
            f_log_f = w * f
        else:
            f = w.sigmoid()
            f_log_f = functional.logsigmoid(w) * f
        row = outs * f.sum(1) @ leads + z * absent
        term = outs * f_log_f.sum(1) @ leads + (z * math.log(z) if z else 0.0) * absent
        some = row > 0
        q = row.reciprocal().where(some, 0.0)
        entropy += ((row.log() - term * q).where(some, 0.0) * n_in).sum()
        q_sum += q.sum(1)
        from_sources = functional.pad(q, (0, 1))[:, :, sources]
        column += f.flatten(2) @ from_sources.flatten(1, 2)
    own = q_sum @ n_in
    others = blocks * own.sum() - own
    column += z * (others[:, None] + q_sum @ (n_in - reached).T)[:, None]
    column *= ins
    by_kind = [each.sum((0, 1)) @ n_out for each in (column, torch.special.xlogy(column, column))]
    return torch.stack([blocks * ins * entropy, *(blocks * outs * each for each in by_kind)])
