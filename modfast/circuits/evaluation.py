"""What a circuit alone makes of inputs, beside the whole network and no edges at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from modfast import checks
from modfast.circuits.graph_runs import MaskedRun, all_edges
from modfast.circuits.graph_scores import Asked, prepared
from modfast.circuits.inputs import check_intervention, checked_inputs
from modfast.circuits.metric import MetricLike, make_metric
from modfast.circuits.network import Intervention, Network, read_network
from modfast.circuits.removal import Step, follow, intervened
from modfast.metrics import mean_over_samples
from modfast.network.inputs import Batch, Inputs, Targets
from modfast.network.logits import Output, read_rows
from modfast.network.run import running
from modfast.precision import full_precision
from modfast.scores import scores as accuracies


class CircuitLike(Protocol):
    """An `EdgeCircuit`."""

    @property
    def masks(self) -> Mapping[tuple[str, str], Tensor]:
        """By pair, which edges it has."""

    @property
    def nodes(self) -> Mapping[str, Tensor]:
        """By name, the node of each unit."""

    @property
    def intervention(self) -> Any:
        """What all other edges carry."""

    @property
    def is_graph(self) -> bool:
        """Whether it is of a network that is no chain."""


@dataclass(frozen=True)
class Runs:
    """Logits of one batch, and the rows of them that count."""

    found: Tensor
    """Of the circuit."""
    rows: tuple[Tensor, Tensor, Tensor]
    """`[n, c]` each: of the circuit, of the whole network, and without any edge."""
    targets: Tensor | None
    batch: Batch


def runs_of(
    circuit: CircuitLike,
    model: nn.Module,
    clean: Inputs,
    corrupted: Inputs | None,
    targets: Targets,
    output: Output,
) -> list[Runs]:
    """Each batch; a chain is of one.

    Raises:
        TypeError, ValueError: as `EdgeCircuit.evaluate`.
    """
    check_intervention(circuit.intervention, corrupted)
    with ExitStack() as stack:
        stack.enter_context(full_precision())
        if not circuit.is_graph:
            other = clean if corrupted is None else corrupted
            x, y, labels = checked_inputs(model, clean, other, targets)  # type: ignore[arg-type]
            run = stack.enter_context(running(model, argument="clean"))
            network, whole, there = read_network(run, model, x, y, output=output)
            network = _fit(network, circuit.nodes)
            there = intervened(network, there, circuit.intervention)
            steps = [
                Step.masked(network, level, circuit.masks[pair], there)
                for level, pair in enumerate(network.pairs)
            ]
            first, *rest = steps
            found = follow(first.layer, first(whole.inputs[0][None]), rest)[0]
            three = found, whole.logits, there.logits
            return [Runs(found, three, labels, Batch((x,), {}, labels))]
        checks.python_module("model", model)
        run = stack.enter_context(running(model, argument="clean"))
        asked = _asked(circuit, output)
        batches = []
        for each in prepared(run, model, clean, corrupted, targets, asked):
            _check(circuit, each.patching.graph.labels())
            found = MaskedRun(each.patching, circuit.masks).logits()
            none = MaskedRun(each.patching, all_edges([each], False)).logits()
            rows = read_rows(each.tape.values[each.tape.out_slot], each.batch)
            three = (rows.of(found), rows.logits, rows.of(none))
            batches.append(Runs(found, three, rows.targets, each.batch))
        return batches


def _asked(circuit: CircuitLike, output: Output) -> Asked:
    senders = dict.fromkeys(sender for sender, _ in circuit.masks)
    nodes: Any = {name: circuit.nodes[name] for name in senders}
    intervention: Intervention = circuit.intervention
    return Asked("exact", "kl", nodes, intervention, 1, output, False)


def _check(circuit: CircuitLike, labels: Mapping[str, Tensor]) -> None:
    own = {name: each.tolist() for name, each in circuit.nodes.items()}
    if own != {name: each.tolist() for name, each in labels.items()}:
        raise ValueError(
            f"model must have the circuit's nodes, {[*circuit.nodes]}, got {[*labels]}"
        )


def measured(runs: Sequence[Runs]) -> dict[str, float]:
    """The fields of a `CircuitEvaluation`: means over all rows."""
    total: dict[str, float] = {}
    n = sum(len(each.rows[0]) for each in runs)
    for each in runs:
        found, whole, none = each.rows
        share = len(found) / n
        kl = make_metric("kl", whole, each.targets)
        values = {"kl": float(kl(found)), "corrupted_kl": float(kl(none))}
        if each.targets is not None:
            loss = make_metric("loss", whole, each.targets)
            for name, logits in (("", found), ("whole_", whole)):
                values[f"{name}loss"] = float(loss(logits))
                values[f"{name}accuracy"] = float(accuracies(logits, each.targets)[0])
        for name, value in values.items():
            total[name] = total.get(name, 0.0) + share * value
    return total


def value_of(runs: Sequence[Runs], metric: MetricLike) -> float:
    """The metric of what a circuit came to: the mean over samples, or over rows."""
    total, n = 0.0, 0
    for each in runs:
        if callable(metric):
            weight = len(each.batch)
            value = mean_over_samples(metric, each.found, each.batch)
        else:
            weight = len(each.rows[0])
            value = make_metric(metric, each.rows[1], each.targets)(each.rows[0])
        total, n = total + weight * float(value), n + weight
    return total / n


def _fit(network: Network, labels: Mapping[str, Tensor]) -> Network:
    """The network with a circuit's nodes."""
    own = {name: len(each) for name, each in labels.items()}
    there = {name: len(each) for name, each in network.nodes.items()}
    if own != there:
        raise ValueError(f"model must have the circuit's layers and units, {own}, got {there}")
    device = network.layers[0].weight.device
    nodes = {name: each.to(device) for name, each in labels.items()}
    return Network(network.before, network.layers, nodes)
