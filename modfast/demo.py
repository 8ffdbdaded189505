"""The experiment of `python -m modfast demo`: what does training into clusters change?

Two networks start from the same weights and see the same batches with the same optimizer; one of
them is also rewarded for the clusterability of a hidden layer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import modfast
from modfast import checks
from modfast._extension import has_ops
from modfast._renamed import warn_renamed
from modfast.ablation import AblationResult, ClusterEvaluation, ablate_units, evaluate_clusters
from modfast.circuits import CircuitSizes, effective_circuit_size
from modfast.clusters import (
    Clusters,
    ModularityReport,
    clusterability,
    find_clusters,
    modularity_report,
)
from modfast.data import Dataset
from modfast.models import MLP
from modfast.training import History, Modularity, fit

__all__ = ["DEFAULTS", "DemoResult", "Settings", "Trained", "run"]

LAYER = "fc2"
SITE = "act2"


@dataclass(frozen=True)
class Settings:
    """What decides a demo's result; the same settings give the same numbers.

    Raises:
        TypeError: counts that are no integers, an alpha that is no number.
        ValueError: values out of range; the message names the setting and the value.

    Example:
        >>> DEFAULTS["digits"].sizes
        (64, 64, 64, 10)
    """

    data: str
    """Name of the data set, for `modfast.data.load`."""
    sizes: tuple[int, int, int, int]
    """Widths of the network; its second layer, between the hidden ones, is clustered."""
    bias: bool
    optimizer: str
    """Base of `modfast.Modularity`."""
    lr: float
    momentum: float
    """0 for optimizers without."""
    batch_size: int
    epochs: int
    clusters: int
    """Number of equal clusters."""
    alpha: float
    """What the clusterability counts against the loss (lambda); 0 is the plain network."""
    seed: int = 0
    """Of the networks' start and of the order of the batches."""
    find: bool = False
    """Whether the clusters are those found in the plain network, instead of consecutive units."""

    def __post_init__(self) -> None:
        checks.count("epochs", self.epochs)
        if checks.count("clusters", self.clusters) > (width := min(self.sizes[1:3])):
            raise ValueError(
                f"clusters must be at most {width}, the units of {self.data}'s hidden layers, "
                f"got {self.clusters}"
            )
        if checks.finite_number("alpha", self.alpha) < 0:
            raise ValueError(f"alpha must be at least 0, got {self.alpha}")
        checks.flag("find", self.find)
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be from 0 to 2**63 - 1, got {self.seed}")

    @property
    def weight(self) -> float:
        """The old name of `alpha`."""
        warn_renamed("Settings.weight", "Settings.alpha")
        return self.alpha


# Measured over eight seeds (physics: five): mean scores of the plain and the clustered network are
# within half a point, clusterability is above .999 in each. MNIST's are the notebook's.
DEFAULTS = {
    "digits": Settings(
        "digits", (64, 64, 64, 10), False, "sgd", 0.03, 0.9, 64, epochs=30, clusters=4, alpha=15.0
    ),
    "mnist": Settings(
        "mnist", (784, 64, 64, 10), False, "sgd", 1e-3, 0.0, 64, epochs=10, clusters=4, alpha=15.0
    ),
    # Two tasks, two clusters. The squared error is small, so the reward must be small too.
    "physics": Settings(
        "physics", (4, 16, 16, 2), True, "adam", 1e-2, 0.0, 256, epochs=40, clusters=2, alpha=1.0
    ),
}


@dataclass(frozen=True)
class Trained:
    """A trained network and what was measured on it."""

    model: MLP
    weight: Tensor
    """Of the clustered layer: `[n_out, n_in]`."""
    clusterability: float
    history: History
    evaluation: ClusterEvaluation
    """On the test data."""
    units: AblationResult | None
    """Of each output of the clustered layer, after its activation, on the test data; None for a
    regression, whose outputs are no logits."""
    circuits: CircuitSizes | None
    """How many weights each class needs, on its test data; None for a regression, and without the
    compiled library, by which it takes seconds instead of hours."""


