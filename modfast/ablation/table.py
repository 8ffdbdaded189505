"""What ablations did, put together: several chunks of ablations, and several batches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from modfast.ablation.changes import AtEach, Changes
from modfast.ablation.result import AblationResult, class_shares
from modfast.network.logits import Rows
from modfast.network.resume import joined


@dataclass(frozen=True)
class Part:
    """What some ablations did to one batch."""

    terms: Tensor
    """`[k, a]`, or by sample `[k, n, a]`; see `modfast.ops.logit_terms`."""
    classes: Tensor
    """Correct samples by class, `[a, c]`."""
    metrics: Mapping[str, Tensor]
    """Summed over samples `[a]`, or `[n, a]`."""


class Found:
    """The same of n ablations, as parts for some of them are put in.

    All lie in memory that is taken once: small results that are kept between large tensors that
    are not would keep the allocator from giving these back.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.whole: Part

    def put(self, chosen: slice, part: Part) -> None:
        """Takes the part of some."""
        if chosen == slice(0, self.n):
            self.whole = part
            return
        if not hasattr(self, "whole"):
            self.whole = Part(
                part.terms.new_empty(*part.terms.shape[:-1], self.n),
                part.classes.new_empty(self.n, part.classes.shape[1]),
                {name: x.new_empty(*x.shape[:-1], self.n) for name, x in part.metrics.items()},
            )
        self.whole.terms[..., chosen] = part.terms
        self.whole.classes[chosen] = part.classes
        for name, values in part.metrics.items():
            self.whole.metrics[name][..., chosen] = values


@dataclass
class Table:
    """Adds up batches."""

    per_sample: bool
    parts: list[Part] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)
    backends: list[str] = field(default_factory=list)
    n_samples: int = 0
    n_inputs: int = 0

    def add(self, part: Part, backend: str, rows: Rows, n_inputs: int) -> None:
        """Takes the next batch."""
        if self.parts and (rows.targets is None) == bool(self.targets):
            raise ValueError("inputs must have targets in all of its batches, or in none")
        n = part.terms.shape[-1]
        if self.parts and self.parts[0].terms.shape[-1] != n:
            raise ValueError(
                "positions='each' needs as many positions in each batch of inputs, got "
                f"{n} ablations after {self.parts[0].terms.shape[-1]}"
            )
        self.parts.append(part)
        self.backends.append(backend)
        self.n_samples += len(rows.logits)
        self.n_inputs += n_inputs
        if rows.targets is not None:
            self.targets.append(rows.targets)

    def _joined(self, values: list[Tensor], dim: int) -> Tensor:
        if self.per_sample:
            return torch.cat(values, dim=dim).cpu()
        return (values[0] if len(values) == 1 else torch.stack(values).sum(0)).cpu()

    def result(self, changes: Changes, **more: Any) -> AblationResult:
        """What all batches came to."""
        terms = self._joined([part.terms for part in self.parts], 1)
        # One pass where all is well, as NaN and infinity spread to the sum.
        if not math.isfinite(terms.sum().item()) and not terms.isfinite().all():
            bad = int((~terms.isfinite()).flatten(0, -2).any(0).nonzero()[0])
            number = int(changes.numbers()[bad])
            raise ValueError(f"the logits after ablating {changes.kind} {number} must be finite")
        entropy, kl_after, kl_before, *others = terms.unbind()
        more |= {"kind": changes.kind, "numbers": changes.numbers().cpu()}
        more["backend"] = joined(self.backends)
        if isinstance(changes, AtEach):
            more["positions"] = changes.positions()
        if self.targets:
            classes = torch.stack([part.classes for part in self.parts]).sum(0)
            loss, correct = others
            more["loss"] = loss
            more["accuracy"] = correct if self.per_sample else correct / self.n_samples
            more["class_accuracy"] = class_shares(classes, torch.cat(self.targets)).cpu()
        names = self.parts[0].metrics
        if names:
            parts = {name: [part.metrics[name] for part in self.parts] for name in names}
            more["metrics"] = {name: self._joined(each, 0) for name, each in parts.items()}
            more["n_inputs"] = self.n_inputs
        return AblationResult(entropy, kl_after, kl_before, self.n_samples, **more)
