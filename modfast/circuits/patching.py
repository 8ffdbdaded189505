"""What edges of a network carry, and what becomes of the metric when they carry something else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from modfast.circuits.graph import LOGITS, Graph, Node, Port, part_of
from modfast.circuits.linear import carry
from modfast.circuits.network import Intervention
from modfast.network.calls import Call, slots_in
from modfast.network.chain import linear_of
from modfast.network.resume import equal_to_rounding
from modfast.network.whole import Values, Whole

Judge: TypeAlias = Callable[[Tensor], Tensor]
Scores: TypeAlias = dict[tuple[str, str], Tensor]


@dataclass
class Patching:
    """A graph, and what each part of each node adds where it is read when it is changed."""

    graph: Graph
    changes: dict[str, Values]
    """By sender and slot: `[parts, ...]`."""
    calls: list[Call]
    """The linear ones from nodes to what is read."""

    @classmethod
    def of(cls, graph: Graph, new: Mapping[int, Tensor], other: Whole | None) -> Patching:
        """Of the changes that put `new` values in the place of nodes' own.

        Raises:
            ValueError: the changes of all nodes together do not give what is read; of `other`,
                whose run has these values.
        """
        tape = graph.tape
        sources = {port.source for port in graph.ports}
        calls = _leading_to(graph.linear, sources)
        changes: dict[str, Values] = {}
        totals = {source: torch.zeros_like(tape.values[source]) for source in sources}
        for node in graph.senders:
            changes[node.name] = carried(graph, calls, node, new[node.slot])
            for slot, stack in changes[node.name].items():
                totals[slot] += stack.sum(0)
        wanted = other.values if other is not None else _together(graph, calls, new)
        for slot, total in totals.items():
            now = tape.values[slot]
            if not equal_to_rounding(now + total, wanted.get(slot, now)):
                call = next((x for x in tape.calls if slot in slots_in(x.outs)), None)
                what = "an input" if call is None else f"{call.name!r} in {tape.places[call][0]!r}"
                raise ValueError(
                    f"model must add up what its nodes give; at {what} they do not tell all that "
                    "differs between clean and corrupted inputs"
                )
        return cls(graph, changes, calls)

    def into(self, port: Port) -> Iterator[tuple[Node, int, Tensor]]:
        """Each sender, its part, and what the port reads when that is changed."""
        now = self.graph.tape.values[port.source]
        for node in port.senders:
            for i, change in enumerate(self.changes[node.name][port.source]):
                yield node, i, now + change

    def exact(self, judge: Judge, ports: Callable[[Sequence[Port]], Iterable[Port]]) -> Scores:
        """The rise of the metric when one edge carries its change, for all edges."""
        tape = self.graph.tape
        base = judge(tape.values[tape.out_slot])
        found: Scores = {}
        for port in ports(self.graph.ports):
            after = _following(tape, port.node.slot)
            masks = self.masks(port)
            for node in port.senders:
                empty = torch.empty(node.n, port.n, dtype=torch.float64, device="cpu")
                found[node.name, port.name] = empty
            now = tape.values[port.target]
            for node, i, read in self.into(port):
                moved = tape.again(port.calls, {port.source: read})[port.target]
                for j, mask in enumerate(masks):
                    changed = torch.where(mask, moved, now) if len(masks) > 1 else moved
                    logits = self._logits(port, changed, after)
                    found[node.name, port.name][i, j] = float(judge(logits) - base)
        return found

    def masks(self, port: Port) -> list[Tensor]:
        """Where each of a port's receivers lies in what it makes of what it reads."""
        value = self.graph.tape.values[port.target]
        return [part_of(value, port.dim, port.labels, j) for j in range(port.n)]

    def _logits(self, port: Port, changed: Tensor, after: Sequence[Call]) -> Tensor:
        tape, node = self.graph.tape, port.node
        if port.target != node.slot:
            changed = tape.again(node.inner, {port.target: changed})[node.slot]
        if node.name == LOGITS:
            return changed
        return tape.again(after, {node.slot: changed})[tape.out_slot]

    def gradients(self, judge: Judge, points: Sequence[Values]) -> Scores:
        """The change of each edge times the metric's mean gradient for what is read there.

        The last of the points are the clean inputs.

        Raises:
            ValueError: a metric without a gradient.
        """
        totals: dict[str, Tensor] = {}
        for i, inputs in enumerate(points):
            for name, slope in self._slopes(judge, inputs, clean=i == len(points) - 1):
                part = slope.detach() / len(points)
                totals[name] = totals[name] + part if name in totals else part
        found: Scores = {}
        for source in {port.source for port in self.graph.ports}:
            # All that read one sum go together.
            ports = [port for port in self.graph.ports if port.source == source]
            slopes = torch.cat([totals[port.name].flatten(1) for port in ports])
            for node in ports[0].senders:
                change = self.changes[node.name][source].flatten(1)
                columns = (change @ slopes.T).double().split([port.n for port in ports], 1)
                for port, each in zip(ports, columns, strict=True):
                    found[node.name, port.name] = each.cpu()
        return {pair: found[pair] for pair in pairs_of(self.graph)}

    def _slopes(self, judge: Judge, inputs: Values, clean: bool) -> Iterator[tuple[str, Tensor]]:
        """By port, the metric's gradient for what each receiver reads: `[receivers, ...]`."""
        tape, readers = self.graph.tape, [node for node in self.graph.nodes if node.ports]
        with torch.enable_grad():
            values = {slot: x.detach().clone().requires_grad_() for slot, x in inputs.items()}
            tape.again(tape.calls, values)
            if clean:
                tape.check(values, tape)
            value = judge(values[tape.out_slot])
            if not value.requires_grad:
                raise ValueError("metric must be differentiable with method='eap' or 'eap-ig'")
            outs = [values[node.slot] for node in readers]
            # Zeros for what the metric does not look at.
            options: Any = {"allow_unused": True, "materialize_grads": True}
            slopes = torch.autograd.grad(value, outs, retain_graph=True, **options)
            for node, slope in zip(readers, slopes, strict=True):
                yield from self._through(node, values, slope)

    def _through(self, node: Node, values: Values, slope: Tensor) -> Iterator[tuple[str, Tensor]]:
        tape = self.graph.tape
        at = {node.slot: slope}
        if node.inner:
            # Queries, keys and values as if they were no function of each other.
            own = {port.target: values[port.target].detach() for port in node.ports}
            for each in own.values():
                each.requires_grad_()
            made = tape.again(node.inner, dict(own))[node.slot]
            found = torch.autograd.grad(made, list(own.values()), slope)
            at = dict(zip(own, found, strict=True))
        for port in node.ports:
            start, end = values[port.source], values[port.target]
            if len(node.ports) > 1 and not node.inner:  # one sum may be behind another one
                leaf = {p.source: values[p.source].detach() for p in node.ports}
                start = leaf[port.source].requires_grad_()
                end = tape.again(port.calls, leaf)[port.target]
            given = at[port.target]
            if start is end:
                rows = torch.stack([given * mask for mask in self.masks(port)])
            elif port.n == 1:
                rows = torch.autograd.grad(end, start, given, retain_graph=True)[0][None]
            else:
                each = torch.stack([given * mask for mask in self.masks(port)])
                found_rows = _by_columns(port, values, end, each) if node.inner else None
                rows = _rows(end, start, each) if found_rows is None else found_rows
            yield port.name, rows


