"""Do tasks use the same directions of a layer, and do those carry their variance?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from modfast import checks, plots
from modfast.precision import precise
from modfast.results import Result
from modfast.tasks.distinct import DistinctGradients, check_rows

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True, eq=False, repr=False)
class TaskSimilarity(Result):
    """How far two tasks' gradients point the same way; float64 on the CPU."""

    cosine: Tensor
    """Between their mean gradients, 0 where one is zero: scalar."""
    matrix: Tensor
    """Between each distinct gradient of the one and each of the other: `[a, b]`."""

    def plot(self) -> Figure:
        """The matrix, blue for opposite, white for orthogonal, red for equal directions."""
        return plots.task_similarity(self.matrix, self.cosine)


@precise
def principal_components(x: Tensor) -> tuple[Tensor, Tensor]:
    """The principal components of rows, and the variance along each.

    With the singular value decomposition X - mean = U S Vᵀ, the components are the rows of Vᵀ and
    the variances S² / (n - 1).

    Args:
        x: `[n, d]`, n at least 2.

    Returns:
        Components of unit length, `[min(n, d), d]`, by falling variance, each with its largest
        entry positive; and their variances.

    Raises:
        TypeError: no floating tensor.
        ValueError: another number of dimensions, fewer than two rows, values that are not finite.

    Source: N4.

    Example:
        >>> import torch, modfast
        >>> x = torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]])
        >>> components, variances = modfast.principal_components(x)
        >>> components[0].abs().tolist(), variances.tolist()
        ([1.0, 0.0], [4.0, 0.0])
    """
    check_rows("x", x, least=2)
    exact = x.detach().double()
    _, s, components = torch.linalg.svd(exact - exact.mean(0), full_matrices=False)
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    components = components * torch.where(largest < 0, -1.0, 1.0)
    return components.to(x.dtype), (s.square() / (len(x) - 1)).to(x.dtype)


@precise
def task_similarity(a: DistinctGradients, b: DistinctGradients) -> TaskSimilarity:
    """How far two tasks' gradients at one site point the same way.

    The cosine between the tasks' mean gradients over their samples, and between each distinct
    gradient of a and each of b. Zero gradients have cosine 0 with all.

    Raises:
        TypeError: not distinct gradients.
        ValueError: of different numbers of features.

    Source: N4, whose tasks' mean gradients have cosine .0036.

    Example:
        >>> import torch, modfast
        >>> a = modfast.distinct_gradients(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        >>> b = modfast.distinct_gradients(torch.tensor([[0.0, 3.0]]))
        >>> found = modfast.task_similarity(a, b)
        >>> found.matrix.tolist(), round(float(found.cosine), 3)
        ([[0.0], [1.0]], 0.894)
    """
    for name, each in (("a", a), ("b", b)):
        if not isinstance(each, DistinctGradients):
            raise TypeError(f"{name} must be DistinctGradients, got {type(each).__name__}")
    if a.directions.shape[1] != b.directions.shape[1]:
        raise ValueError(
            "a and b must be gradients of one site, got "
            f"{a.directions.shape[1]} and {b.directions.shape[1]} features"
        )
    cosine = torch.nn.functional.cosine_similarity(a.mean, b.mean, dim=0, eps=0.0).nan_to_num(0.0)
    return TaskSimilarity(cosine, a.directions.double() @ b.directions.double().T).cpu()


@precise
def variance_explained(
    components: Tensor, activations_by_task: Sequence[Tensor] | Tensor
) -> Tensor:
    """The variance of each task's activations along each component.

    Args:
        components: `[k, d]`; each is divided by its length, and along zeros the variance is 0.
        activations_by_task: for each of t tasks, activations `[n, d]` while that task varies and
            the others do not, n at least 2.

    Returns:
        float64 `[t, k]`: (1 / (n - 1)) sum over samples of ((a - mean) · component)².

    Raises:
        TypeError: no floating tensors.
        ValueError: shapes that do not fit, fewer than two rows, no tasks, values that are not
            finite.

    Source: N4.

    Example:
        >>> import torch, modfast
        >>> a = torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]])
        >>> modfast.variance_explained(torch.eye(2), [a, a.flip(1)]).tolist()
        [[4.0, 0.0], [0.0, 4.0]]
    """
    check_rows("components", components)
    activations_by_task = checks.several("activations_by_task", activations_by_task)
    if not activations_by_task:
        raise ValueError("activations_by_task must hold at least one task's activations")
    exact = components.detach().double()
    norms = exact.norm(dim=1, keepdim=True)
    units = exact / torch.where(norms > 0, norms, 1.0)
    found = []
    for i, activations in enumerate(activations_by_task):
        check_rows(f"activations_by_task[{i}]", activations, least=2)
        if activations.shape[1] != units.shape[1]:
            raise ValueError(
                f"activations_by_task[{i}] must have the components' {units.shape[1]} features, "
                f"got shape {list(activations.shape)}"
            )
        exact = activations.detach().double()
        along = (exact - exact.mean(0)) @ units.T
        found.append(along.square().sum(0) / (len(along) - 1))
    return torch.stack(found)


@precise
def task_capture(variances: Tensor, norms: Tensor) -> Tensor:
    """How far each direction carries the variance of a single task, weighted by gradient norms.

    The sum over directions of norm · max(var) / sum(var), over the tasks' variances along it,
    divided by the sum of norms: 1 where every direction belongs to one task, 1 / t where all t
    tasks vary alike. Directions along which no task varies are left out; if all are, it is NaN.

    Args:
        variances: `[..., t, k]` of `variance_explained`, finite, at least 0.
        norms: `[..., k]`, finite, at least 0.

    Returns:
        float64 `[...]`.

    Raises:
        TypeError: no floating tensors.
        ValueError: shapes that do not fit, values that are not finite or below 0.

    Source: N4: .83 to 1.0 over 100 networks of two tasks.

    Example:
        >>> import torch, modfast
        >>> variances = torch.tensor([[4.0, 1.0], [0.0, 1.0]])
        >>> float(modfast.task_capture(variances, torch.tensor([3.0, 1.0])))
        0.875
    """
    for name, values in (("variances", variances), ("norms", norms)):
        checks.floating(name, values)
        checks.finite(name, values)
        if values.numel() and values.min() < 0:
            raise ValueError(f"{name} must be at least 0, got {float(values.min())}")
    wanted = variances.shape[:-2] + variances.shape[-1:]
    if variances.dim() < 2 or 0 in variances.shape or norms.shape != wanted:
        raise ValueError(
            "variances must have shape [..., tasks, k] and norms [..., k], none of them 0, got "
            f"{list(variances.shape)} and {list(norms.shape)}"
        )
    exact = variances.detach().double()
    total = exact.sum(-2)
    weights = norms.detach().double() * (total > 0)
    share = exact.amax(-2) / torch.where(total > 0, total, 1.0)
    return (share * weights).sum(-1) / weights.sum(-1)
