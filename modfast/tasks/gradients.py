"""Along which directions of a layer's activations do the tasks' outputs change?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modfast import checks
from modfast.network.capture import read_passes
from modfast.network.inputs import Batch, Inputs
from modfast.network.logits import Output, check_output, pick
from modfast.network.run import require_differentiable, running
from modfast.network.sites import resolve_sites
from modfast.network.visits import Visit, at_sites, checked
from modfast.results import Result
from modfast.tasks.distinct import DistinctGradients, distinct_gradients, holds_equal
from modfast.tasks.regions import branches, number_rows


@dataclass(frozen=True, eq=False, repr=False)
class TaskGradients(Result):
    """A site's activations, and the gradients of the tasks' outputs with respect to them.

    t tasks, n samples, d features; with the model's dtype and device.
    """

    tasks: tuple[int, ...]
    """Which outputs they are."""
    gradients: Tensor
    """Of each sample's own output: `[t, n, d]`. That of the mean over samples is 1 / n of it."""
    activations: Tensor
    """`[n, d]`."""
    regions: Tensor | None
    """int64 `[n]`: samples of one number lie on one linear piece of what follows the site, and so
    have the same gradients. None where that is not known to be linear piece by piece."""
    backend: str = ""
    """Which way it was computed."""

    def distinct(self, task: int, tolerance: float | None = None) -> DistinctGradients:
        """The distinct gradients of one of `tasks`; see `distinct_gradients`.

        Raises:
            ValueError: not one of `tasks`, a tolerance out of range.
        """
        checks.choice("task", task, self.tasks)
        return distinct_gradients(self.gradients[self.tasks.index(task)], self.regions, tolerance)


def task_gradients(
    model: nn.Module,
    inputs: Inputs,
    sites: str | Sequence[str],
    tasks: int | Sequence[int] | None = None,
    *,
    output: Output = None,
    pool: bool = False,
    batch_size: int | None = None,
    progress: bool = True,
) -> dict[str, TaskGradients]:
    """The gradients of a network's outputs, each of which is a task, at chosen sites.

    For task i and site activations a, the row of each sample is d out_i / d a of that sample: the
    gradient of the sum of out_i over the samples, which must not influence one another. The
    notebook's gradient of mean(out_i) is 1 / n of it, which no direction, cosine or capture knows.

    Args:
        model: any module that returns `[n, outputs]`. It runs in eval mode and is left as it was;
            its parameters get no gradients.
        inputs: one batch, or a stream of batches; targets are not needed.
        sites: names of places or patterns of modules, as in `capture`, that have floating tensors
            `[n, ...]`; `"input"` is the model's first input (unless a module has that name).
        tasks: which outputs, all by default.
        output: picks the outputs from what the model returns: a function, a key.
        pool: of sites `[n, channels, positions, ...]`, take the mean of the activations over the
            positions, and the gradient with respect to that mean (its sum over the positions).
            By default features are flattened: channel times position.
        batch_size: samples in one pass; by default one pass takes a whole batch.
        progress: show a progress bar over a stream, where standard error is a terminal.

    Returns:
        By site, in the order in which the model registers them, the input first.

    Raises:
        TypeError: arguments of a wrong type; a model or site that gives no floating tensor.
        ValueError: an unknown site (the nearest are listed), one that is not called or called
            several times; no such output; inputs or outputs that are not finite, or no samples;
            outputs of another shape, or that do not depend on the sites through autograd; `pool`
            for a site without positions.

    Source: N4.

    Example:
        >>> import torch, modfast
        >>> model = modfast.models.MLP([4, 16, 16, 2])
        >>> found = modfast.task_gradients(model, torch.rand(100, 4), ["input", "act*"])
        >>> found["act2"].gradients.shape
        torch.Size([2, 100, 16])
        >>> torch.equal(found["act2"].gradients[0, 0], model.fc3.weight[0])
        True
    """
    return gradients_of("inputs", model, inputs, sites, tasks, output, pool, batch_size, progress)


def gradients_of(
    argument: str,
    model: nn.Module,
    inputs: Inputs,
    sites: str | Sequence[str],
    tasks: int | Sequence[int] | None,
    output: Output,
    pool: bool,
    batch_size: int | None,
    progress: bool,
) -> dict[str, TaskGradients]:
    """`task_gradients`, by whose caller the inputs are called `argument`."""
    check_output(output)
    checks.flag("pool", pool)
    checks.flag("progress", progress)
    places = resolve_sites(model, sites)
    require_differentiable(model)
    collected = _Collected([site.name for site in places], tasks, pool)
    with running(model, argument=argument) as run, torch.enable_grad():
        for batch in read_passes(model, inputs, None, batch_size, progress, argument):
            outputs: dict[str, Tensor] = {}
            visits = [Visit(site, partial(_keep, outputs, site.name), "sites") for site in places]

            def read(
                result: Any,
                batch: Batch = batch,
                visits: Sequence[Visit] = visits,
                outputs: dict[str, Tensor] = outputs,
            ) -> None:
                names = [each.site.name for each in checked(visits)]
                logits = pick(result, output, batch)
                collected.visit(logits, {name: outputs[name] for name in names})

            with at_sites(model, visits):
                run(batch, read)
        return collected.results()


