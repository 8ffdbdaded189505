"""Which nodes does a network have, and what does each of them read?"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from modfast import checks, plots
from modfast.circuits.graph import LOGITS, Graph, Nodes, read_graph
from modfast.circuits.network import INPUT, KINDS, NoChainError, read_network
from modfast.circuits.patching import pairs_of
from modfast.network.inputs import Batch, Inputs, one_batch
from modfast.network.interrupts import under
from modfast.network.logits import Output, check_output
from modfast.network.run import running
from modfast.network.whole import Whole, record
from modfast.precision import full_precision
from modfast.results import Result

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Place = tuple[str, int]


@dataclass(frozen=True, eq=False, repr=False)
class NetworkGraph(Result):
    """The nodes of a network and the edges between them; of `network_graph`.

    Example:
        >>> import torch
        >>> one = torch.zeros(1, dtype=torch.int64)
        >>> pairs = (("input", "mlp"), ("input", "logits"), ("mlp", "logits"))
        >>> units = {"input": one, "mlp": torch.tensor([0, 0, 1]), "logits": one}
        >>> reads = {"mlp": "mlp", "logits": "logits"}
        >>> graph = NetworkGraph(pairs, units, reads, {"mlp": "mlp.act"}, {"mlp": "linear, gelu"})
        >>> graph.n_nodes, graph.n_edges
        (4, 5)
    """

    pairs: tuple[tuple[str, str], ...]
    """(sender, receiver): names of nodes, and of what a node reads apart (`"h.0.attn.q"`)."""
    units: Mapping[str, Tensor]
    """By name, the node of each unit there: int64 `[units]`, or `[heads]` of attention."""
    reads: Mapping[str, str]
    """By receiver, the node that reads there."""
    sites: Mapping[str, str]
    """By node, the site that holds its value."""
    between: Mapping[str, str]
    """By receiver, the calls from the sum that it reads to its node."""
    backend: str = ""
    """How it was found: "replay"."""

    @property
    def nodes(self) -> list[Place]:
        """Each node, as a name and its number there; the inputs first, the logits last."""
        names = dict.fromkeys([sender for sender, _ in self.pairs] + list(self.reads.values()))
        order = [name for name in self.units if name in names]
        return [(name, i) for name in order for i in range(self._n(name))]

    @property
    def edges(self) -> list[tuple[Place, Place]]:
        """Each edge: a node, and where a node reads."""
        return [
            ((sender, s), (receiver, r))
            for sender, receiver in self.pairs
            for s in range(self._n(sender))
            for r in range(self._n(receiver))
        ]

    @property
    def n_nodes(self) -> int:
        """How many nodes there are, the inputs and the logits among them."""
        return len(self.nodes)

    @property
    def n_edges(self) -> int:
        """How many edges there are; queries, keys and values are read apart."""
        return sum(self._n(sender) * self._n(receiver) for sender, receiver in self.pairs)

    def plot(self) -> Figure:
        """All edges as lines between nodes, a column for each name."""
        masks = {
            (s, r): torch.ones(self._n(s), self._n(r), dtype=torch.bool, device="cpu")
            for s, r in self.pairs
        }
        return plots.edge_circuit(masks, {name: self._n(name) for name in self.units})

    def _n(self, name: str) -> int:
        return int(self.units[name].max()) + 1


@under(torch.no_grad)
def network_graph(
    model: nn.Module,
    inputs: Inputs,
    nodes: Nodes | None = "layers",
    *,
    output: Output = None,
) -> NetworkGraph:
    """The nodes of a network and the edges between them, read off a run that is recorded.

    Calls of torch are linear (sums, linear layers and convolutions, other places for the same
    values, constant factors), or their output is what other calls can only be linear in. Such an
    output is a node where it is added to what other calls gave: a residual block's, or that of
    attention. So are the inputs (the embedding of tokens) and the logits. A node reads sums of
    nodes, through a norm and whatever else lies between, which is part of it; attention reads for
    queries, keys and values apart, and a key head that several query heads share is one receiver.
    An edge goes from each node to each receiver whose sum it is added to.

    A chain of layers, with nothing to add, has its layers as nodes, as in `attribute_edges`.

    Args:
        model: runs in eval mode and is left as it was.
        inputs: one batch: a tensor, a tuple of arguments or a mapping of keyword arguments.
        nodes: "layers" for whole layers; "heads" for attention by heads; "units" for all else by
            its units as well (channels of `[n, c, h, w]`); or a mapping by node, of lists of units
            (of attention: heads), a `Clusters` of which the rows count, or one of these words, the
            others being whole.
        output: picks the logits out of what the model returns: a function or a key.

    Returns:
        The graph. GPT-2 small by heads has 158 nodes and 32,491 edges.

    Raises:
        TypeError: arguments of a wrong type.
        ValueError: a model that looks at values, so that it may do otherwise next time; one that
            adds nothing up and is no chain; attention whose parts cannot be told (its call is
            named); nodes of an unknown name.

    Source: the graph of Wang et al., "Interpretability in the Wild", 2023, and of Conmy et al.,
        "Towards Automated Circuit Discovery for Mechanistic Interpretability", 2023.

    Example:
        >>> import torch, modfast
        >>> class Residual(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.up, self.down = torch.nn.Linear(4, 8), torch.nn.Linear(8, 4)
        ...     def forward(self, x):
        ...         return x + self.down(torch.relu(self.up(x)))
        >>> graph = modfast.network_graph(Residual(), torch.randn(5, 4))
        >>> graph.pairs
        (('input', 'relu'), ('input', 'logits'), ('relu', 'logits'))
        >>> modfast.network_graph(Residual(), torch.randn(5, 4), nodes="units").n_edges
        44
    """
    checks.python_module("model", model)
    check_output(output)
    batch = one_batch(model, inputs, None, "a graph is read off one run")
    with full_precision(), running(model) as run:
        error: NoChainError | None = None
        if is_plain(batch):
            try:
                groups = nodes if nodes is not None else "units"
                x = batch.args[0]
                return of_chain(read_network(run, model, x, x, groups, output)[0].nodes)
            except NoChainError as found:
                error = found
        tape = record(run, model, batch, output, "inputs")
        return shown(graph_of(tape, model, nodes or "layers", batch, error))


def is_plain(batch: Batch) -> bool:
    """Whether a batch is one floating tensor, as a chain takes."""
    return (
        len(batch.args) == 1
        and not batch.kwargs
        and isinstance(batch.args[0], Tensor)
        and batch.args[0].is_floating_point()
        and batch.args[0].dim() > 1
    )


def graph_of(
    tape: Whole, model: nn.Module, nodes: Nodes, batch: Batch, error: NoChainError | None
) -> Graph:
    """The graph of a recorded run; `error` says why the model is no chain.

    Raises:
        TypeError, ValueError: as `network_graph`.
    """
    if isinstance(nodes, str):
        checks.choice("nodes", nodes, KINDS)
    elif not isinstance(nodes, Mapping):
        raise TypeError(f"nodes must be a mapping by node, or one of {KINDS}, got {nodes!r:.60}")
    try:
        return read_graph(tape, model, nodes, len(batch))
    except ValueError as other:
        if error is not None and "added to that of others" in str(other):
            raise error from None
        raise


def shown(graph: Graph) -> NetworkGraph:
    """A graph as users see it."""
    between = {port.name: ", ".join(call.name for call in port.calls) for port in graph.ports}
    return NetworkGraph(
        tuple(pairs_of(graph)),
        graph.labels(),
        {port.name: port.node.name for port in graph.ports},
        {node.name: node.site for node in graph.nodes if node.name != LOGITS},
        between,
        "replay",
    )


def of_chain(nodes: Mapping[str, Tensor]) -> NetworkGraph:
    """The graph of a chain, whose layers are read one by the next."""
    names = list(nodes)
    pairs = tuple(itertools.pairwise(names))
    cpu = {name: labels.cpu() for name, labels in nodes.items()}
    reads = {name: name for name in names if name != INPUT}
    return NetworkGraph(pairs, cpu, reads, {n: n for n in names}, dict.fromkeys(reads, ""), "chain")
