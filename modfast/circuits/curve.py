"""How faithful are circuits of growing size to the whole network?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from modfast import checks, plots
from modfast.circuits import evaluation
from modfast.circuits.edges import EdgeCircuit, EdgeScores
from modfast.circuits.metric import MetricLike
from modfast.circuits.network import BACKEND
from modfast.network.inputs import Inputs, Targets
from modfast.network.interrupts import under
from modfast.network.logits import Output, check_output
from modfast.progress import bar
from modfast.results import Result

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True, eq=False, repr=False)
class FaithfulnessCurve(Result):
    """How much of what the whole network does circuits of growing size do; of `faithfulness_curve`.

    Example:
        >>> import torch
        >>> sizes, values = torch.tensor([1, 4]), torch.tensor([0.5, 1.0])
        >>> FaithfulnessCurve(sizes, values, 0.6875, 0.3125, 4).cpr
        0.6875
    """

    sizes: Tensor
    """How many edges each circuit has: int64 `[k]`, ascending."""
    faithfulness: Tensor
    """1 for the whole network, 0 for no edges: float64 `[k]`."""
    cpr: float
    """Area under the curve, over the share of edges from 0 to 1."""
    cmd: float
    """Area between the curve and 1: the smaller, the closer circuits behave to the network."""
    n_total: int
    """How many edges there are."""
    backend: str = ""
    """Which way it was computed."""

    def plot(self) -> Figure:
        """Faithfulness over the share of edges."""
        return plots.faithfulness(self.sizes, self.faithfulness, self.n_total)


@under(torch.no_grad)
def faithfulness_curve(
    scores_or_circuits: EdgeScores | Sequence[EdgeCircuit],
    model: nn.Module,
    clean: Inputs,
    corrupted: Inputs | None,
    targets: Targets = None,
    *,
    sizes: Sequence[int] | None = None,
    metric: MetricLike = None,
    signed: bool = False,
    output: Output = None,
    progress: bool = True,
) -> FaithfulnessCurve:
    """How far circuits of growing size do what the whole network does.

    With m the metric, faithfulness is (m(circuit) - m(no edges)) / (m(all edges) - m(no edges)).
    Circuits are runs of `EdgeCircuit.evaluate`. Areas are by trapezoids over the share of edges,
    from 0 edges, where it is 0, to all, where it is 1.

    Args:
        scores_or_circuits: scores, whose largest edges make each circuit; or circuits of one
            network.
        model: as for `attribute_edges`.
        clean: the same.
        corrupted: the same.
        targets: for metric="loss".
        sizes: how many edges of the scores to take, by default shares from .001 to 1 of all.
        metric: "kl", "loss" or a function, as in `attribute_edges`.
        signed: take scores by sign, as in `EdgeScores.circuit`.
        output: picks the logits out of what the model returns: a function or a key.
        progress: show a progress bar, where standard error is a terminal.

    Raises:
        TypeError: neither scores nor circuits.
        ValueError: sizes out of range, or none; sizes beside circuits; a metric that is the same
            for all edges and none.

    Source: Mueller et al., "MIB: A Mechanistic Interpretability Benchmark", 2025.

    Example:
        >>> import torch, modfast
        >>> model = modfast.models.MLP([8, 6, 3])
        >>> clean, corrupted, y = torch.randn(20, 8), torch.randn(20, 8), torch.arange(20) % 3
        >>> scores = modfast.attribute_edges(model, clean, corrupted, y)
        >>> curve = modfast.faithfulness_curve(scores, model, clean, corrupted, y, sizes=[10, 66])
        >>> round(float(curve.faithfulness[-1]), 4)
        1.0
    """
    check_output(output)
    circuits = _circuits(scores_or_circuits, sizes, checks.flag("signed", signed))
    none = EdgeCircuit(
        {pair: torch.zeros_like(mask) for pair, mask in circuits[0].masks.items()},
        circuits[0].nodes,
        intervention=circuits[0].intervention,
    )
    every = EdgeCircuit(
        {pair: torch.ones_like(mask) for pair, mask in none.masks.items()},
        none.nodes,
        intervention=none.intervention,
    )

    def value(circuit: EdgeCircuit) -> float:
        runs = evaluation.runs_of(circuit, model, clean, corrupted, targets, output)
        return evaluation.value_of(runs, metric)

    low, high = value(none), value(every)
    if low == high:
        raise ValueError(f"metric must differ between all edges and none, got {low:g} for both")
    found = [(value(each) - low) / (high - low) for each in bar(circuits, "circuits", progress)]
    n_total = none.n_total
    counts = torch.tensor(_sizes(scores_or_circuits, circuits, sizes), device="cpu")
    order = counts.argsort(stable=True)
    counts, values = counts[order], torch.tensor(found, dtype=torch.float64, device="cpu")[order]
    share = torch.cat([torch.zeros(1), counts.double() / n_total, torch.ones(1)]).double()
    curve = torch.cat([torch.zeros(1), values, torch.ones(1)]).double()
    area = partial(torch.trapezoid, x=share)
    return FaithfulnessCurve(
        counts, values, float(area(curve)), float(area((1 - curve).abs())), n_total, BACKEND
    )


def _circuits(
    given: EdgeScores | Sequence[EdgeCircuit], sizes: Sequence[int] | None, signed: bool
) -> list[EdgeCircuit]:
    if isinstance(given, EdgeScores):
        return [given.circuit(n, signed=signed) for n in _chosen(given, sizes)]
    if isinstance(given, (str, EdgeCircuit)) or not isinstance(given, Sequence):
        raise TypeError(f"scores_or_circuits must be EdgeScores or circuits, got {given!r:.60}")
    if sizes is not None:
        raise ValueError("sizes must be None where circuits are given, which have theirs")
    if not given or not all(isinstance(each, EdgeCircuit) for each in given):
        raise TypeError("scores_or_circuits must be EdgeScores, or one or more EdgeCircuits")
    first = given[0]
    for each in given:
        shapes = [{pair: mask.shape for pair, mask in x.masks.items()} for x in (first, each)]
        if shapes[0] != shapes[1] or each.intervention != first.intervention:
            raise ValueError("scores_or_circuits must be of one network and one intervention")
    return list(given)


def _chosen(scores: EdgeScores, sizes: Sequence[int] | None) -> list[int]:
    n_total = sum(each.numel() for each in scores.scores.values())
    if sizes is None:
        return sorted({max(1, round(share * n_total)) for share in SHARES})
    if isinstance(sizes, (str, int)) or not len(sizes):
        raise ValueError(f"sizes must be one or more numbers of edges, got {sizes!r}")
    found = [checks.count("sizes", size) for size in sizes]
    if max(found) > n_total:
        raise ValueError(f"sizes must be at most {n_total}, the edges, got {max(found)}")
    return found


def _sizes(
    given: EdgeScores | Sequence[EdgeCircuit],
    circuits: Sequence[EdgeCircuit],
    sizes: Sequence[int] | None,
) -> list[int]:
    """Of scores, how many edges were asked for: those that are pruned count."""
    if isinstance(given, EdgeScores):
        return _chosen(given, sizes)
    return [each.n_edges for each in circuits]
