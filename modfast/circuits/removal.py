"""What removing edges does, for many removals at a time.

Removing an edge from s to r puts what s carries in the corrupted run in place of what it carries
now. As layers are linear up to the pre-activations, this adds weight[r, s] * (corrupted h_s - h_s)
to the pre-activation of r, and only what follows r must run again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modfast import checks
from modfast.circuits.metric import Metric
from modfast.circuits.network import Intervention, Layer, Network, Pass

MAX_MEMORY = 2**26


def memory_limit(max_memory: int | None) -> int:
    """The bytes that one batch may take, 64 MiB by default."""
    return MAX_MEMORY if max_memory is None else checks.count("max_memory", max_memory)


def intervened(network: Network, other: Pass, intervention: Intervention) -> Pass:
    """What removed edges carry: of the corrupted run, nothing, or means of it."""
    if intervention == "patch":
        return other
    inputs, outputs = [], []
    for layer, h in zip(network.layers, other.inputs, strict=True):
        dims = [0, *(range(2, h.dim()) if intervention == "mean" else [])]
        mean = torch.zeros_like(h) if intervention == "zero" else h.mean(dims, keepdim=True)
        inputs.append(mean.expand_as(h))
        outputs.append(layer.linear(inputs[-1], layer.weight) + layer.constant)
    logits = network.layers[-1].after(outputs[-1].clone())
    return Pass(inputs, outputs, logits)


@dataclass(frozen=True)
class Step:
    """A layer as it runs in a circuit: linear(h, weight) + constant."""

    layer: Layer
    weight: Tensor
    constant: Tensor

    @classmethod
    def whole(cls, layer: Layer) -> Step:
        """With all edges."""
        return cls(layer, layer.weight, layer.constant)

    @classmethod
    def masked(cls, network: Network, level: int, mask: Tensor, corrupted: Pass) -> Step:
        """With the edges of a mask [senders, receivers]; the others carry the corrupted run."""
        layer = network.layers[level]
        weight = network.masked_weight(level, mask)
        kept = layer.linear(corrupted.inputs[level], weight)
        return cls(layer, weight, corrupted.outputs[level] - kept)

    def __call__(self, h: Tensor) -> Tensor:
        """Pre-activations `[b, n, ...]` of inputs `[b, n, ...]`."""
        z: Tensor = self.layer.linear(h.flatten(0, 1), self.weight).unflatten(0, h.shape[:2])
        return z + self.constant


def follow(layer: Layer, z: Tensor, rest: Sequence[Step]) -> Tensor:
    """Logits `[b, n, c]` of a layer's pre-activations `[b, n, ...]`, which may be overwritten."""
    b = z.shape[:2]
    h: Tensor = layer.after(z.flatten(0, 1)).unflatten(0, b)
    for step in rest:
        h = step.layer.after(step(h).flatten(0, 1)).unflatten(0, b)
    return h


@dataclass(frozen=True)
class Removals:
    """Removals of edges into one layer."""

    layer: Layer
    columns: Tensor
    """The sender node of each of the weight's columns."""
    change: Tensor
    """Corrupted input minus the input there is: `[n, m, ...]`."""
    rest: list[Step]
    metric: Metric
    most: int
    """How many removals run in one batch."""

    @classmethod
    def at(
        cls,
        network: Network,
        level: int,
        whole: Pass,
        other: Pass,
        rest: list[Step],
        metric: Metric,
        max_memory: int,
    ) -> Removals:
        """Into the layer `level`, before which all is as in the whole pass."""
        # Pre-activations, what becomes of them, and as much again for the next layer.
        size = 4 * max(z.numel() * z.element_size() for z in whole.outputs[level:])
        return cls(
            network.layers[level],
            network.columns(level),
            other.inputs[level] - whole.inputs[level],
            rest,
            metric,
            max(1, max_memory // size),
        )

    def into(self, rows: Tensor, z: Tensor) -> Receiver:
        """Into the units `rows` of the layer, whose pre-activations are `z` `[n, ...]`."""
        weight = self.layer.weight[rows]
        n_senders = int(self.columns.max()) + 1
        linear = self.layer.linear
        if self.layer.weight.dim() == 2:
            each = self.change.T[:, :, None] * weight.T[:, None, :]
            changes = each.new_zeros(n_senders, *each.shape[1:]).index_add_(0, self.columns, each)
        else:
            chosen = [(self.columns == sender).nonzero()[:, 0] for sender in range(n_senders)]
            changes = torch.stack([linear(self.change[:, c], weight[:, c]) for c in chosen])
        return Receiver(self, rows, z, changes)


class Receiver:
    """Removals of edges into some units of a layer, which are one node.

    `changes` `[s, n, rows, ...]` is what removing the edges of each sender adds to the units.
    """

    def __init__(self, removals: Removals, rows: Tensor, z: Tensor, changes: Tensor) -> None:
        self.removals, self.rows, self.z, self.changes = removals, rows, z, changes
        if removals.rest:
            # Of the next layer only what these units bring to it runs again.
            step = removals.rest[0]
            h = removals.layer.after(z.clone())
            self.columns = torch.isin(step.layer.senders, rows).nonzero()[:, 0]
            self.weight = step.weight[:, self.columns]
            self.brought = h[:, self.columns]
            self.next_z = step(h[None])

    def values(self, changes: Tensor) -> Tensor:
        """The metric for each of several changes `[b, n, rows, ...]` of the units: `[b]`."""
        found = [self._values(part) for part in changes.split(self.removals.most)]
        return torch.cat(found)

    def _values(self, changes: Tensor) -> Tensor:
        layer, rest = self.removals.layer, self.removals.rest
        z = self.z.expand(len(changes), *self.z.shape).clone()
        z[:, :, self.rows] += changes
        if rest:
            h = layer.after(z.flatten(0, 1)).unflatten(0, z.shape[:2])
            moved = h[:, :, self.columns] - self.brought
            layer, rest = rest[0].layer, rest[1:]
            z = layer.linear(moved.flatten(0, 1), self.weight).unflatten(0, z.shape[:2])
            z = z + self.next_z
        return self.removals.metric(follow(layer, z, rest))
