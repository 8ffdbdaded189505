"""Along which directions of a layer's activations do the tasks' outputs change?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modfast import checks
from modfast.passes import run_passes
from modfast.results import Result
from modfast.sites import resolve_modules
from modfast.tasks.distinct import DistinctGradients, distinct_gradients
from modfast.tasks.regions import branches, number_rows

INPUT = "input"


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
    inputs: Tensor | tuple[Any, ...] | Mapping[str, Any],
    sites: str | Sequence[str],
    tasks: int | Sequence[int] | None = None,
    *,
    pool: bool = False,
    batch_size: int | None = None,
) -> dict[str, TaskGradients]:
    """The gradients of a network's outputs, each of which is a task, at chosen sites.

    For task i and site activations a, the row of each sample is d out_i / d a of that sample: the
    gradient of the sum of out_i over the samples, which must not influence one another. The
    notebook's gradient of mean(out_i) is 1 / n of it, which no direction, cosine or capture knows.

    Args:
        model: any module that returns `[n, outputs]`. It runs in eval mode and is left as it was;
            its parameters get no gradients.
        inputs: its input, a tuple of positional inputs or a mapping of keyword inputs.
        sites: names or patterns of submodules that return floating tensors `[n, ...]`; `"input"` is
            the model's input, a floating tensor (unless a module has that name).
        tasks: which outputs, all by default.
        pool: of sites `[n, channels, positions, ...]`, take the mean of the activations over the
            positions, and the gradient with respect to that mean (its sum over the positions).
            By default features are flattened: channel times position.
        batch_size: samples in one pass; by default one pass takes them all.

    Returns:
        By site, in the order in which the model registers them, the input first.

    Raises:
        TypeError: arguments of a wrong type; a model or site that returns no floating tensor.
        ValueError: an unknown site (the nearest are listed), one that is not called or called
            several times; no such output; inputs or outputs that are not finite, or no samples;
            outputs of another shape, or that do not hang on the sites through autograd; `pool` for
            a site without positions.

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
    modules, runner = _resolve(model, inputs, sites)
    collected = _Collected(modules, tasks, pool)
    with torch.enable_grad():
        run_passes(runner, inputs, modules, collected.visit, batch_size)
    return collected.results()


def _resolve(
    model: nn.Module, inputs: object, sites: str | Sequence[str]
) -> tuple[dict[str, nn.Module], nn.Module]:
    """The sites' modules, and what to run: a module of its own stands for the input."""
    names = [sites] if isinstance(sites, str) else sites
    checks.module("model", model)
    own = dict(model.named_modules(remove_duplicate=False))
    if not isinstance(names, Sequence) or INPUT not in names or INPUT in own:
        return resolve_modules(model, sites, "sites"), model
    single = inputs[0] if isinstance(inputs, tuple) and len(inputs) == 1 else inputs
    if not isinstance(single, Tensor) or not single.is_floating_point():
        raise TypeError(f"sites={INPUT!r}: inputs must be one floating tensor")
    others = [name for name in names if name != INPUT]
    start = nn.Identity()
    found = {INPUT: start, **(resolve_modules(model, others, "sites") if others else {})}
    return found, nn.Sequential(start, model)


class _Collected:
    """What the passes gave so far."""

    def __init__(
        self,
        sites: Sequence[str] | Mapping[str, Any],
        tasks: int | Sequence[int] | None,
        pool: bool,
    ) -> None:
        self.tasks, self.pool = tasks, pool
        self.numbers: tuple[int, ...] = ()
        self.gradients: dict[str, list[Tensor]] = {site: [] for site in sites}
        self.activations: dict[str, list[Tensor]] = {site: [] for site in sites}
        self.branches: dict[str, list[np.ndarray[Any, Any]] | None] = {site: [] for site in sites}

    def visit(self, result: Any, outputs: dict[str, Tensor]) -> None:
        """Takes the gradients of one pass."""
        _check_result(result)
        n = len(result)
        self.numbers = _numbers(self.tasks, result.shape[1])
        for site, output in outputs.items():
            if not output.is_floating_point():
                raise TypeError(f"sites={site!r}: must be a floating tensor, got {output.dtype}")
            if output.dim() < 2 or len(output) != n:
                raise ValueError(
                    f"sites={site!r}: must be [n, ...] for {n} outputs, got shape "
                    f"{list(output.shape)}"
                )
            if self.pool and output.dim() < 3:
                raise ValueError(
                    f"pool=True: sites={site!r} has no positions, but shape {list(output.shape)}"
                )
        each = [
            torch.autograd.grad(
                result[:, task].sum(),
                list(outputs.values()),
                retain_graph=True,
                materialize_grads=True,
            )
            for task in self.numbers
        ]
        for (site, output), gradients in zip(outputs.items(), zip(*each, strict=True), strict=True):
            positions = list(range(2, output.dim()))
            kept, gradient = output.detach(), torch.stack(gradients)
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
            gradients = torch.cat(self.gradients[site], dim=1)
            checks.finite(f"the gradients at {site!r}", gradients)
            regions = None
            if parts is not None:
                regions = number_rows(np.concatenate(parts)).to(gradients.device)
            activations = torch.cat(self.activations[site])
            found[site] = TaskGradients(self.numbers, gradients, activations, regions)
        return found


def _check_result(result: object) -> None:
    if not isinstance(result, Tensor) or not result.is_floating_point():
        kind = result.dtype if isinstance(result, Tensor) else type(result).__name__
        raise TypeError(f"the model must return a floating tensor [n, outputs], got {kind}")
    if result.dim() != 2 or result.numel() == 0:
        raise ValueError(
            f"the model must return [n, outputs], neither 0, got shape {list(result.shape)}"
        )
    checks.finite("the model's outputs", result)
    if not result.requires_grad:
        raise ValueError("the model's outputs do not hang on the sites through autograd")


def _numbers(tasks: int | Sequence[int] | None, n_outputs: int) -> tuple[int, ...]:
    if tasks is None:
        return tuple(range(n_outputs))
    listed = [tasks] if isinstance(tasks, int) else tasks
    if not isinstance(listed, Sequence):
        raise TypeError(f"tasks must be an output's number or a sequence of them, got {tasks!r}")
    for task in listed:
        if not isinstance(task, int) or isinstance(task, bool):
            raise TypeError(f"tasks must hold integers, got {task!r}")
        if not 0 <= task < n_outputs:
            raise ValueError(f"tasks must be from 0 to {n_outputs - 1}, the outputs, got {task}")
    if not listed:
        raise ValueError("tasks must hold at least one output, got none")
    return tuple(listed)