@dataclass(frozen=True)
class DemoResult:
    """Two networks from one start, and what they were trained on."""

    settings: Settings
    data: Dataset
    clusters: Clusters
    plain: Trained
    clustered: Trained
    chance: ModularityReport | None = None
    """Of the plain layer, where clusters were found in it: what is found in its shuffles too."""

    @property
    def score(self) -> str:
        """What accuracies are: "accuracy", or "R²" for a regression."""
        return "accuracy" if self.data.is_classification else "R²"

    @property
    def class_names(self) -> list[str]:
        """Of the classes; of the regressed values, each of which is a task."""
        if self.data.is_classification:
            return [str(i) for i in range(self.data.n_outputs)]
        return [f"task {chr(ord('A') + i)}" for i in range(self.data.n_outputs)]


def run(
    settings: Settings = DEFAULTS["digits"],
    root: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> DemoResult:
    """Trains a plain and a clustered network from the same start and evaluates both.

    Args:
        settings: which data, networks and training.
        root: the folder that holds MNIST; see `modfast.data.load`.
        progress: show progress bars, where standard error is a terminal and tqdm is installed.

    Raises:
        ValueError: an unknown data set, or "mnist" without `root`.
        FileNotFoundError: MNIST's files are not under `root`.
        ImportError: the library that provides the data is missing, or that clusters are found by.
        FloatingPointError: the loss became NaN or infinite.

    Example:
        >>> import dataclasses
        >>> result = run(dataclasses.replace(DEFAULTS["physics"], epochs=1), progress=False)
        >>> result.clustered.clusterability > result.plain.clusterability
        True
    """
    data = modfast.data.load(settings.data, root)
    _, n_in, n_out, _ = settings.sizes
    clusters = Clusters.equal(n_out, n_in, settings.clusters)
    # With alpha 0 it is the base optimizer itself, so alpha is all that the two differ in.
    model, history = _fit(replace(settings, alpha=0.0), data, clusters, progress)
    chance = None
    if settings.find:
        weight, k, seed = _weight(model), settings.clusters, settings.seed
        clusters = find_clusters(weight, k, "clusterability", refine=True, seed=seed)
        chance = modularity_report(weight, k, seed=seed, progress=progress)
    plain = _measured(model, history, data, clusters, progress)
    clustered = _measured(*_fit(settings, data, clusters, progress), data, clusters, progress)
    return DemoResult(settings, data, clusters, plain, clustered, chance)


@contextmanager
def one_thread() -> Iterator[None]:
    """Steps this small gain nothing from a second thread.

    On a busy machine they lose by it, up to fifty times: OpenMP's threads spin at each operator's
    end until the slowest of them has had its turn on a core.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _fit(
    settings: Settings, data: Dataset, clusters: Clusters, progress: bool
) -> tuple[MLP, History]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = MLP(settings.sizes, bias=settings.bias)
    options: dict[str, Any] = {"momentum": settings.momentum} if settings.momentum else {}
    optimizer = Modularity(
        model.named_parameters(),
        lr=settings.lr,
        alpha=settings.alpha,
        layers=LAYER,
        clusters=clusters,
        base=settings.optimizer,
        **options,
    )
    with one_thread():
        history = fit(
            model,
            data.train,
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            optimizer=optimizer,
            test=data.test,
            seed=settings.seed,
            progress=progress,
        )
    return model, history


def _weight(model: MLP) -> Tensor:
    return model.get_submodule(LAYER).get_parameter("weight").detach()


def _measured(
    model: MLP, history: History, data: Dataset, clusters: Clusters, progress: bool
) -> Trained:
    weight = _weight(model)
    evaluation = evaluate_clusters(model, data.test, LAYER, clusters)
    units = circuits = None
    if data.is_classification:
        units = ablate_units(model, data.test_x, SITE, targets=data.test_y)
        if has_ops():
            circuits = effective_circuit_size(model, *data.test, progress=progress)
    share = float(clusterability(weight, clusters))
    return Trained(model, weight, share, history, evaluation, units, circuits)
