"""Scores of edges, and circuits made of some of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from modfast import checks, plots
from modfast.circuits import evaluation
from modfast.circuits.graph import LOGITS
from modfast.circuits.network import BACKEND, Intervention
from modfast.circuits.selection import pruned
from modfast.network.inputs import Inputs, Targets
from modfast.network.interrupts import under
from modfast.network.logits import Output
from modfast.results import Result

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Pair = tuple[str, str]


class Edge(NamedTuple):
    """An edge between two nodes, each a layer and the node's number there; and its score."""

    sender: tuple[str, int]
    receiver: tuple[str, int]
    score: float


@dataclass(frozen=True, eq=False, repr=False)
class EdgeScores(Result):
    """How far the metric rises when one edge is corrupted, for all edges; of `attribute_edges`.

    Example:
        >>> import torch
        >>> nodes = {"input": torch.arange(1), "fc": torch.arange(2)}
        >>> scores = EdgeScores({("input", "fc"): torch.tensor([[0.5, -2.0]])}, nodes, "eap", 0.0)
        >>> scores.top(1)
        [Edge(sender=('input', 0), receiver=('fc', 1), score=-2.0)]
    """

    scores: Mapping[Pair, Tensor]
    """By (layer, next layer): float64 `[senders, receivers]`, on the CPU."""
    nodes: Mapping[str, Tensor]
    """The node of each unit of the input and of each layer: int64 `[units]`."""
    method: str
    """One of "eap", "eap-ig" and "exact"."""
    value: float
    """The metric of the clean run."""
    backend: str = ""
    """Which way it was computed."""
    intervention: str = "patch"
    """What a removed edge carries: as for `attribute_edges`."""

    def top(self, k: int = 10) -> list[Edge]:
        """The k edges of the largest score by absolute value, largest first.

        Raises:
            TypeError, ValueError: `k` is no integer from 1 to the number of edges.
        """
        flat, places = self._flat()
        found = []
        for place in self._largest("k", k).tolist():
            (sender, receiver), s, r = places(place)
            found.append(Edge((sender, s), (receiver, r), float(flat[place])))
        return found

    def circuit(self, n_edges: int, *, signed: bool = False, prune: bool = True) -> EdgeCircuit:
        """The circuit of the `n_edges` edges of the largest score.

        Args:
            n_edges: how many.
            signed: take the largest scores, and not the largest by absolute value.
            prune: leave out edges that no path ties to both an input and the logits, which change
                nothing; the circuit may then have fewer.

        Raises:
            TypeError, ValueError: `n_edges` is no integer from 1 to the number of edges.

        Source: Syed, Rager and Conmy, 2023; Hanna, Pezzelle and Belinkov, 2024.
        """
        flat, _ = self._flat()
        kept = torch.zeros(len(flat), dtype=torch.bool, device="cpu")
        kept[self._largest("n_edges", n_edges, checks.flag("signed", signed))] = True
        parts = kept.split([each.numel() for each in self.scores.values()])
        masks = {
            pair: part.view_as(self.scores[pair])
            for pair, part in zip(self.scores, parts, strict=True)
        }
        if checks.flag("prune", prune):
            masks = pruned(masks, self.nodes)
        return EdgeCircuit(masks, self.nodes, self.backend, self.intervention)

    def plot(self) -> Figure:
        """A heat map for each pair of layers."""
        return plots.edge_scores(self.scores, self.method)

    def _flat(self) -> tuple[Tensor, Any]:
        sizes = [each.numel() for each in self.scores.values()]

        def place(i: int) -> tuple[Pair, int, int]:
            for pair, size in zip(self.scores, sizes, strict=True):
                if i < size:
                    return (pair, *divmod(i, self.scores[pair].shape[1]))
                i -= size
            raise AssertionError

        return torch.cat([each.flatten() for each in self.scores.values()]), place

    def _largest(self, argument: str, k: int, signed: bool = False) -> Tensor:
        flat, _ = self._flat()
        if checks.count(argument, k) > len(flat):
            raise ValueError(f"{argument} must be at most {len(flat)}, the edges, got {k}")
        values = flat if signed else flat.abs()
        return values.sort(descending=True, stable=True).indices[:k]