def _by_columns(port: Port, values: Values, end: Tensor, slopes: Tensor) -> Tensor | None:
    """Each receiver's gradient by its own columns of the last weight; None without such."""
    at = max(
        (i for i, call in enumerate(port.calls) if call.name in ("linear", "addmm")), default=-1
    )
    layer = None if at < 0 else linear_of(port.calls[at])
    if layer is None:
        return None
    call, rest = port.calls[at], port.calls[at + 1 :]
    made = {slot for x in (call, *rest) for slot in slots_in(x.outs)}
    if any(not made.issuperset(x.slots()) for x in rest):
        return None
    read, out = values[call.slots()[0]], values[call.outs.number]
    each = _narrow(slopes if out is end else _rows(end, out, slopes), layer[0])
    start = values[port.source]
    return each if read is start else _rows(read, start, each)


def _narrow(slopes: Tensor, weight: Tensor) -> Tensor:
    """Gradients `[a, ..., m]` times a weight `[m, d]`, each by the columns that it is not 0 in."""
    used = slopes.flatten(1, -2).ne(0).any(1)
    found = [x[..., columns] @ weight[columns] for x, columns in zip(slopes, used, strict=True)]
    return torch.stack(found)


def carried(graph: Graph, calls: Sequence[Call], node: Node, new: Tensor) -> Values:
    """By slot, what each part of a node adds where it is read, when its value is new."""
    own = graph.tape.values[node.slot]
    parts = [(new - own) * part_of(own, node.dim, node.labels, i) for i in range(node.n)]
    stacks = carry(graph.tape, calls, {node.slot: torch.stack(parts)})
    return {port.source: stacks[port.source] for port in graph.ports if node in port.senders}


