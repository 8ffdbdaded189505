"""Scores of the edges of a network that is no chain, over all batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from modfast import checks
from modfast.circuits.graph import Graph, Nodes
from modfast.circuits.inputs import told_of
from modfast.circuits.metric import NO_GRADIENT, Metric, MetricLike, make_metric
from modfast.circuits.network import Intervention, NoChainError
from modfast.circuits.patching import Judge, Patching, Scores, new_values, spread, summed
from modfast.circuits.whole_graph import graph_of
from modfast.metrics import mean_over_samples
from modfast.network.inputs import Batch, Inputs, Targets, is_stream, read_batches, tensors_in
from modfast.network.logits import Output, read_rows
from modfast.network.run import Run, require_differentiable
from modfast.network.whole import Values, Whole, record
from modfast.progress import bar


@dataclass(frozen=True)
class Asked:
    """What is to be found of a network's edges."""

    method: str
    metric: MetricLike
    nodes: Nodes
    intervention: Intervention
    steps: int
    output: Output
    progress: bool


def scores_of_graph(
    run: Run,
    model: nn.Module,
    clean: Inputs,
    corrupted: Inputs | None,
    targets: Targets,
    asked: Asked,
    error: NoChainError | None = None,
) -> tuple[Scores, dict[str, Tensor], float]:
    """As `attribute_edges`, of any network: scores, nodes and the metric of the clean run.

    `error` says why it is no chain.
    """
    if asked.method != "exact":
        require_differentiable(model)
    totals: dict[tuple[str, str], Tensor] = {}
    value, n = 0.0, 0
    for each in prepared(run, model, clean, corrupted, targets, asked, error):
        patching, judge = each.patching, each.judge
        if asked.method == "exact":
            found = patching.exact(judge, lambda ports: bar(ports, "edges", asked.progress))
        else:
            if asked.method == "eap" and each.kind == "kl":
                raise ValueError(NO_GRADIENT)
            found = patching.gradients(judge, list(_points(each.tape, each.other, asked)))
        for pair, scores in found.items():
            totals[pair] = totals.get(pair, 0) + each.weight * scores
        value += each.weight * float(judge(each.tape.values[each.tape.out_slot]))
        n += each.weight
    means = {pair: total / n for pair, total in totals.items()}
    for pair, scores in means.items():
        checks.finite(f"the scores of {pair}", scores)
    labels = each.patching.graph.labels()
    return means, labels, value / n


@dataclass(frozen=True)
class Prepared:
    """A batch, run on both inputs."""

    batch: Batch
    tape: Whole
    other: Whole
    patching: Patching
    judge: Judge
    kind: str
    weight: int
    """How many samples, or positions, the metric is the mean of."""


def prepared(
    run: Run,
    model: nn.Module,
    clean: Inputs,
    corrupted: Inputs | None,
    targets: Targets,
    asked: Asked,
    error: NoChainError | None = None,
) -> Iterator[Prepared]:
    """Each batch, with what its edges carry.

    Raises:
        TypeError, ValueError: as `attribute_edges`.
    """
    means: dict[int, Tensor] | None = None
    if asked.intervention in ("mean", "positional-mean"):
        means = _means(run, model, clean, corrupted, asked)
    labels: dict[str, list[int]] = {}
    for batch, other_batch in _pairs(model, clean, corrupted, targets):
        tape, other = _recorded(run, model, batch, other_batch, asked)
        graph = graph_of(tape, model, asked.nodes, batch, error)
        now = {name: each.tolist() for name, each in graph.labels().items()}
        if labels and labels != now:
            raise ValueError("clean must give the same graph in each batch, got another one")
        labels = now
        if means is None:
            new = new_values(graph, other, asked.intervention)
        else:
            new = {x.slot: spread(x, means[x.slot], tape.values[x.slot]) for x in graph.senders}
        patching = Patching.of(graph, new, other if asked.intervention == "patch" else None)
        yield Prepared(batch, tape, other, patching, *_judge(asked, tape, batch))


