"""On which linear piece of a network does a sample lie?

A network of linear layers and ReLU is linear in the neighborhood of a sample: the signs at its
ReLUs, its activation pattern, decide the piece, and with it every gradient. Patterns are read from
the autograd graph between a site and the output, so that they hold what is after the site and
nothing else, in modules or not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Backward nodes of operations that are linear in all of their inputs together (up to a constant),
_LINEAR = {
    "AdaptiveAvgPool2DBackward0",
    "AddBackward0",
    "AsStridedBackward0",
    "AvgPool2DBackward0",
    "CatBackward0",
    "CloneBackward0",
    "ConstantPadNdBackward0",
    "ExpandBackward0",
    "MeanBackward0",
    "MeanBackward1",
    "NegBackward0",
    "PermuteBackward0",
    "ReshapeAliasBackward0",
    "SelectBackward0",
    "SliceBackward0",
    "SplitBackward0",
    "SqueezeBackward0",
    "SqueezeBackward1",
    "StackBackward0",
    "SubBackward0",
    "SumBackward0",
    "SumBackward1",
    "TBackward0",
    "ToCopyBackward0",
    "TransposeBackward0",
    "UnsafeViewBackward0",
    "UnsqueezeBackward0",
    "ViewBackward0",
}
# ... in each of them, while the others are constant,
_MULTILINEAR = {
    "AddmmBackward0",
    "BmmBackward0",
    "ConvolutionBackward0",
    "LinearBackward0",
    "MkldnnConvolutionBackward0",
    "MmBackward0",
    "MulBackward0",
    "MvBackward0",
}
# ... and linear unless in training.
_NORMS = {"CudnnBatchNormBackward0", "NativeBatchNormBackward0"}
# What decides the piece in those that are linear piece by piece.
_BRANCHES = {
    "LeakyReluBackward0": "_saved_self",
    "MaxPool2DWithIndicesBackward0": "_saved_result1",
    "ReluBackward0": "_saved_result",
}


def branches(output: Tensor, site: Tensor, n: int) -> list[np.ndarray[Any, Any]] | None:
    """What decides, at each of n samples, the linear piece between a site and an output.

    Returns:
        Arrays of bytes `[n, ...]`, one for each ReLU, leaky ReLU and maximum pooling on the way;
        None where something on it is not known to be linear piece by piece.
    """
    # A leaf has no backward node but the one that would accumulate its gradient.
    target = site.grad_fn or torch.autograd.graph.get_gradient_edge(site).node
    order = _between(output.grad_fn, target)
    found = []
    for node, n_inputs in order:
        name = node.name()
        if name in _BRANCHES:
            saved = getattr(node, _BRANCHES[name])
            if saved.shape[:1] != (n,):
                return None
            decides = saved if "MaxPool" in name else saved > 0
            found.append(_as_bytes(decides.reshape(n, -1)))
        elif not (
            name in _LINEAR
            or (name in _MULTILINEAR and n_inputs == 1)
            or (name in _NORMS and not node._saved_training)
        ):
            return None
    return found


def number_rows(rows: np.ndarray[Any, Any]) -> Tensor:
    """Equal rows of bytes `[n, b]` get equal numbers from 0: int64 `[n]`."""
    if rows.shape[1] == 0:
        return torch.zeros(len(rows), dtype=torch.int64, device="cpu")
    keys = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.shape[1])))[:, 0]
    return torch.from_numpy(np.unique(keys, return_inverse=True)[1].reshape(-1))


def _as_bytes(values: Tensor) -> np.ndarray[Any, Any]:
    array = values.detach().cpu().numpy()
    if array.dtype == np.bool_:
        return np.packbits(array, axis=1)
    return np.ascontiguousarray(array).view(np.uint8)


def _between(start: Any, target: Any) -> list[tuple[Any, int]]:
    """The nodes from which the target is reached, without it, and over how many of their inputs."""
    reached: dict[Any, int] = {target: 0}
    # Depth first, without recursion: graphs are deep. A node is done when it is seen again.
    stack: list[tuple[Any, bool]] = [(start, False)]
    opened = {target}
    while stack:
        node, is_done = stack.pop()
        followers = _followers(node)
        if is_done:
            reached[node] = sum(reached.get(other, 0) > 0 or other is target for other in followers)
        elif node not in opened:
            opened.add(node)
            stack.append((node, True))
            stack += [(other, False) for other in followers]
    return [(node, count) for node, count in reached.items() if count]


def _followers(node: Any) -> Iterable[Any]:
    return [] if node is None else [other for other, _ in node.next_functions if other is not None]
