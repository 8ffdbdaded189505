"""A network run with some of its edges alone, the others carrying something else; and ACDC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from modfast.circuits.graph import LOGITS, Node, Port
from modfast.circuits.graph_scores import Asked, Prepared, prepared
from modfast.circuits.network import NoChainError
from modfast.circuits.patching import Patching, carried, pairs_of
from modfast.network.inputs import Inputs, Targets
from modfast.network.run import Run
from modfast.network.whole import Values
from modfast.progress import bar

Masks = dict[tuple[str, str], Tensor]


@dataclass
class MaskedRun:
    """A batch's run with the edges of masks `[senders, receivers]`."""

    patching: Patching
    masks: Mapping[tuple[str, str], Tensor]
    moved: dict[str, Values] = field(default_factory=dict)
    """By sender and slot: what its parts give now, minus what they give in the clean run."""

    def logits(self, first: int = 0) -> Tensor:
        """What the network comes to; nodes before the `first` are as in the clean run."""
        graph = self.patching.graph
        self.moved = {}
        for node in graph.nodes[first:]:
            value = self.value(node)
            if node.name == LOGITS:
                return graph.tape.values[node.slot] if value is None else value
            if value is not None:
                self.moved[node.name] = carried(graph, self.patching.calls, node, value)
        raise AssertionError

    def value(self, node: Node) -> Tensor | None:
        """What a node gives; None where that is as in the clean run."""
        tape = self.patching.graph.tape
        found: Values = {}
        for target in dict.fromkeys(port.target for port in node.ports):
            ports = [port for port in node.ports if port.target == target]
            masks = self.patching.masks(ports[0])
            made: dict[bytes, Tensor] = {}
            for j, mask in enumerate(masks):
                reads = {port.source: self._read(port, j) for port in ports}
                starts = {slot: read for slot, read in reads.items() if read is not None}
                if not starts:
                    continue
                key = b"".join(bytes(self._column(port, j)) for port in ports)
                if key not in made:
                    made[key] = tape.again(ports[0].calls, dict(starts))[target]
                now = found.get(target, tape.values[target])
                found[target] = made[key] if len(masks) == 1 else torch.where(mask, made[key], now)
        if not found or not node.inner:
            return found.get(node.slot)
        return tape.again(node.inner, found)[node.slot]

    def _column(self, port: Port, j: int) -> list[int]:
        """Which edges into a receiver there are."""
        masks = [self.masks[node.name, port.name][:, j] for node in port.senders]
        return [int(x) for each in masks for x in each.tolist()]

    def _read(self, port: Port, j: int) -> Tensor | None:
        """What a receiver reads; None where that is as in the clean run."""
        total: Tensor | None = None
        for node in port.senders:
            kept = self.masks[node.name, port.name][:, j]
            parts = []
            if not bool(kept.all()):
                parts.append(self.patching.changes[node.name][port.source][~kept].sum(0))
            if node.name in self.moved and bool(kept.any()):
                parts.append(self.moved[node.name][port.source][kept].sum(0))
            for part in parts:
                total = part if total is None else total + part
        return None if total is None else self.patching.graph.tape.values[port.source] + total


def all_edges(batches: Sequence[Prepared], value: bool) -> Masks:
    """Masks that hold all edges, or none."""
    graph = batches[0].patching.graph
    ports = {port.name: port for port in graph.ports}
    nodes = {node.name: node for node in graph.nodes}
    return {
        (s, r): torch.full((nodes[s].n, ports[r].n), value, device="cpu")
        for s, r in pairs_of(graph)
    }


def judged(batches: Sequence[Prepared], masks: Masks, first: int = 0) -> float:
    """The metric of what the edges of masks come to."""
    total = sum(
        each.weight * float(each.judge(MaskedRun(each.patching, masks).logits(first)))
        for each in batches
    )
    return total / sum(each.weight for each in batches)


def circuit_of_graph(
    run: Run,
    model: nn.Module,
    clean: Inputs,
    corrupted: Inputs | None,
    threshold: float,
    targets: Targets,
    asked: Asked,
    error: NoChainError | None,
) -> tuple[Masks, dict[str, Tensor]]:
    """As `discover_circuit`, of any network; and its nodes.

    What comes before a receiver has all its edges still, so it is as in the clean run.
    """
    batches = list(prepared(run, model, clean, corrupted, targets, asked, error))
    graph = batches[0].patching.graph
    masks = all_edges(batches, True)
    value = judged(batches, masks, len(graph.nodes) - 1)
    order = [(i, port) for i, node in reversed([*enumerate(graph.nodes)]) for port in node.ports]
    for i, port in bar(order, "receivers", asked.progress):
        for j in range(port.n):
            for node in port.senders:
                mask = masks[node.name, port.name]
                for s in range(node.n):
                    mask[s, j] = False
                    without = judged(batches, masks, i)
                    if without - value < threshold:
                        value = without
                    else:
                        mask[s, j] = True
    return masks, graph.labels()