def pairs_of(graph: Graph) -> list[tuple[str, str]]:
    """All edges, by sender and port."""
    return [(node.name, port.name) for port in graph.ports for node in port.senders]


def _rows(end: Tensor, start: Tensor, slopes: Tensor) -> Tensor:
    """What each of several gradients `[a, ...]` for one value is for another."""
    found: Tensor
    (found,) = torch.autograd.grad(end, start, slopes, retain_graph=True, is_grads_batched=True)
    return found


def new_values(graph: Graph, other: Whole, intervention: Intervention) -> dict[int, Tensor]:
    """What is put in the place of nodes' values: another run's, or zeros."""
    values = {node.slot: other.values[node.slot] for node in graph.senders}
    if intervention == "zero":
        return {slot: torch.zeros_like(value) for slot, value in values.items()}
    return values


def summed(
    node: Node, value: Tensor, intervention: Intervention, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """A node's value added up over samples, or over positions as well; and how many these are."""
    rows = value.double()
    if node.n and node.dim == 0:  # heads and samples in one
        rows = rows.unflatten(0, (-1, len(node.labels)))
    at = _position_dims(node, rows)
    kept = torch.ones_like(rows[:1, ...]).expand_as(rows)
    if mask is not None and len(at) == 1 and mask.shape == (len(rows), rows.shape[at[0]]):
        shape = [1] * rows.dim()
        shape[0], shape[at[0]] = mask.shape
        kept = mask.view(shape).to(rows).expand_as(rows)
    dims = [0, *(at if intervention == "mean" else [])]
    return (rows * kept).sum(dims, keepdim=True), kept.sum(dims, keepdim=True)


def spread(node: Node, mean: Tensor, like: Tensor) -> Tensor:
    """A mean in the shape of a node's value."""
    if node.n and node.dim == 0:
        wide = like.unflatten(0, (-1, len(node.labels)))
        return mean.expand_as(wide).flatten(0, 1).to(like)
    return mean.expand_as(like).to(like)


def _position_dims(node: Node, value: Tensor) -> list[int]:
    """Which dimensions hold positions: the token's, or the pixel's."""
    if value.dim() == 4:
        heads = bool(node.inner)
        return [2] if heads else [2, 3]
    return list(range(1, value.dim() - 1))


def _leading_to(calls: Sequence[Call], slots: set[int]) -> list[Call]:
    need, kept = set(slots), []
    for call in reversed(calls):
        if not need.isdisjoint(slots_in(call.outs)):
            kept.append(call)
            need.update(call.slots())
    return kept[::-1]


def _following(tape: Whole, slot: int) -> list[Call]:
    known, kept = {slot}, []
    for call in tape.calls:
        if not known.isdisjoint(call.slots()):
            kept.append(call)
            known.update(slots_in(call.outs))
    return kept


def _together(graph: Graph, calls: Sequence[Call], new: Mapping[int, Tensor]) -> Values:
    """What is read when all nodes have new values."""
    start = {node.slot: new[node.slot] for node in graph.senders}
    return graph.tape.again(calls, start)
