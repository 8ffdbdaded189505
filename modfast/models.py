"""The networks that the studies of modularity train and take apart."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from modfast import checks

__all__ = ["MLP"]


class MLP(nn.Module):
    """A multilayer perceptron with ReLU between its linear layers.

    The submodules are ``fc1``, ``act1``, ``fc2``, ``act2``, ..., ``fcN``, registered in forward
    order; no activation follows the last layer, so the output is logits or a regression.

    Shapes: input ``[n, ...]``, flattened from dimension 1 to ``[n, sizes[0]]``;
    output ``[n, sizes[-1]]``.

    Args:
        sizes: Widths from the input to the output, at least two, each at least 1.
        bias: Whether the linear layers add a bias.

    Raises:
        TypeError: ``sizes`` is no sequence of integers.
        ValueError: ``sizes`` has fewer than two widths, or one below 1.

    Source: Sections 1 and 3 of the specification: the clustered network is ``MLP([784, 64, 64, 10],
    bias=False)``, the probed one ``MLP([784, 128, 128, 10])``.

    Example:
        >>> import torch
        >>> from modfast.models import MLP
        >>> model = MLP([64, 32, 10])
        >>> [name for name, _ in model.named_children()]
        ['fc1', 'act1', 'fc2']
        >>> model(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """

    def __init__(self, sizes: Sequence[int], bias: bool = True) -> None:
        super().__init__()
        self.sizes = _checked_sizes(sizes)
        checks.flag("bias", bias)
        checks.room("sizes", sum(8 * a * b for a, b in pairwise(self.sizes)))
        n_layers = len(self.sizes) - 1
        for layer in range(1, n_layers + 1):
            n_in, n_out = self.sizes[layer - 1 : layer + 1]
            self.add_module(f"fc{layer}", nn.Linear(n_in, n_out, bias=bias))
            if layer < n_layers:
                self.add_module(f"act{layer}", nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Returns the output ``[n, sizes[-1]]`` for an input ``[n, ...]``."""
        x = x.flatten(1)
        for module in self.children():
            x = module(x)
        return x


def _checked_sizes(sizes: object) -> tuple[int, ...]:
    rule = f"sizes={sizes!r}: must be a sequence of integers, such as [784, 64, 10]"
    if not isinstance(sizes, Sequence):
        raise TypeError(rule)
    try:
        widths = tuple(checks.integer("sizes", size) for size in sizes)
    except TypeError:
        raise TypeError(rule) from None
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"sizes={sizes!r}: must hold at least two widths, each at least 1")
    return widths
