"""Which edges does a behavior need?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modfast import checks
from modfast._renamed import renamed
from modfast.circuits.edges import EdgeCircuit
from modfast.circuits.graph import Nodes
from modfast.circuits.graph_runs import circuit_of_graph
from modfast.circuits.graph_scores import Asked
from modfast.circuits.metric import MetricLike
from modfast.circuits.network import BACKEND, Intervention
from modfast.circuits.opened import ChainRuns, opened
from modfast.circuits.removal import Receiver, Removals, Step, memory_limit
from modfast.network.inputs import Inputs, Targets
from modfast.network.interrupts import under
from modfast.network.logits import Output
from modfast.progress import bar

_FEWEST, _MOST = 4, 256  # edges judged in one batch


@renamed(tau="threshold")
@under(torch.no_grad)
def discover_circuit(
    model: nn.Module,
    clean: Inputs,
    corrupted: Inputs | None,
    threshold: float,
    targets: Targets = None,
    *,
    metric: MetricLike = None,
    nodes: Nodes | None = None,
    intervention: Intervention = "patch",
    output: Output = None,
    max_memory: int | None = None,
    progress: bool = True,
) -> EdgeCircuit:
    """Removes each edge that the metric does not miss, from the logits back to the input (ACDC).

    Receivers are taken from the last layer to the first, and within a layer in order; of each the
    edges of its senders in order. An edge is removed, so that it carries what it carries on the
    corrupted inputs, if the metric of what is left of the network rises by less than
    `threshold`. The network, its nodes and the arguments are those of `attribute_edges`.

    No forward pass is run whole: what comes before a receiver has all its edges still, so it is
    as in the clean run, and only what follows is computed again. Edges are judged in batches, on
    the guess that all of a batch will be removed, or none, as the last one was; from the first edge
    that goes against the guess on the rest is judged again. So decisions are those of one edge
    after the other, but for rounding. In a network that is no chain edges are judged one by one.

    Args:
        model: returns logits `[n, c]`; runs in eval mode and is left as it was.
        clean: inputs as in `attribute_edges`; batches of a stream are all held in memory.
        corrupted: for each the input that removed edges see, of the same shape.
        threshold: the least rise, in nats for "kl" and "loss", that keeps an edge.
        targets: int64 classes `[n]`, for metric="loss".
        metric: "kl", the mean KL(p | q) of the whole network's class probabilities p (the default
            without targets); "loss", the mean cross-entropy (the default with targets); or a
            function as in `attribute_edges`.
        nodes: by layer, or "input": lists of units, a `Clusters`, or "one"; or a word, as in
            `attribute_edges`.
        intervention: what removed edges carry, as in `attribute_edges`.
        output: picks the logits out of what the model returns: a function or a key.
        max_memory: bytes that one batch may take, 64 MiB by default and one run at least;
            besides, all that the edges into one node carry lies in memory.
        progress: show a progress bar, where standard error is a terminal.

    Raises:
        TypeError, ValueError: as `attribute_edges`; a `threshold` that is not finite.

    Source: Conmy et al., "Towards Automated Circuit Discovery for Mechanistic Interpretability",
        2023, algorithm 1.

    Example:
        >>> import torch, modfast
        >>> model = modfast.models.MLP([8, 6, 3])
        >>> clean, corrupted = torch.randn(20, 8), torch.randn(20, 8)
        >>> circuit = modfast.discover_circuit(model, clean, corrupted, threshold=1e-3)
        >>> 0 < circuit.n_edges <= circuit.n_total == 8 * 6 + 6 * 3
        True
    """
    threshold = checks.finite_number("threshold", threshold)
    max_memory = memory_limit(max_memory)
    with opened(model, clean, corrupted, targets, nodes, intervention, metric, output) as found:
        run, chain = found
        if isinstance(chain, ChainRuns):
            masks, cpu = _of_chain(chain, threshold, max_memory, progress), chain.nodes
        else:
            asked = Asked("exact", metric, nodes or "layers", intervention, 1, output, progress)
            masks, cpu = circuit_of_graph(
                run, model, clean, corrupted, threshold, targets, asked, chain
            )
        return EdgeCircuit(masks, cpu, BACKEND, intervention)


def _of_chain(
    chain: ChainRuns, threshold: float, max_memory: int, progress: bool
) -> dict[tuple[str, str], Tensor]:
    network, whole, other, judge = chain.network, chain.whole, chain.other, chain.judge
    value = judge(whole.logits)
    masks: dict[tuple[str, str], Tensor] = {}
    rest: list[Step] = []
    for level in reversed(range(len(network.layers))):
        layer, z = network.layers[level], whole.outputs[level].clone()
        removals = Removals.at(network, level, whole, other, rest, judge, max_memory)
        columns = []
        receivers = range(network.n_nodes(layer.name))
        for receiver in bar(receivers, f"edges into {layer.name}", progress):
            rows = (network.nodes[layer.name] == receiver).nonzero()[:, 0]
            kept, removed, value = _judge(removals.into(rows, z), value, threshold)
            z[:, rows] += removed
            columns.append(kept)
        mask = torch.stack(columns, 1)
        masks[network.pairs[level]] = mask.cpu()
        rest = [Step.masked(network, level, mask, other), *rest]
    return {pair: masks[pair] for pair in network.pairs}


def _judge(into: Receiver, value: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Which senders' edges stay, bool `[s]`; what the others' removal adds; the metric then."""
    changes = into.changes
    removed = torch.zeros_like(changes[0])
    kept = torch.ones(len(changes), dtype=torch.bool, device=changes.device)
    begin, size, guess = 0, _FEWEST, True
    while begin < len(changes):
        block = changes[begin : begin + size]
        tried = removed + (block.cumsum(0) if guess else block)
        values = into.values(tried)
        before = torch.cat([value[None], values[:-1]]) if guess else value
        dropped = values - before < threshold
        against = (dropped != guess).nonzero()
        n = int(against[0]) + 1 if len(against) else len(block)
        kept[begin : begin + n] = ~dropped[:n]
        last = dropped[:n].nonzero()
        if len(last):
            removed, value = tried[int(last[-1])], values[int(last[-1])]
        begin += n
        size = max(_FEWEST, size // 2) if len(against) else min(2 * size, _MOST)
        guess = bool(dropped[n - 1])
    return kept, removed, value
