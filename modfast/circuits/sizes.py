"""How large is each label's circuit?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from modfast import checks
from modfast._renamed import renamed
from modfast.circuits.pruning import prune_circuit
from modfast.circuits.result import CircuitSizes
from modfast.network.inputs import Inputs, Targets
from modfast.network.logits import Output
from modfast.network.resume import joined
from modfast.progress import bar

THRESHOLDS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)


@renamed(against="baseline", path="backend")
def effective_circuit_size(
    model: nn.Module,
    inputs: Inputs,
    targets: Targets = None,
    thresholds: Sequence[float] = THRESHOLDS,
    labels: Literal["all"] | Sequence[int] = "all",
    *,
    layers: str | Sequence[str] | None = None,
    order: str | Tensor | Mapping[str, Tensor] = "row",
    baseline: str = "running",
    output: Output = None,
    progress: bool = True,
    backend: str | None = None,
) -> CircuitSizes:
    """How many weights `prune_circuit` keeps for each label, over thresholds.

    A network that is clustered well should need few weights for a label. The curves of several
    networks lie over each other in `CircuitSizes.overlay({"plain": ..., "clustered": ...})`.

    Args:
        model: as for `prune_circuit`, and so are the others; it is left as it was.
        inputs: its input, one batch.
        targets: integer classes.
        thresholds: in nats, at least 0; sorted in the result.
        labels: which; by default all that occur.
        layers: which layers are pruned.
        order: in which weights are visited.
        baseline: which loss a rise is counted over.
        output: picks the logits.
        progress: show a progress bar, where standard error is a terminal.
        backend: how the pruning runs.

    Raises:
        TypeError, ValueError: as `prune_circuit`; no thresholds, or equal ones.

    Source: Section 4 of the specification.

    Example:
        >>> import torch, modfast
        >>> model = modfast.models.MLP([8, 6, 6, 3])
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> sizes = modfast.effective_circuit_size(model, x, y, thresholds=[1e-4, 1e-2])
        >>> sizes.kept.shape, sizes.total
        (torch.Size([2, 3]), 102)
    """
    several = checks.several("thresholds", thresholds)
    ascending = sorted(checks.finite_number("thresholds", value) for value in several)
    if ascending and ascending[0] < 0:
        raise ValueError(f"thresholds must be at least 0, got {ascending[0]}")
    if not ascending or len(set(ascending)) < len(ascending):
        raise ValueError(f"thresholds must be different numbers, at least one, got {thresholds!r}")
    if not (isinstance(labels, str) and labels == "all"):
        labels = checks.several("labels", labels)
    found = [
        prune_circuit(
            model,
            inputs,
            targets,
            layers,
            order,
            threshold,
            baseline,
            labels,
            output=output,
            progress=progress,
            backend=backend,
        )
        for threshold in bar(ascending, "circuit sizes", progress)
    ]
    circuits = [list(each.values()) for each in found]
    return CircuitSizes(
        torch.tensor(ascending, dtype=torch.float64, device="cpu"),
        tuple(found[0]),
        torch.tensor([[circuit.kept for circuit in each] for each in circuits], device="cpu"),
        torch.stack([torch.stack([circuit.loss for circuit in each]) for each in circuits]),
        torch.stack([circuit.original_loss for circuit in circuits[0]]),
        circuits[0][0].total,
        joined([circuit.backend for each in circuits for circuit in each]),
    )