def _points(tape: Whole, other: Whole, asked: Asked) -> Iterator[Values]:
    """The inputs at which gradients are taken."""
    shares = (
        [1.0] if asked.method == "eap" else [i / asked.steps for i in range(1, asked.steps + 1)]
    )
    for share in shares:
        yield {
            slot: torch.lerp(other.values[slot], tape.values[slot], share) for slot in tape.roots
        }


def _judge(asked: Asked, tape: Whole, batch: Batch) -> tuple[Judge, str, int]:
    """The metric of a batch's logits, its kind, and how much the batch counts."""
    logits, metric = tape.values[tape.out_slot], asked.metric
    checks.finite("the model's logits", logits)
    if callable(metric):
        judge = partial(mean_over_samples, metric, batch=batch)
        judge(logits)
        return judge, "callable", len(batch)
    rows = read_rows(logits, batch)
    found: Metric = make_metric(metric, rows.logits, rows.targets)
    return lambda x: found(rows.of(x)), found.kind, len(rows.logits)


def _recorded(
    run: Run, model: nn.Module, batch: Batch, other: Batch, asked: Asked
) -> tuple[Whole, Whole]:
    """Both runs, which must do the same.

    Raises:
        ValueError: they do not; the recorded calls give other logits than the model.
    """
    first = record(run, model, batch, asked.output, "clean")
    second = first if other is batch else record(run, model, other, asked.output, "corrupted")
    if not first.same_calls(second):
        raise ValueError("corrupted must make the model do what clean does, got other calls")
    # What gradients are taken of is such a run itself, and is compared there.
    if asked.method == "exact":
        start = {slot: first.values[slot] for slot in first.roots}
        first.check(first.again(first.calls, start), first)
    if first.doubts:
        start = {slot: second.values[slot] for slot in first.roots}
        first.check(first.again(first.calls, start), second)
    return first, second


def _pairs(
    model: nn.Module, clean: Inputs, corrupted: Inputs | None, targets: Targets
) -> Iterator[tuple[Batch, Batch]]:
    """The batches of both inputs.

    Raises:
        ValueError: another number of them, or of another shape, dtype or device.
    """
    if corrupted is not None and is_stream(clean) != is_stream(corrupted):
        raise ValueError("corrupted must be a stream of batches where clean is, and one where not")
    others = None if corrupted is None else read_batches(model, corrupted, argument="corrupted")
    for batch in read_batches(model, clean, targets, argument="clean"):
        other = batch if others is None else next(others, None)
        if other is None:
            raise ValueError("corrupted must have as many batches as clean, got fewer")
        told = [[told_of(x) for x in tensors_in([b.args, b.kwargs])] for b in (batch, other)]
        if told[0] != told[1]:
            raise ValueError(
                f"corrupted must be as clean, {', '.join(told[0])}, got {', '.join(told[1])}"
            )
        yield batch, other
    if others is not None and next(others, None) is not None:
        raise ValueError("corrupted must have as many batches as clean, got more")


def _means(
    run: Run, model: nn.Module, clean: Inputs, corrupted: Inputs | None, asked: Asked
) -> dict[int, Tensor]:
    """By slot, what nodes give on the corrupted inputs on average, or on the clean ones."""
    data = clean if corrupted is None else corrupted
    argument = "clean" if corrupted is None else "corrupted"
    if is_stream(data) and iter(data) is data:
        raise TypeError(
            f"{argument} must be no iterator with intervention={asked.intervention!r}, which reads "
            "it twice"
        )
    totals: dict[int, Tensor] = {}
    counts: dict[int, Tensor] = {}
    for batch in read_batches(model, data, argument=argument):
        tape = record(run, model, batch, asked.output, argument)
        graph: Graph = graph_of(tape, model, asked.nodes, batch, None)
        for node in graph.senders:
            total, n = summed(node, tape.values[node.slot], asked.intervention, batch.mask())
            if node.slot in totals and totals[node.slot].shape != total.shape:
                raise ValueError(
                    f"intervention={asked.intervention!r} needs as many positions in each batch of "
                    f"{argument}"
                )
            totals[node.slot] = totals.get(node.slot, 0) + total
            counts[node.slot] = counts.get(node.slot, 0) + n
    return {slot: total / counts[slot].clamp(min=1) for slot, total in totals.items()}
