"""Models of the zoo whose forward methods leave something behind, or look at what no call shows."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from network.zoo_case import Case, Net, entry, plain
from torch import Tensor, nn


@entry("a static output buffer")
def _() -> Case:
    class Static(Net):
        out: Tensor

        def forward(self, x: Tensor) -> Tensor:
            self.out[: len(x)] = self.b(torch.tanh(self.a(x)))
            return self.out[: len(x)]

    model = Static()
    model.register_buffer("out", torch.zeros(6, 4))
    return plain(model, "a", moves=("out",))


@entry("tensors in a mapping, written to")
def _() -> Case:
    class Kept(Net):
        def middle(self, h: Tensor) -> Tensor:
            self.kept["h"].add_(h.detach().mean(0))
            return torch.tanh(h) * self.kept["h"]

    return plain(Kept(kept={"h": torch.ones(8)}), "a", moves=("kept",), grows=True)


@entry("weights written to through .data")
def _() -> Case:
    class Shrinking(Net):
        def middle(self, h: Tensor) -> Tensor:
            self.b.weight.data.mul_(0.9)
            return torch.tanh(h)

    return plain(Shrinking(), "a", moves=("weight",), grows=True)


@entry("a counter in a configuration")
def _() -> Case:
    class Counting(Net):
        def middle(self, h: Tensor) -> Tensor:
            self.config.n += 1
            return torch.tanh(h) * self.config.n

    return plain(Counting(config=SimpleNamespace(n=1)), "a", moves=("config",), grows=True)


@entry("a counter that decides")
def _() -> Case:
    class Counting(Net):
        n = 0

        def middle(self, h: Tensor) -> Tensor:
            self.n += 1
            return torch.tanh(h) if self.n % 2 else torch.relu(h)

    return plain(Counting(), "a", moves=("n",), grows=True)


@entry("Python's and numpy's random numbers")
def _() -> Case:
    class Noisy(Net):
        def middle(self, h: Tensor) -> Tensor:
            return torch.tanh(h) * (1 + random.random() + np.random.rand())  # noqa: NPY002

    return plain(Noisy(), "a", random=True)


@entry("a generator of one's own")
def _() -> Case:
    class Drawing(Net):
        def middle(self, h: Tensor) -> Tensor:
            return torch.tanh(h) * torch.rand(8, dtype=h.dtype, generator=self.generator)

    generator = torch.Generator().manual_seed(3)
    return plain(Drawing(generator=generator), "a", random=True, grows=True)


@entry("a value in words")
def _() -> Case:
    class Worded(Net):
        def middle(self, h: Tensor) -> Tensor:
            return torch.tanh(h) * float(f"{h.sum():.3f}")

    return plain(Worded(), "a")


@entry("many tensors written to at once")
def _() -> Case:
    class Many(Net):
        def middle(self, h: Tensor) -> Tensor:
            torch._foreach_mul_([h], 2.0)
            return torch.tanh(h)

    return plain(Many(), "a")


@entry("gradients inside")
def _() -> Case:
    class Gradient(Net):
        def middle(self, h: Tensor) -> Tensor:
            with torch.enable_grad():
                other = h.detach().requires_grad_()
                (slope,) = torch.autograd.grad(other.tanh().sum(), other)
            return h * slope

    return plain(Gradient(), "a")


@entry("sparse inside, an array as attribute")
def _() -> Case:
    class Sparse(Net):
        def middle(self, h: Tensor) -> Tensor:
            return torch.tanh(h.to_sparse().to_dense()) * float(self.scale[1])

    return plain(Sparse(scale=np.array([1.0, 2.0])), "a")


@entry("hooks that come and go")
def _() -> Case:
    class Hooking(Net):
        def forward(self, x: Tensor) -> Tensor:
            def double(module: nn.Module, args: Any) -> Any:
                return (args[0] * 2,)

            handle = self.b.register_forward_pre_hook(double)
            try:
                return self.b(torch.tanh(self.a(x)))
            finally:
                handle.remove()

    return plain(Hooking(), "a")
