"""The notebooks' networks, trained once for all studies of a run."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from functools import cache, cached_property

import torch
from torch import nn

import modfast
from modfast import demo
from modfast.data import Dataset
from modfast.models import MLP
from modfast.progress import bar
from modfast.tasks import TaskStudy
from modfast.training import fit

EPOCHS = 5


class Networks:
    """Networks by seed."""

    def __init__(self, root: str | os.PathLike[str] | None, seeds: int, progress: bool) -> None:
        self.root, self.seeds, self.progress = root, range(seeds), progress
        self.probed = cache(self._probed)
        self.pair = cache(self._pair)
        self.tasks = cache(self._tasks)

    @cached_property
    def mnist(self) -> Dataset:
        """Real MNIST."""
        return modfast.data.load("mnist", self.root)

    @cached_property
    def physics(self) -> Dataset:
        """N4's two tasks F = m a."""
        return modfast.data.load("physics")

    def untrained(self, seed: int) -> nn.Module:
        """784-128-128-10, which N0 probes, as it starts."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return MLP([784, 128, 128, 10])

    def _probed(self, seed: int) -> nn.Module:
        model = self.untrained(seed)
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        with demo.one_thread():
            fit(
                model,
                self.mnist.train,
                epochs=EPOCHS,
                optimizer=optimizer,
                seed=seed,
                progress=self.progress,
            )
        return model

    def _pair(self, seed: int) -> demo.DemoResult:
        """N1's plain and clustered network, from one start."""
        result = demo.run(replace(demo.DEFAULTS["mnist"], seed=seed), self.root, self.progress)
        return replace(result, data=self.mnist)  # one copy for all seeds

    def _tasks(self, n: int) -> TaskStudy:
        """N4's networks of two tasks, the first n."""
        return TaskStudy.train(self.physics.train, n_models=n, progress=self.progress)

    def each(self, description: str) -> Iterable[int]:
        """The seeds, under a progress bar."""
        return bar(self.seeds, description, self.progress)