def _keep(outputs: dict[str, Tensor], name: str, value: Tensor) -> Tensor:
    """Keeps a site's value in the autograd graph; gives the model a copy to work on in place."""
    if not value.is_floating_point():
        raise TypeError(f"sites={name!r}: must be a floating tensor, got {value.dtype}")
    if not value.requires_grad:
        # Not the value itself: it may be the caller's input.
        value = value.detach()
        value.requires_grad = True
    outputs[name] = value
    return value.clone()


class _Collected:
    """What the passes gave so far."""

    def __init__(
        self,
        sites: Sequence[str],
        tasks: int | Sequence[int] | None,
        pool: bool,
    ) -> None:
        self.tasks, self.pool = tasks, pool
        self.numbers: tuple[int, ...] = ()
        self.gradients: dict[str, list[Tensor]] = {site: [] for site in sites}
        self.activations: dict[str, list[Tensor]] = {site: [] for site in sites}
        self.branches: dict[str, list[np.ndarray[Any, Any]] | None] = {site: [] for site in sites}

    def visit(self, result: Tensor, outputs: dict[str, Tensor]) -> None:
        """Takes the gradients of one pass."""
        _check_result(result)
        n = len(result)
        self.numbers = _numbers(self.tasks, result.shape[1])
        for site, output in outputs.items():
            if output.dim() < 2 or len(output) != n:
                raise ValueError(
                    f"sites={site!r}: must be [n, ...] for {n} outputs, got shape "
                    f"{tuple(output.shape)}"
                )
            if self.pool and output.dim() < 3:
                raise ValueError(
                    f"pool=True: sites={site!r} has no positions, but shape {tuple(output.shape)}"
                )
        each = [
            torch.autograd.grad(
                result[:, task].sum(),
                list(outputs.values()),
                retain_graph=True,
                allow_unused=True,
            )
            for task in self.numbers
        ]
        for (site, output), gradients in zip(outputs.items(), zip(*each, strict=True), strict=True):
            if all(gradient is None for gradient in gradients):
                raise ValueError(
                    f"sites={site!r}: the model's outputs must depend on it through autograd"
                )
            positions = list(range(2, output.dim()))
            kept = output.detach()
            gradient = torch.stack([torch.zeros_like(kept) if g is None else g for g in gradients])
            if self.pool:
                kept, gradient = kept.mean(positions), gradient.sum([p + 1 for p in positions])
            self.activations[site].append(kept.flatten(1))
            self.gradients[site].append(gradient.flatten(2))
            known = self.branches[site]
            found = None if known is None else branches(result, output, n)
            if known is None or found is None:
                self.branches[site] = None
            else:
                none = np.zeros((n, 0), np.uint8)
                known.append(np.concatenate([none, *found], axis=1))

    def results(self) -> dict[str, TaskGradients]:
        """All passes together."""
        found = {}
        for site, parts in self.branches.items():
            if not self.gradients[site]:
                continue  # a pattern matched it, but it has no tensor
            gradients = torch.cat(self.gradients[site], dim=1)
            checks.finite(f"the gradients at {site!r}", gradients)
            regions = None
            if parts is not None:
                regions = number_rows(np.concatenate(parts)).to(gradients.device)
                # A forward pass that takes gradients itself may be no linear piece.
                if not all(holds_equal(each, regions) for each in gradients):
                    regions = None
            activations = torch.cat(self.activations[site])
            found[site] = TaskGradients(self.numbers, gradients, activations, regions, "model")
        return found


def _check_result(result: Tensor) -> None:
    if not result.is_floating_point():
        raise TypeError(f"the model must return a floating tensor [n, outputs], got {result.dtype}")
    if result.dim() != 2 or result.numel() == 0:
        raise ValueError(
            f"the model must return [n, outputs], neither 0, got shape {tuple(result.shape)}"
        )
    checks.finite("the model's outputs", result)
    if not result.requires_grad:
        raise ValueError("the model's outputs do not depend on the sites through autograd")


def _numbers(tasks: int | Sequence[int] | None, n_outputs: int) -> tuple[int, ...]:
    if tasks is None:
        return tuple(range(n_outputs))
    listed = [tasks] if isinstance(tasks, int) else tasks
    if not isinstance(listed, Sequence):
        raise TypeError(f"tasks must be an output's number or a sequence of them, got {tasks!r}")
    for task in listed:
        checks.integer("each of tasks", task)
        if not 0 <= task < n_outputs:
            raise ValueError(f"tasks must be from 0 to {n_outputs - 1}, the outputs, got {task}")
    if not listed:
        raise ValueError("tasks must hold at least one output, got none")
    return tuple(listed)
