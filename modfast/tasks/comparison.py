"""How far does one layer of a network keep its tasks apart?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from modfast import checks, plots
from modfast.network.inputs import Inputs
from modfast.network.logits import Output
from modfast.results import Result
from modfast.tasks.directions import (
    TaskSimilarity,
    task_capture,
    task_similarity,
    variance_explained,
)
from modfast.tasks.distinct import DistinctGradients
from modfast.tasks.gradients import gradients_of

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True, eq=False, repr=False)
class TaskComparison(Result):
    """Two or more tasks at one site; t tasks with k distinct gradients in all, on the CPU."""

    distinct: tuple[DistinctGradients, ...]
    """Of each task's output, over the inputs that vary that task."""
    variances: Tensor
    """Of the activations on each task's inputs, along the direction of each distinct gradient, the
    first task's gradients first: float64 `[t, k]`."""
    backend: str = ""
    """Which way it was computed."""

    @property
    def norms(self) -> Tensor:
        """Of the distinct gradients: `[k]`."""
        return torch.cat([each.norms for each in self.distinct])

    @property
    def capture(self) -> Tensor:
        """How far each gradient's direction carries one task's variance alone: `task_capture`."""
        return task_capture(self.variances, self.norms)

    @property
    def cosine(self) -> Tensor:
        """Between the tasks' mean gradients: float64 `[t, t]`."""
        return self._by_pair(lambda found: found.cosine)

    @property
    def overlap(self) -> Tensor:
        """The mean |cosine| between the tasks' distinct gradients: float64 `[t, t]`."""
        return self._by_pair(lambda found: found.matrix.abs().mean())

    def similarity(self, a: int = 0, b: int = 1) -> TaskSimilarity:
        """Of two of the tasks' gradients.

        Raises:
            TypeError, ValueError: there is no such task.
        """
        n = len(self.distinct)
        a, b = checks.index("a", a, n), checks.index("b", b, n)
        return task_similarity(self.distinct[a], self.distinct[b])

    def plot(self) -> Figure:
        """Each task's variance along each gradient as bars, the gradients' norms as points."""
        n_distinct = [len(each.norms) for each in self.distinct]
        return plots.task_comparison(self.variances, self.norms, self.capture, n_distinct)

    def _by_pair(self, value: Callable[[TaskSimilarity], Tensor]) -> Tensor:
        rows = [[value(task_similarity(a, b)) for b in self.distinct] for a in self.distinct]
        return torch.stack([torch.stack(row) for row in rows])


def compare_tasks(
    model: nn.Module,
    inputs_by_task: Sequence[Inputs] | Tensor,
    sites: str | Sequence[str],
    tasks: Sequence[int] | None = None,
    *,
    output: Output = None,
    pool: bool = False,
    batch_size: int | None = None,
    progress: bool = True,
) -> dict[str, TaskComparison]:
    """How far each site keeps tasks apart: in the directions of their gradients, and in variance.

    Each task's output is differentiated on inputs along which that task varies and the others do
    not; its distinct gradients are the site's directions that the task uses. The task owns them as
    far as the site's activations vary along them on its own inputs and not on the others'.

    Args:
        model: any module that returns `[n, outputs]`.
        inputs_by_task: for each task, inputs that vary it, `[n, ...]` or whatever else the model
            takes, such as `modfast.data.physics_grids()`.
        sites: as in `task_gradients`.
        tasks: each task's output; by default 0, 1, ...
        output: picks the outputs from what the model returns.
        pool: whether to take means over positions.
        batch_size: samples in one pass.
        progress: show a progress bar over streams, where standard error is a terminal.

    Returns:
        By site, in the order in which the model registers them, the input first.

    Raises:
        TypeError, ValueError: as `task_gradients`; fewer than two tasks, or another number of
            outputs than of inputs.

    Source: N4.

    Example:
        >>> import modfast
        >>> model = modfast.models.MLP([4, 16, 16, 2])
        >>> found = modfast.compare_tasks(model, modfast.data.physics_grids(20), ["input", "act*"])
        >>> found["act2"].norms.shape  # the last layer's: one gradient per output
        torch.Size([2])
    """
    inputs_by_task = checks.several("inputs_by_task", inputs_by_task)
    if len(inputs_by_task) < 2:
        raise ValueError("inputs_by_task must hold the inputs of at least two tasks")
    numbers = [*range(len(inputs_by_task))] if tasks is None else checks.several("tasks", tasks)
    if len(numbers) != len(inputs_by_task):
        raise ValueError(
            f"tasks must be {len(inputs_by_task)} outputs, one for each task's inputs, "
            f"got {len(numbers)}"
        )
    rest = output, pool, batch_size, progress
    by_task = [
        gradients_of(f"inputs_by_task[{i}]", model, inputs, sites, [task], *rest)
        for i, (inputs, task) in enumerate(zip(inputs_by_task, numbers, strict=True))
    ]
    found = {}
    for site in by_task[0]:
        distinct = tuple(
            each[site].distinct(task) for each, task in zip(by_task, numbers, strict=True)
        )
        directions = torch.cat([each.directions for each in distinct])
        variances = variance_explained(directions, [each[site].activations for each in by_task])
        found[site] = TaskComparison(distinct, variances, "model").cpu()
    return found
