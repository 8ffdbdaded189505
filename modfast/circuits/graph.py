"""The nodes and edges of a network, read off a run that was recorded whole.

What a call that is not linear returns is an atom, and a node where it is added to what others
gave. A node reads the sums (or single nodes) that come before it; edges are from the nodes that
are added up there. Attention reads queries, keys and values apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from modfast.circuits.attention import SPLIT, attention_of, producers, separate
from modfast.circuits.linear import is_linear, is_sum, same_parts
from modfast.circuits.network import Groups, group_labels
from modfast.network.calls import Call, slots_in
from modfast.network.names import nearest, unwrapped
from modfast.network.whole import Whole

Nodes: TypeAlias = Literal["layers", "heads", "units"] | Mapping[str, Groups]

LOGITS = "logits"


@dataclass
class Node:
    """Something whose output is added to that of others, or the logits."""

    name: str
    site: str
    slot: int
    call: Call | None
    """What returned it; None for an input, and for the logits."""
    dim: int
    """Of its value, where its parts lie."""
    labels: Tensor
    """To which part each unit along that dimension belongs; in turn where there are more."""
    ports: list[Port] = field(default_factory=list)
    inner: list[Call] = field(default_factory=list)
    """Of attention: the calls from queries, keys and values to its output."""

    @property
    def n(self) -> int:
        """How many parts it has."""
        return int(self.labels.max()) + 1


@dataclass
class Port:
    """A place where a node reads what others gave."""

    name: str
    node: Node
    source: int
    """The slot that it reads."""
    target: int
    """The slot that it makes of that: the node's own, or queries, keys or values."""
    calls: list[Call]
    """From one to the other."""
    dim: int
    labels: Tensor
    """Of the target: its parts are receivers."""
    senders: list[Node] = field(default_factory=list)

    @property
    def n(self) -> int:
        """How many receivers it has."""
        return int(self.labels.max()) + 1


@dataclass
class Graph:
    """Nodes in the order of the run, the inputs first and the logits last."""

    tape: Whole
    nodes: list[Node]
    linear: list[Call]

    @property
    def ports(self) -> list[Port]:
        """Of all nodes."""
        return [port for node in self.nodes for port in node.ports]

    @property
    def senders(self) -> list[Node]:
        """All but the logits."""
        return self.nodes[:-1]

    def labels(self) -> dict[str, Tensor]:
        """The part of each unit, by what edges join: nodes, and the ports that are named apart."""
        found = {node.name: node.labels for node in self.nodes}
        return found | {port.name: port.labels for port in self.ports}


