"""Optimizer steps in which update, penalty and the next sums share one pass over memory."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from modfast.ops import cluster_sums, clustered_adam_, clustered_sgd_
from modfast.ops.clusterability import WEIGHT_DTYPES

_ADAM = (torch.optim.Adam, torch.optim.AdamW)
_KNOWN = (torch.optim.SGD, *_ADAM)
# Options of torch's optimizers that the fused steps lack: with one set, torch's own step runs.
_LACKING = ("maximize", "amsgrad", "differentiable", "capturable")


def fusable(base: torch.optim.Optimizer) -> bool:
    """Whether the fused steps cover an optimizer with the options and parameters that it has."""
    return type(base) in _KNOWN and all(
        not any(group.get(option) for option in _LACKING)
        and all(_plain(p) and p.is_contiguous() for p in group["params"])
        and all(p.grad is None or _plain(p.grad) for p in group["params"])
        for group in base.param_groups
    )


def _plain(tensor: Tensor) -> bool:
    # A subclass (DTensor, quantized weights) keeps its data elsewhere.
    return (
        type(tensor.data) is Tensor
        and tensor.layout == torch.strided
        and tensor.dtype in WEIGHT_DTYPES
    )


class FusedStep:
    """All parameters of an optimizer that have gradients, laid out for the fused operators.

    States are the base optimizer's own, in `base.state`, made here where they are missing. A
    clustered weight takes part even without a gradient: its penalty still has one.
    """

    def __init__(self, base: torch.optim.Optimizer, n_clustered: int) -> None:
        self._n_clustered = n_clustered
        self._groups = base.param_groups
        self._params = [p for group in base.param_groups for p in group["params"]]
        self._laid_out_for = self._layout()
        self._calls: list[_Call] = []
        for group in base.param_groups:
            members: dict[Any, list[tuple[Tensor, Tensor | None]]] = {}
            for p, labels in zip(group["params"], group["clusters"], strict=True):
                if p.grad is not None or (labels is not None and p.requires_grad):
                    key = p.device, base.state[p].get("momentum_buffer") is None
                    members.setdefault(key, []).append((p, labels))
            self._calls += [_Call(base, group, each) for each in members.values()]
        self._clustered_calls = [call for call in self._calls if call.n_clustered]

    def still_fits(self) -> bool:
        """Whether the same parameters need the same states as when this was laid out."""
        return self._layout() == self._laid_out_for

    def step(self) -> None:
        """Updates every parameter."""
        for call in self._calls:
            call.step(self._n_clustered)

    def sums(self) -> Tensor | None:
        """Float64 `[clustered, 2]` of the weights as they are, if one call has all of them."""
        if [call.n_clustered for call in self._clustered_calls] != [self._n_clustered]:
            return None
        return self._clustered_calls[0].current_sums()

    def _layout(self) -> tuple[list[bool], list[bool]]:
        with_momentum = [bool(group.get("momentum")) for group in self._groups]
        return [p.grad is not None for p in self._params], with_momentum


class _Call:
    """Parameters of one group and device: one operator call a step, clustered weights first."""

    def __init__(
        self,
        base: torch.optim.Optimizer,
        group: dict[str, Any],
        members: Sequence[tuple[Tensor, Tensor | None]],
    ) -> None:
        ordered = sorted(members, key=lambda member: member[1] is None)
        self.group = group
        self.params = [p for p, _ in ordered]
        device = self.params[0].device
        none = torch.empty(0, dtype=torch.int32, device=device)
        labels = [x.to(device) for _, x in ordered if x is not None]
        self.n_clustered = len(labels)
        self.labels = torch.cat([none, *labels])
        self.sums = torch.zeros(self.n_clustered, 2, dtype=torch.float64, device=device)
        self.seen: list[tuple[int, int]] = []
        self.adam = isinstance(base, _ADAM)
        self.decoupled = isinstance(base, torch.optim.AdamW) or bool(
            group.get("decoupled_weight_decay")
        )
        states = [base.state[p] for p in self.params]
        if self.adam:
            self.states = _adam_states(self.params, states)
        elif group["momentum"] != 0:
            self.first = states[0].get("momentum_buffer") is None
            self.states = [_buffers(self.params, states, "momentum_buffer")]
        else:
            self.first, self.states = False, [[]]

    def step(self, n_clustered: int) -> None:
        group = self.group
        self.refresh()
        grads = [
            torch.zeros_like(p) if g is None else g if g.is_contiguous() else g.contiguous()
            for p, g in [(p, p.grad) for p in self.params]
        ]
        scale = -group["alpha"] / max(1, n_clustered)
        labels = (self.labels, self.sums, scale, float(group["lr"]))
        if self.adam:
            beta1, beta2 = map(float, group["betas"])
            adam = (beta1, beta2, group["eps"], group["weight_decay"], self.decoupled)
            clustered_adam_(self.params, grads, *self.states, *labels, *adam)
        else:
            sgd = (group["momentum"], group["dampening"], group["weight_decay"], group["nesterov"])
            clustered_sgd_(self.params, grads, *self.states, *labels, *sgd, self.first)
            self.first = False
        # Autograd must know of the new values; so must `refresh`, which made them itself.
        torch.autograd.graph.increment_version(self.params)
        self.seen = self.versions()

    def current_sums(self) -> Tensor:
        self.refresh()
        return self.sums

    def refresh(self) -> None:
        """Takes the sums anew if anyone else has written to the weights since the last step."""
        if self.n_clustered and self.seen != self.versions():
            self.sums = cluster_sums(self.params[: self.n_clustered], self.labels)
            self.seen = self.versions()

    def versions(self) -> list[tuple[int, int]]:
        return [(p._version, p.data_ptr()) for p in self.params[: self.n_clustered]]


def _adam_states(
    params: Sequence[Tensor], states: Sequence[MutableMapping[str, Any]]
) -> list[list[Tensor]]:
    for state in states:
        # The count stays on the CPU, where the bias corrections are computed from it.
        state["step"] = state.get("step", torch.tensor(0.0, device="cpu")).to("cpu", torch.float32)
    moments = [_buffers(params, states, key) for key in ("exp_avg", "exp_avg_sq")]
    return [*moments, [state["step"] for state in states]]


def _buffers(
    params: Sequence[Tensor], states: Sequence[MutableMapping[str, Any]], key: str
) -> list[Tensor]:
    """The states' tensors of that name, made of zeros where missing."""
    for p, state in zip(params, states, strict=True):
        old = state.get(key)
        state[key] = torch.zeros_like(p) if old is None else old.contiguous()
    return [state[key] for state in states]
