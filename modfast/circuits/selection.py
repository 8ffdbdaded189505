"""Which edges of a circuit lie on a way from the inputs to the logits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Pair = tuple[str, str]


def pruned(masks: Mapping[Pair, Tensor], nodes: Mapping[str, Tensor]) -> dict[Pair, Tensor]:
    """Masks without the edges that no path of edges ties to both an input and the logits.

    These change nothing: what comes from nowhere is the corrupted run's, and what leads nowhere is
    not read.

    Args:
        masks: by (sender, receiver), in the order of the run: bool `[senders, receivers]`.
        nodes: the node of each unit, by name.
    """
    senders = {sender for sender, _ in masks}
    receivers = list(dict.fromkeys(receiver for _, receiver in masks))
    owners = {name: _owner(name, senders, nodes) for name in receivers}
    reached = {name: torch.zeros(_n(nodes, name), dtype=torch.bool, device="cpu") for name in nodes}
    for name in senders - set(owners.values()):
        reached[name][:] = True
    for receiver in receivers:
        found = torch.zeros(_n(nodes, receiver), dtype=torch.bool, device="cpu")
        for (sender, each), mask in masks.items():
            if each == receiver:
                found |= (mask & reached[sender][:, None]).any(0)
        owner = owners[receiver]
        reached[owner] |= (_shared(nodes[owner], nodes[receiver]) & found[None]).any(1)
    used = {name: torch.zeros_like(each) for name, each in reached.items()}
    used[owners[receivers[-1]]][:] = True
    kept: dict[Pair, Tensor] = {}
    for receiver in reversed(receivers):
        owner = owners[receiver]
        wanted = (_shared(nodes[owner], nodes[receiver]) & used[owner][:, None]).any(0)
        for pair in reversed([pair for pair in masks if pair[1] == receiver]):
            kept[pair] = masks[pair] & reached[pair[0]][:, None] & wanted[None]
            used[pair[0]] |= kept[pair].any(1)
    return {pair: kept[pair] for pair in masks}


def _n(nodes: Mapping[str, Tensor], name: str) -> int:
    return int(nodes[name].max()) + 1


def _owner(receiver: str, senders: set[str], nodes: Mapping[str, Tensor]) -> str:
    """The node that reads at a receiver, which may have a name of its own: `"h.0.attn.q"`."""
    name = receiver.rpartition(".")[0]
    return receiver if receiver in senders or name not in nodes else name


def _shared(node: Tensor, receiver: Tensor) -> Tensor:
    """Which parts of a node read at which receivers, bool: those of the same units."""
    n = int(node.max()) + 1, int(receiver.max()) + 1
    if len(node) % len(receiver) == 0:  # a key's head is several queries'
        receiver = receiver.repeat_interleave(len(node) // len(receiver))
    if len(node) != len(receiver):
        return torch.ones(n, dtype=torch.bool, device="cpu")
    found = torch.zeros(n, dtype=torch.bool, device="cpu")
    found[node, receiver] = True
    return found
