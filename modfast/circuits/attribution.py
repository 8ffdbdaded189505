"""How much does each edge between two units count?"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from modfast import checks
from modfast.circuits.edges import EdgeScores
from modfast.circuits.graph import Nodes
from modfast.circuits.graph_scores import Asked, scores_of_graph
from modfast.circuits.metric import NO_GRADIENT, Metric, MetricLike
from modfast.circuits.network import BACKEND, Intervention, Network, Pass
from modfast.circuits.opened import ChainRuns, opened
from modfast.circuits.removal import Removals, Step, memory_limit
from modfast.network.inputs import Inputs, Targets
from modfast.network.interrupts import under
from modfast.network.logits import Output
from modfast.progress import bar

Method = Literal["eap", "eap-ig", "exact"]


@under(torch.no_grad)
def attribute_edges(
    model: nn.Module,
    clean: Inputs,
    corrupted: Inputs | None,
    targets: Targets = None,
    *,
    method: Method = "eap",
    metric: MetricLike = None,
    nodes: Nodes | None = None,
    intervention: Intervention = "patch",
    steps: int = 5,
    output: Output = None,
    max_memory: int | None = None,
    progress: bool = True,
) -> EdgeScores:
    """How far the metric rises when one edge carries what it carries on corrupted inputs.

    A chain of Linear and convolution layers, with activations, pooling, batch norm and flatten
    between them, has as nodes the features of the input (the pixels, or before a convolution the
    channels), and the units or channels of each layer; edges join nodes of layers that follow each
    other. Edge s -> r adds weight[r, s] h_s to the pre-activation z_r. Any other network has the
    nodes and edges of `network_graph`: a residual network's blocks, attention's heads, the input
    and the logits; edge s -> r carries what s adds to the sum that r reads. It is read from a run
    that is recorded, which must give the model's logits on both inputs, and what nodes carry must
    add up to all that is read; autocast has no say. The score of an edge in a chain:

        "exact"   metric with weight[r, s] h'_s in its place, minus the metric of the clean run
        "eap"     d metric / d z_r at the clean run, times weight[r, s] (h'_s - h_s)
        "eap-ig"  the same with the mean gradient over `steps` runs, on the inputs
                  corrupted + (i / steps) (clean - corrupted), i = 1, ..., steps

    with h' the activations of the corrupted run. Elsewhere it is the same: for weight[r, s] stands
    what lies between s and the sum that r reads, for z_r that sum as r alone reads it. Scores of
    nodes that hold several units are those
    of all their edges at once, for "eap" their sum. "eap" takes one backward pass for all edges and
    is exact for a linear network and metric; "exact" runs what follows the edge for each, many in
    one batch.

    How closely gradients follow "exact" depends on the metric. On MNIST, for an MLP and a CNN
    (means over three seeds; `python bench/edge_scores.py`), "eap" correlates with it at .999 and
    .976 if the metric is the difference between the logits of the clean and of the corrupted
    input's class, and at .970 and .541 if it is the loss, whose gradient is next to nothing where
    the network is sure of itself; "eap-ig" at .996 and .999, and at .338 and .842.

    Args:
        model: returns logits `[n, c]`; runs in eval mode and is left as it was.
        clean: of a chain inputs `[n, ...]` on the model's device and of its dtype. Else tokens, a
            tuple or mapping of arguments, or a stream of batches; positions that the attention mask
            leaves out do not count for "loss" and "kl".
        corrupted: for each the input that it is compared with, of the same shape; None is allowed
            where `intervention` is not "patch".
        targets: int64 classes `[n]`, for metric="loss"; of logits `[n, t, c]` for each position.
        method: "eap", "eap-ig" or "exact".
        metric: "loss", the mean cross-entropy (the default with targets); "kl", the mean KL(p | q)
            of the class probabilities p of the clean run (the default without), whose gradient at
            the clean run is zero, so that it is not for "eap"; or a function
            `(logits, batch) -> [n]`, such as `modfast.metrics.logit_difference(a, b)`, whose mean
            is taken; one of logits alone, or that gives one number, does as well.
        nodes: by layer, or "input", what its nodes are: lists of units, a `Clusters` of which the
            rows count, or "one" for all in one node. Units in no list are nodes of their own.
            Or "layers", "heads" or "units", as in `network_graph`; by default units in a chain and
            layers elsewhere.
        intervention: what an edge carries instead: "patch", what it does in the corrupted run;
            "zero", nothing; "mean", its sender's mean over samples and positions of the corrupted
            inputs (without such, of the clean ones); "positional-mean", over samples alone.
        steps: of "eap-ig".
        output: picks the logits out of what the model returns: a function or a key.
        max_memory: bytes that one batch of "exact" may take in a chain, 64 MiB by default and one
            run at least; besides, all that the edges into one node carry lies in memory. Elsewhere
            edges run one by one, and what each node adds to each sum lies in memory.
        progress: show a progress bar for "exact", where standard error is a terminal.

    Raises:
        TypeError: arguments of a wrong type.
        ValueError: a model without such a graph, or whose nodes do not add up; inputs that differ
            in shape, dtype or device or do not fit the model, are empty or not finite, logits or a
            metric that are not; targets out of range; nodes that overlap or are of an unknown layer
            (the nearest are listed); metric="kl" with "eap"; no corrupted inputs to patch from.

    Source: Nanda, "Attribution Patching", 2023; Syed, Rager and Conmy, "Attribution Patching
        Outperforms Automated Circuit Discovery", 2023; Hanna, Pezzelle and Belinkov, "Have Faith in
        Faithfulness", 2024.

    Example:
        >>> import torch, modfast
        >>> model = modfast.models.MLP([8, 6, 3])
        >>> clean, corrupted, y = torch.randn(20, 8), torch.randn(20, 8), torch.arange(20) % 3
        >>> scores = modfast.attribute_edges(model, clean, corrupted, y)
        >>> {pair: tuple(each.shape) for pair, each in scores.scores.items()}
        {('input', 'fc1'): (8, 6), ('fc1', 'fc2'): (6, 3)}
    """
    checks.choice("method", method, get_args(Method))
    steps, max_memory = checks.count("steps", steps), memory_limit(max_memory)
    with opened(model, clean, corrupted, targets, nodes, intervention, metric, output) as found:
        run, chain = found
        if isinstance(chain, ChainRuns):
            return _of_chain(chain, method, intervention, steps, max_memory, progress)
        asked = Asked(method, metric, nodes or "layers", intervention, steps, output, progress)
        scores, labels, value = scores_of_graph(run, model, clean, corrupted, targets, asked, chain)
        return EdgeScores(scores, labels, method, value, BACKEND, intervention)


def _of_chain(
    chain: ChainRuns,
    method: Method,
    intervention: Intervention,
    steps: int,
    max_memory: int,
    progress: bool,
) -> EdgeScores:
    network, whole, judge = chain.network, chain.whole, chain.judge
    if method == "eap" and judge.kind == "kl":
        raise ValueError(NO_GRADIENT)
    if method == "exact":
        found = _exact(network, whole, chain.other, judge, max_memory, progress)
    else:
        at = [1.0] if method == "eap" else [i / steps for i in range(1, steps + 1)]
        # Exact at 1, however far apart the two are.
        points = [torch.lerp(chain.inputs[1], chain.inputs[0], share) for share in at]
        found = _gradient(network, whole, chain.other, judge, points)
    value = float(judge(whole.logits))
    scores = dict(zip(network.pairs, (each.cpu() for each in found), strict=True))
    return EdgeScores(scores, chain.nodes, method, value, BACKEND, intervention)


def _gradient(
    network: Network, whole: Pass, other: Pass, metric: Metric, points: list[Tensor]
) -> list[Tensor]:
    totals = [torch.zeros_like(z) for z in whole.outputs]
    for x in points:
        for total, gradient in zip(totals, _gradients(network, x, metric), strict=True):
            total += gradient / len(points)
    found = []
    for level, layer in enumerate(network.layers):
        change = other.inputs[level] - whole.inputs[level]
        weight = layer.weight.detach().requires_grad_()
        with torch.enable_grad():
            moved = layer.linear(change, weight)
        # Of gradient · linear(change, weight), each weight's part is itself times its derivative.
        (slope,) = torch.autograd.grad(moved, weight, totals[level])
        parts = (slope * weight.detach()).double().reshape(*weight.shape[:2], -1).sum(2)
        found.append(_to_nodes(network, level, parts))
    return found


def _gradients(network: Network, x: Tensor, metric: Metric) -> tuple[Tensor, ...]:
    """The metric's gradient for each layer's pre-activations."""
    outputs: list[Tensor] = []
    with torch.enable_grad():
        h = network.before(x)
        for layer in network.layers:
            z = layer.linear(h, layer.weight) + layer.constant
            outputs.append(z if outputs else z.requires_grad_())
            # A copy, since what follows may work in place.
            h = layer.after(outputs[-1].clone())
        value = metric(h)
        if not value.requires_grad:
            raise ValueError("metric must be differentiable with method='eap' or 'eap-ig'")
        return torch.autograd.grad(value, outputs)


def _to_nodes(network: Network, level: int, parts: Tensor) -> Tensor:
    """`[units, columns]` of a weight, added up to `[senders, receivers]`."""
    sender, receiver = network.pairs[level]
    by_sender = parts.new_zeros(network.n_nodes(sender), len(parts))
    by_sender.index_add_(0, network.columns(level), parts.T)
    found = parts.new_zeros(network.n_nodes(sender), network.n_nodes(receiver))
    return found.index_add_(1, network.nodes[receiver], by_sender)


def _exact(
    network: Network, whole: Pass, other: Pass, metric: Metric, max_memory: int, progress: bool
) -> list[Tensor]:
    base = metric(whole.logits)
    found = []
    for level, layer in enumerate(network.layers):
        labels = network.nodes[layer.name]
        rest = [Step.whole(each) for each in network.layers[level + 1 :]]
        removals = Removals.at(network, level, whole, other, rest, metric, max_memory)
        columns = []
        receivers = range(network.n_nodes(layer.name))
        for receiver in bar(receivers, f"edges into {layer.name}", progress):
            rows = (labels == receiver).nonzero()[:, 0]
            into = removals.into(rows, whole.outputs[level])
            columns.append(into.values(into.changes) - base)
        found.append(torch.stack(columns, 1))
    return found
