"""What the models of the zoo are made of."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@dataclass
class Case:
    """A model, and how it is to be looked at."""

    model: nn.Module
    inputs: Any
    """A tensor, a tuple of positional arguments or a mapping of keyword arguments."""
    sites: Mapping[str, int]
    """The dimension of the units, by site; a negative one counts from the last."""
    targets: Tensor
    """A class, or -100 for none, for each position of the logits."""
    layer: str | None = None
    """The layer whose weight is the odd one, or else one with a plain weight."""
    output: Callable[[Any], Tensor] | str | None = None
    """How the logits are had from what the model returns."""
    change: Callable[[Case], None] = field(default=lambda case: reweigh(case))
    """Makes another network of the model, or other inputs, by a way that is easily missed."""
    ask: frozenset[str] = frozenset()
    """Sites whose units' dimension cannot be known and must be given."""
    rows: bool = True
    """Whether the inputs' tensors can be cut along dimension 0."""
    moves: tuple[str, ...] = ()
    """Attributes that the model's own forward method sets."""
    dtype: torch.dtype = torch.float64
    """The narrowest in which something is computed."""
    grows: bool = False
    """Whether a pass changes what the next one gives, so that each must begin with a new model."""
    seen: Any = None
    """How it was when it was last looked at."""
    random: bool = False
    """Whether the model draws random numbers in eval mode."""


Builder = Callable[[], Case]
BUILDERS: dict[str, Builder] = {}


def entry(name: str) -> Callable[[Builder], Builder]:
    """Puts a builder into the zoo under a name that says what is odd about its model."""

    def add(builder: Builder) -> Builder:
        assert name not in BUILDERS, name
        BUILDERS[name] = builder
        return builder

    return add


def build(name: str, dtype: torch.dtype = torch.float64) -> Case:
    """A case of its own, in eval mode and in float64 unless its dtype is what is odd."""
    with seeded(zlib.crc32(name.encode()), dtype):
        case = BUILDERS[name]()
    case.model.eval()
    return case


@contextmanager
def same_numbers() -> Iterator[None]:
    """All global generators at one state, in a block that leaves no trace."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


@contextmanager
def seeded(seed: int, dtype: torch.dtype = torch.float64) -> Iterator[None]:
    """Seeded global generators and float64 by default, for a block that leaves no trace."""
    states = random.getstate(), np.random.get_state(), torch.get_default_dtype()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
            torch.set_default_dtype(states[2])


def reweigh(case: Case) -> None:
    """Other weights, as other parameters than those that a function may have seen before."""
    model = case.model
    state = {name: 1.5 * p.detach() for name, p in model.named_parameters(remove_duplicate=False)}
    model.load_state_dict(state, strict=False, assign=True)


def setting(place: Callable[[nn.Module], Any], key: Any, value: Any) -> Callable[[Case], None]:
    """A change that sets an attribute, or an item, of something that the model holds."""

    def change(case: Case) -> None:
        owner = place(case.model)
        if isinstance(owner, (list, dict)):
            owner[key] = value
        else:
            setattr(owner, key, value)

    return change


def labels(classes: int, *shape: int) -> Tensor:
    """Targets of every class, the last of them -100 where there is a position to each sample."""
    found = (torch.arange(torch.Size(shape).numel()) * 5 + 1).remainder(classes).reshape(shape)
    if found.dim() > 1:
        found[..., -1] = -100
    return found


class Net(nn.Module):
    """A layer `a`, whatever a subclass does between, a layer `b`: 5 -> 8 -> 4."""

    def __init__(self, **more: Any) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 4)
        for name, each in more.items():
            setattr(self, name, each)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.middle(self.a(x)))

    def middle(self, h: Tensor) -> Tensor:
        return torch.tanh(h)


def plain(model: nn.Module, *sites: str, inputs: Any = None, **more: Any) -> Case:
    """A case whose units lie in the last dimension and whose logits are `[6, 4]`."""
    inputs = torch.randn(6, 5) if inputs is None else inputs
    more.setdefault("layer", "b")
    return Case(model, inputs, dict.fromkeys(sites, -1), labels(4, 6), **more)
