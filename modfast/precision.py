"""Measures are computed as precisely as their inputs allow, whatever autocast says."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function

P = ParamSpec("P")
T = TypeVar("T")

_DEVICES = ("cpu", "cuda")


def _autocast() -> list[str]:
    return [device for device in _DEVICES if torch.is_autocast_enabled(device)]


@contextmanager
def full_precision() -> Iterator[None]:
    """No autocast within."""
    with ExitStack() as stack:
        for device in _autocast():
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


def precise(function: Callable[P, T]) -> Callable[P, T]:
    """`function`, run in full precision.

    Example:
        >>> import torch
        >>> @precise
        ... def product(a, b):
        ...     return a @ b
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     product(torch.ones(1, 1), torch.full((1, 1), 0.1))
        tensor([[0.1000]])
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if not _autocast():
            return function(*args, **kwargs)
        with full_precision():
            return function(*args, **kwargs)

    return call


class _Product(Function):
    """a @ b of as many dimensions each; its derivatives are taken in full precision too."""

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        with full_precision():
            return a @ b

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor]:
        (slope,), (a, b) = slopes, ctx.saved_tensors
        return product(slope, b.mT), product(a.mT, slope)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        a, b = ctx.saved_tensors
        return product(tangents[0], b) + product(a, tangents[1])

    @staticmethod
    def vmap(
        info: Any, dims: tuple[int | None, int | None], a: Tensor, b: Tensor
    ) -> tuple[Tensor, int]:
        a, b = (
            each.expand(info.batch_size, *each.shape) if dim is None else each.movedim(dim, 0)
            for each, dim in zip((a, b), dims, strict=True)
        )
        return product(a, b), 0


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of `[..., n, k]` and `[..., k, m]`, whose gradient autocast leaves alone as well.

    A backward pass may lie within a region of autocast that the forward pass has left.
    """
    found: Tensor = _Product.apply(a, b)
    return found