@dataclass(frozen=True, eq=False, repr=False)
class CircuitEvaluation(Result):
    """What a circuit alone can do, the other edges carrying corrupted activations; in nats.

    Example:
        >>> CircuitEvaluation(kl=0.1, corrupted_kl=0.4).faithfulness
        0.75
    """

    kl: float
    """The mean over samples of KL(p | q), p of the whole network and q of the circuit."""
    corrupted_kl: float
    """The same for no edges at all, which is the corrupted run."""
    loss: float | None = None
    """The mean cross-entropy of the circuit, with targets."""
    accuracy: float | None = None
    """Of the circuit, with targets."""
    whole_loss: float | None = None
    """Of the whole network, with targets."""
    whole_accuracy: float | None = None
    """Of the whole network, with targets."""
    backend: str = ""
    """Which way it was computed."""

    @property
    def faithfulness(self) -> float:
        """1 - kl / corrupted_kl: 1 for the whole network, 0 for no edges at all."""
        return 1 - self.kl / self.corrupted_kl if self.corrupted_kl else float(self.kl == 0)


@dataclass(frozen=True, eq=False, repr=False)
class EdgeCircuit(Result):
    """Some edges of a network; of `discover_circuit` or `EdgeScores.circuit`.

    Raises:
        TypeError: masks that are no bool tensors, nodes that are no int64 vectors.
        ValueError: masks of other pairs of layers, or of another size, than the nodes say.

    Example:
        >>> import torch
        >>> nodes = {"input": torch.arange(1), "fc": torch.arange(2)}
        >>> circuit = EdgeCircuit({("input", "fc"): torch.tensor([[True, False]])}, nodes)
        >>> circuit.n_edges, circuit.n_total
        (1, 2)
    """

    masks: Mapping[Pair, Tensor]
    """By (layer, next layer): bool `[senders, receivers]`, on the CPU."""
    nodes: Mapping[str, Tensor]
    """The node of each unit of the input and of each layer: int64 `[units]`."""
    backend: str = ""
    """Which way it was computed."""
    intervention: str = "patch"
    """What edges that are not in it carry: as for `attribute_edges`."""

    def __post_init__(self) -> None:
        for name, labels in self.nodes.items():
            if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.dim() != 1:
                raise TypeError(f"nodes[{name!r}] must be int64 [units], got {labels!r}")
        checks.choice("intervention", self.intervention, get_args(Intervention))
        pairs = list(pairwise(self.nodes))
        if not self.is_graph and list(self.masks) != pairs:
            raise ValueError(f"masks must be of {pairs}, got {list(self.masks)}")
        for pair, mask in self.masks.items():
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
                found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
                raise TypeError(f"masks[{pair}] must be a bool tensor, got {found}")
            shape = tuple(int(self.nodes[name].max()) + 1 for name in pair)
            if mask.shape != shape:
                raise ValueError(f"masks[{pair}] must be {shape}, got {tuple(mask.shape)}")

    @property
    def is_graph(self) -> bool:
        """Whether it is of a network that is no chain, whose last node are the logits."""
        known = all(name in self.nodes for pair in self.masks for name in pair)
        return known and bool(self.masks) and list(self.masks)[-1][1] == LOGITS

    @property
    def n_edges(self) -> int:
        """How many edges the circuit has."""
        return sum(int(mask.sum()) for mask in self.masks.values())

    @property
    def n_total(self) -> int:
        """How many the network has."""
        return sum(mask.numel() for mask in self.masks.values())

    @under(torch.no_grad)
    def logits(
        self,
        model: nn.Module,
        clean: Inputs,
        corrupted: Inputs | None,
        *,
        output: Output = None,
    ) -> Tensor:
        """The logits of the circuit alone; arguments and errors as in `evaluate`, of one batch."""
        runs = evaluation.runs_of(self, model, clean, corrupted, None, output)
        if len(runs) != 1:
            raise ValueError(f"clean must be one batch, got {len(runs)}")
        return runs[0].found

    @under(torch.no_grad)
    def evaluate(
        self,
        model: nn.Module,
        clean: Inputs,
        corrupted: Inputs | None,
        targets: Targets = None,
        *,
        output: Output = None,
    ) -> CircuitEvaluation:
        """How faithful the circuit alone is to the whole network.

        Each of its edges carries what the circuit makes of the clean inputs, each other edge what
        it carries when the whole network runs on the corrupted ones (or what `intervention` says).

        Raises:
            TypeError, ValueError: as `attribute_edges`; a model of other layers or sizes.
        """
        runs = evaluation.runs_of(self, model, clean, corrupted, targets, output)
        return CircuitEvaluation(**evaluation.measured(runs), backend=BACKEND)

    def plot(self) -> Figure:
        """The circuit's edges as lines between nodes, a column for each layer."""
        n_nodes = {name: int(labels.max()) + 1 for name, labels in self.nodes.items()}
        return plots.edge_circuit(self.masks, n_nodes)
