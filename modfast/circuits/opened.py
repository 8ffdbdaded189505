"""The first step of what asks for edges: is the network a chain, and what are its runs?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from modfast import checks
from modfast.circuits.inputs import check_intervention, checked_inputs, may_be_chain
from modfast.circuits.metric import Metric, MetricLike, make_metric
from modfast.circuits.network import Intervention, Network, NoChainError, Pass, read_network
from modfast.circuits.removal import intervened
from modfast.network.inputs import Inputs
from modfast.network.logits import Output, check_output
from modfast.network.run import Run, running
from modfast.precision import full_precision


@dataclass(frozen=True)
class ChainRuns:
    """A chain, run on both inputs."""

    network: Network
    whole: Pass
    other: Pass
    """What removed edges carry."""
    judge: Metric
    inputs: tuple[Tensor, Tensor]

    @property
    def nodes(self) -> dict[str, Tensor]:
        """The node of each unit, on the CPU."""
        return {name: labels.cpu() for name, labels in self.network.nodes.items()}


@contextmanager
def opened(
    model: nn.Module,
    clean: Inputs,
    corrupted: Inputs | None,
    targets: Any,
    nodes: Mapping[str, Any] | str | None,
    intervention: Intervention,
    metric: MetricLike,
    output: Output,
) -> Iterator[tuple[Run, ChainRuns | NoChainError | None]]:
    """Runs a model for as long as a `with` block lasts.

    Gives the runs of a chain; why the model is none; or None for inputs that no chain takes.

    Raises:
        TypeError, ValueError: as `attribute_edges`.
    """
    check_output(output)
    check_intervention(intervention, corrupted)
    with full_precision():
        pair = None
        if may_be_chain(clean):
            other = clean if corrupted is None else corrupted
            pair = checked_inputs(model, clean, other, targets)  # type: ignore[arg-type]
        else:
            checks.python_module("model", model)
        with running(model, argument="clean") as run:
            found: ChainRuns | NoChainError | None = None
            if pair is not None:
                x, y, labels = pair
                try:
                    network, whole, there = read_network(run, model, x, y, nodes, output)
                except NoChainError as error:
                    found = error
                else:
                    there = intervened(network, there, intervention)
                    judge = make_metric(metric, whole.logits, labels, x)
                    found = ChainRuns(network, whole, there, judge, (x, y))
            yield run, found
