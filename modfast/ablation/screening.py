"""Exact ablations of the units that an estimate puts first, and of others to see what it misses."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from modfast.ablation.arguments import read_units
from modfast.ablation.estimates import Asked, estimate
from modfast.ablation.objective import read_objective
from modfast.ablation.result import AblationResult, Screening
from modfast.ablation.sweep import Options, Plan
from modfast.network.inputs import Inputs, Targets, is_stream, one_batch
from modfast.network.run import require_differentiable

MOST_DRAWS = 16
_MEASURES = {"kl": "kl_ablated_original", "entropy": "entropy_difference"}
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Screened:
    """The units that are ablated, by site."""

    estimates: Mapping[str, Tensor]
    first: Mapping[str, Tensor]
    drawn: Mapping[str, Tensor]
    measure: str

    @property
    def units(self) -> dict[str, Tensor]:
        """Of each site: those that the estimate puts first, then those drawn at random."""
        return {name: torch.cat([first, self.drawn[name]]) for name, first in self.first.items()}

    def told(self, results: Mapping[str, AblationResult]) -> dict[str, AblationResult]:
        """Results with what stands for the units that were not ablated."""
        found = {}
        for name, result in results.items():
            first, drawn = self.first[name], self.drawn[name]
            exact = result.total(self.measure)
            least = exact[: len(first)].abs().min()
            n_exceeding = int((exact[len(first) :].abs() > least).sum())
            pair = torch.stack([self.estimates[name][drawn], exact[len(first) :]])
            screening = Screening(
                self.estimates[name],
                first,
                drawn,
                float(torch.corrcoef(pair)[0, 1]) if len(drawn) > 1 else math.nan,
                n_exceeding,
                most_missed(len(self.estimates[name]) - len(first), len(drawn), n_exceeding),
                self.measure,
            )
            found[name] = replace(result, screening=screening)
        return found


def screened(
    model: nn.Module,
    inputs: Inputs,
    plan: Plan,
    units: Mapping[str, Any],
    k: int,
    metric: Any,
    targets: Targets,
    seed: int,
    options: Options,
) -> Screened:
    """The k units of each site that gradients put first, and k of the others at random.

    Raises:
        TypeError, ValueError: as `attribute_units`; units, positions or metrics that cannot be
            screened.
    """
    assert plan.source is not None
    if isinstance(inputs, Iterator) or isinstance(plan.source.paired(plan.corrupted), Iterator):
        raise TypeError("screen reads inputs and corrupted twice, which must be no iterators")
    if isinstance(plan.positions, str):
        raise ValueError("positions must be indices or a mask with screen, got 'each'")
    if plan.source.kind == "optimal":
        raise ValueError("value must be other than 'optimal' with screen")
    if isinstance(metric, Mapping):
        if len(metric) != 1:
            raise ValueError(f"metric must be one with screen, got {len(metric)}")
        ((name, metric),) = metric.items()
    elif metric is None or isinstance(metric, str):
        name, metric = "", metric or "kl"
        if metric not in _MEASURES:
            raise ValueError(
                f"metric must be one of {list(_MEASURES)} or a function with screen, got {metric!r}"
            )
    else:
        name = next(iter(options.metrics))
    measure = _MEASURES[metric] if isinstance(metric, str) else name
    # Enough draws for a ranking: with few samples more.
    n = 0 if is_stream(inputs) else len(one_batch(model, inputs, targets, ""))
    objective = read_objective(
        metric, max(1, min(MOST_DRAWS, 1024 // n)) if n else MOST_DRAWS, seed
    )
    require_differentiable(model)
    asked = Asked(plan.sites, plan.source, plan.corrupted, plan.positions, None, objective)
    estimates, _, _ = estimate(model, inputs, targets, asked, options)
    generator = torch.Generator("cpu").manual_seed(seed)
    first, drawn = {}, {}
    for name, found in estimates.items():
        scores, given = found.cpu(), units[name]
        estimates[name] = scores
        chosen = torch.arange(len(scores), device="cpu")
        if given is not None:
            chosen = read_units("units", given, len(scores)).cpu().unique()
        order = chosen[scores[chosen].abs().argsort(descending=True, stable=True)]
        first[name], others = order[:k], order[k:]
        shuffled = torch.randperm(len(others), generator=generator, device="cpu")
        drawn[name] = others[shuffled[:k]]
    return Screened(estimates, first, drawn, measure)


def most_missed(n_others: int, n_drawn: int, n_exceeding: int) -> int:
    """The most of some others that may exceed, if so many of those drawn among them do.

    The largest number under which so few among the drawn have a probability of 5 % and more, by
    the hypergeometric distribution.

    Example:
        >>> most_missed(1000, 50, 0), most_missed(100, 100, 3)
        (56, 3)
    """

    def log_choose(n: int, k: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    def probability(n: int) -> float:
        """Of at most so many among the drawn, if n exceed in all."""
        total = 0.0
        for x in range(max(0, n_drawn - (n_others - n)), min(n_exceeding, n) + 1):
            if n_drawn - x <= n_others - n:
                total += math.exp(
                    log_choose(n, x)
                    + log_choose(n_others - n, n_drawn - x)
                    - log_choose(n_others, n_drawn)
                )
        return total

    low, high = n_exceeding, n_others - n_drawn + n_exceeding
    while low < high:  # it falls as n grows
        middle = (low + high + 1) // 2
        if probability(middle) >= 1 - CONFIDENCE:
            low = middle
        else:
            high = middle - 1
    return low
