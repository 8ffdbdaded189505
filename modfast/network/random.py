"""Random numbers of one's own, although torch's layers draw from the global generators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from modfast.network.turns import RANDOM


class OwnRandom:
    """Within a `with own():` block torch's global generators go on from where the last one ended.

    They begin with a seed, and are what they were when a block ends. Blocks of several threads run
    one after the other: a dropout layer knows no generator but the global one.

    Example:
        >>> own, again = OwnRandom(0, torch.device("cpu")), OwnRandom(0, torch.device("cpu"))
        >>> with own():
        ...     first = torch.rand(3)
        >>> with again():
        ...     bool((torch.rand(3) == first).all())
        True
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._generators = [torch.default_generator]
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            self._generators.append(torch.cuda.default_generators[index])
        self._states = [
            torch.Generator(each.device).manual_seed(seed).get_state() for each in self._generators
        ]

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """The block in which the global generators are this run's."""
        with RANDOM:
            outer = [each.get_state() for each in self._generators]
            for generator, state in zip(self._generators, self._states, strict=True):
                generator.set_state(state)
            try:
                yield
            finally:
                self._states = [each.get_state() for each in self._generators]
                for generator, state in zip(self._generators, outer, strict=True):
                    generator.set_state(state)
