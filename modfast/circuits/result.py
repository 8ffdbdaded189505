"""Circuits, and how large they are."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from modfast import checks, plots
from modfast.network.inputs import tensors_in
from modfast.network.names import modules_of, nearest, unwrapped
from modfast.results import Result

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True, eq=False, repr=False)
class Circuit(Result):
    """The weights that a network's loss on some samples needs, as greedy pruning found them.

    All tensors are on the CPU; losses are mean cross-entropies in nats, float64.
    """

    mask: Mapping[str, Tensor]
    """By parameter name, in the order in which they were pruned: bool, True where kept."""
    kept: int
    """How many weights are kept: True in `mask`."""
    total: int
    """Of how many."""
    loss: Tensor
    """With only the kept weights: scalar."""
    original_loss: Tensor
    """With all: scalar."""
    loss_path: Tensor
    """After each visit of a weight, whether it was zeroed or put back: `[visits]`."""
    margins: Mapping[str, Tensor]
    """By parameter name, float64: how much zeroing the weight raised the loss over the one compared
    with, less the threshold. Kept are those above 0; NaN where a weight was not visited."""
    threshold: float = 1e-4
    against: str = "running"
    n_samples: int = 0
    backend: str = ""
    """Which way it was computed."""

    def close_calls(self, rounding: float = 1e-6) -> int:
        """How many decisions have a margin within `rounding`, so that they may depend on it."""
        rounding = checks.finite_number("rounding", rounding)
        return sum(int((margin.abs() < rounding).sum()) for margin in self.margins.values())

    def apply(self, model: nn.Module) -> nn.Module:
        """A copy of the model, hooks and all, whose weights outside of the circuit are 0.

        Raises:
            TypeError: no module.
            ValueError: the model has no such parameter (the nearest are listed), or of another
                shape; it cannot be copied.
        """
        checks.module("model", model)
        # What was computed from parameters, as an old weight_norm's weight, has no deep copy.
        computed = [
            tensor
            for module in modules_of(model)
            for tensor in tensors_in(list(vars(module).values()))
            if not tensor.is_leaf
        ]
        try:
            pruned = copy.deepcopy(model, {id(x): x.detach().clone() for x in computed})
        except (RuntimeError, NotImplementedError, TypeError) as error:
            raise ValueError(f"model must be one that can be copied: {error}") from error
        parameters = dict(unwrapped(pruned).named_parameters(remove_duplicate=False))
        for name, mask in self.mask.items():
            if name not in parameters:
                raise ValueError(
                    f"model must have the parameter {name!r}; {nearest(name, parameters)}"
                )
            parameter = parameters[name]
            if parameter.shape != mask.shape:
                raise ValueError(
                    f"model must have {name!r} of shape {tuple(mask.shape)}, "
                    f"got {tuple(parameter.shape)}"
                )
            with torch.no_grad():
                parameter.masked_fill_(~mask.to(parameter.device), 0)
        return pruned

    def plot(self) -> Figure:
        """The loss over the visits, and the share of weights kept in each layer."""
        return plots.circuit(self.loss_path, self.original_loss, self.mask, self.margins)


@dataclass(frozen=True, eq=False, repr=False)
class CircuitSizes(Result):
    """How many weights the circuit of each label has, over thresholds.

    `t` thresholds, `l` labels; on the CPU.
    """

    thresholds: Tensor
    """Float64, ascending: `[t]`."""
    labels: tuple[int, ...]
    kept: Tensor
    """Weights in the circuit: int64 `[t, l]`."""
    loss: Tensor
    """Mean cross-entropy on the label's samples with these alone: float64 `[t, l]`."""
    original_loss: Tensor
    """With all weights: float64 `[l]`."""
    total: int
    """Weights that were there to be pruned."""
    backend: str = ""
    """Which way it was computed."""

    @property
    def share(self) -> Tensor:
        """`kept / total`: float64 `[t, l]`."""
        return self.kept.double() / self.total

    def plot(self) -> Figure:
        """The size of each label's circuit over the thresholds, and their mean."""
        return self.overlay({"": self})

    @classmethod
    def overlay(cls, results: Mapping[str, CircuitSizes]) -> Figure:
        """The curves of several networks over each other, by name.

        Raises:
            TypeError, ValueError: other values than results, none.
        """
        named = cls.by_name(results)
        return plots.circuit_sizes(
            {name: each.thresholds for name, each in named.items()},
            {name: each.kept for name, each in named.items()},
            {name: each.labels for name, each in named.items()},
        )