def part_of(value: Tensor, dim: int, labels: Tensor, part: int) -> Tensor:
    """Where a value's part lies along a dimension, bool and broadcast to the value."""
    n = value.shape[dim]
    mask = (labels == part).to(value.device).repeat(n // len(labels))
    shape = [1] * value.dim()
    shape[dim] = n
    return mask.view(shape)


def read_graph(tape: Whole, model: nn.Module, nodes: Nodes, n_samples: int) -> Graph:
    """The graph of a run.

    Raises:
        ValueError: nothing is added to anything; attention whose heads, queries or keys cannot be
            told; nodes of an unknown name.
    """
    return _Reader(tape, model, nodes, n_samples).read()


class _Reader:
    def __init__(self, tape: Whole, model: nn.Module, nodes: Nodes, n_samples: int) -> None:
        self.tape, self.nodes, self.n_samples = tape, nodes, n_samples
        self.modules = dict(unwrapped(model).named_modules(remove_duplicate=False))
        self.by_out = producers(tape)
        for call in list(tape.calls):
            if separate(tape, self.by_out, call):
                self.by_out = producers(tape)
        self.order = {call: i for i, call in enumerate(tape.calls)}
        self.linear = [call for call in tape.calls if is_linear(call, tape.values)]
        self.atoms = self._atoms()

    def read(self) -> Graph:
        tape = self.tape
        found = [self._node(slot) for slot in sorted(self.added, key=self._when)]
        names = self._names(found)
        for node, name in zip(found, names, strict=True):
            node.name = name
        self._partition(found)
        end = torch.zeros(1, dtype=torch.int64, device="cpu")
        logits = Node(LOGITS, LOGITS, tape.out_slot, None, 0, end)
        for node in (*found, logits):
            self._read(node)
            for port in node.ports:
                atoms = self.atoms[port.source]
                port.senders = [each for each in found if each.slot in atoms]
        kept = [logits]  # what nobody reads is no part of it
        for node in reversed(found):
            if any(sender is node for each in kept for p in each.ports for sender in p.senders):
                kept.insert(0, node)
        if not any(node.call is not None for node in kept[:-1]):
            raise ValueError(
                "model must have calls whose output is added to that of others, as in a residual "
                f"network, got none among {len(tape.calls)} calls"
            )
        return Graph(tape, kept, self.linear)

    def _when(self, slot: int) -> tuple[int, int]:
        call = self.by_out.get(slot)
        return (-1 if call is None else self.order[call]), slot

    def _atoms(self) -> dict[int, frozenset[int]]:
        """By slot, of which atoms it is a linear function; and which are added to others."""
        roots = self.tape.roots
        found = {slot: frozenset([slot]) for slot in roots}
        linear = set(self.linear)
        self.added = set(roots)
        for call in self.tape.calls:
            outs = slots_in(call.outs)
            if call not in linear:
                found |= {slot: frozenset([slot]) for slot in outs}
                continue
            sets = [found[slot] for slot in call.slots()]
            union = frozenset().union(*sets)
            found |= dict.fromkeys(outs, union)
            if is_sum(call) and len(set(sets)) > 1 and not self._inside(call, union):
                self.added |= union
        return found

    def _inside(self, call: Call, atoms: frozenset[int]) -> bool:
        """Whether a sum is a part of one function written out, as a GELU is."""
        name = self.tape.places[call][0]
        module = self.modules.get(name)
        if module is None or next(module.children(), None) is not None:
            return False
        if any(parameter.dim() > 1 for parameter in module.parameters()):
            return False
        here = name, self.tape.rounds[call]
        made = [self.by_out[slot] for slot in atoms if slot in self.by_out]
        return any((self.tape.places[x][0], self.tape.rounds[x]) == here for x in made)

    # ------------------------------------------------------------------------------------ nodes

    def _node(self, slot: int) -> Node:
        one = torch.zeros(1, dtype=torch.int64, device="cpu")
        call = self.by_out.get(slot)
        if call is None:
            return Node("", self.tape.roots[slot], slot, None, 0, one)
        return Node("", self._site(call), slot, call, 0, one)

    def _site(self, call: Call) -> str:
        module, function, n = self.tape.places[call]
        inside = self.modules.get(module)
        calls = [x for x, place in self.tape.places.items() if place[0] == module]
        of_last = self.tape.rounds[call]
        alone = inside is not None and next(inside.children(), None) is None
        if alone and call is [x for x in calls if self.tape.rounds[x] == of_last][-1]:
            times = self.tape.running.n_calls.get(module, 1)
            return module if times == 1 else f"{module}#{of_last}"
        return f"{module}/{function}#{n}"

    def _names(self, nodes: Sequence[Node]) -> list[str]:
        """A node's module (the model's own function) where that is its alone, and else its site."""
        short = []
        for node in nodes:
            module, _, function = node.site.partition("/")
            short.append(module or function.partition("#")[0])
        return [
            name if short.count(name) == 1 and name != LOGITS else node.site
            for name, node in zip(short, nodes, strict=True)
        ]

    def _partition(self, nodes: Sequence[Node]) -> None:
        wanted = self.nodes
        if not isinstance(wanted, str):
            known = [node.name for node in nodes]
            for name in wanted:
                if name not in known:
                    raise ValueError(f"nodes={name!r}: no such node; {nearest(str(name), known)}")
        for node in nodes:
            each: Any = wanted if isinstance(wanted, str) else wanted.get(node.name, "layers")
            attends = (
                node.call is not None
                and attention_of(self.tape, self.by_out, node.call) is not None
            )
            value = self.tape.values[node.slot]
            if attends:
                node.dim, n = self._heads(node)
            else:
                node.dim = 1 if value.dim() == 4 else value.dim() - 1
                n = value.shape[node.dim]
            if isinstance(each, Tensor):  # of an earlier graph
                node.labels = each
            elif each in ("layers", "one") or (each == "heads" and not attends):
                node.labels = torch.zeros(n, dtype=torch.int64, device="cpu")
            elif each in ("heads", "units"):
                node.labels = torch.arange(n, device="cpu")
            else:
                node.labels = group_labels(node.name, each, n)
            if (
                attends and n == 1 and node.call is not None and node.call.name not in SPLIT
            ) and each != "layers":
                raise ValueError(
                    f"nodes must be 'layers': the heads in {node.call.name!r} of "
                    f"{node.site!r} cannot be told apart, got {each!r:.60}"
                )

    def _heads(self, node: Node) -> tuple[int, int]:
        """The dimension of attention's output that holds heads, and how many there are."""
        value = self.tape.values[node.slot]
        call = node.call
        assert call is not None
        if call.name in SPLIT:
            if value.dim() == 4:
                return 1, value.shape[1]
            if value.dim() == 3 and value.shape[0] % self.n_samples == 0:
                return 0, value.shape[0] // self.n_samples  # heads and samples in one
        return value.dim() - 1, 1

    # ------------------------------------------------------------------------------------ ports

    def _read(self, node: Node) -> None:
        if node.call is None and node.name != LOGITS:
            return
        parts = None if node.call is None else attention_of(self.tape, self.by_out, node.call)
        if parts is not None and node.call is not None:
            node.inner = parts.calls
            for letter, slot in zip("qkv", parts.slots, strict=True):
                heads = max(0, self.tape.values[slot].dim() - 3)
                self._add_port(node, letter, slot, heads if node.call.name in SPLIT else None)
            return
        wanted = [node.slot] if node.call is None else node.call.slots()
        calls, sources = self._back(wanted)
        own = [] if node.call is None else [node.call]
        for i, source in enumerate(sources):
            name = node.name if i == 0 else f"{node.name}.{i}"
            port = Port(name, node, source, node.slot, [*calls, *own], node.dim, node.labels)
            node.ports.append(port)

    def _add_port(self, node: Node, letter: str, slot: int, dim: int | None) -> None:
        calls, sources = self._back([slot])
        if len(sources) != 1:
            assert node.call is not None
            raise ValueError(
                f"model must read one sum for each of queries, keys and values, got "
                f"{len(sources)} for {letter!r} of {node.call.name!r} in {node.site!r}"
            )
        value = self.tape.values[slot]
        if dim is None or node.n == 1:
            at, labels = (
                value.dim() - 1,
                torch.zeros(value.shape[-1], dtype=torch.int64, device="cpu"),
            )
        else:
            n = value.shape[dim] // (self.n_samples if dim == 0 else 1)
            at, labels = dim, self._labels(node, calls, slot, dim, n)
        name = f"{node.name}.{letter}"
        node.ports.append(Port(name, node, sources[0], slot, calls, at, labels))

    def _labels(self, node: Node, calls: Sequence[Call], slot: int, dim: int, n: int) -> Tensor:
        """The receiver of each head: heads that are copies are one, as are those of one node."""
        copies = same_parts(self.tape, calls, slot, dim, n)
        groups = node.labels
        if n != len(groups):  # fewer keys than queries, which attention itself repeats
            groups = groups[:: len(groups) // n]
        seen: dict[int, int] = {}
        # Joined where either says so.
        joined = copies.clone()
        for _ in range(n):
            for rule in (copies, groups):
                for each in rule.unique():
                    joined[rule == each] = joined[rule == each].min()
        return torch.tensor([seen.setdefault(int(x), len(seen)) for x in joined], device="cpu")

    def _back(self, slots: Sequence[int]) -> tuple[list[Call], list[int]]:
        """The calls that lead to some slots from what nodes gave, and the slots these start at."""
        need, calls, sources = list(slots), set(), set()
        while need:
            slot = need.pop()
            if self._is_source(slot):
                sources.add(slot)
                continue
            call = self.by_out.get(slot)
            if call is not None and call not in calls:
                calls.add(call)
                need += call.slots()
        return sorted(calls, key=self.order.__getitem__), sorted(sources, key=self._when)

    def _is_source(self, slot: int) -> bool:
        """Whether a slot is a node's, or a sum of nodes' alone."""
        if slot in self.added:
            return True
        call = self.by_out.get(slot)
        return call is not None and self.atoms[slot] <= self.added and len(set(call.slots())) > 1
