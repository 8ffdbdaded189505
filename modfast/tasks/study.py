"""What holds for a network from one start, and what for a hundred?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from modfast import checks, plots
from modfast._renamed import named
from modfast.models import MLP
from modfast.network.random import OwnRandom
from modfast.ops import train_mlps_
from modfast.progress import bar
from modfast.reference import run_mlps, split_mlps
from modfast.results import Result
from modfast.tasks.comparison import TaskComparison, compare_tasks
from modfast.tasks.distinct import check_rows

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# Epochs in one call of the operator, between two looks at the progress bar.
_EPOCHS_AT_ONCE = 50


@dataclass(frozen=True, eq=False, repr=False)
class TaskComparisons(Result):
    """How far the sites of m networks keep t tasks apart; s sites, float64 on the CPU."""

    sites: tuple[str, ...]
    capture: Tensor
    """`task_capture` of each network's sites: `[m, s]`."""
    cosine: Tensor
    """Between the tasks' mean gradients: `[m, s, t, t]`."""
    overlap: Tensor
    """The mean |cosine| between the tasks' distinct gradients: `[m, s, t, t]`."""
    n_distinct: Tensor
    """Distinct gradients of each task: int64 `[m, s, t]`."""
    backend: str = ""
    """Which way it was computed."""

    def plot(self) -> Figure:
        """Each network's capture and the first two tasks' overlap, site by site."""
        return plots.task_comparisons(self.capture, self.overlap, self.sites)


@dataclass(frozen=True, eq=False, repr=False)
class TaskStudy(Result):
    """m networks of one shape, trained on the same tasks from different starts; see `train`.

    Example:
        >>> import modfast
        >>> data = modfast.data.load("physics")
        >>> study = modfast.TaskStudy.train(data.train, n_models=3, epochs=10)
        >>> study.losses.shape, study.validate(data.test).shape
        (torch.Size([3, 10]), torch.Size([3]))
        >>> study.compare(modfast.data.physics_grids(20)).capture.shape  # input, act1, act2
        torch.Size([3, 3])
    """

    sizes: tuple[int, ...]
    """Widths from the input to the output."""
    parameters: Tensor
    """`[m, p]`, a row for each network, as `torch.nn.utils.parameters_to_vector` orders them;
    on the data's device, as the losses are."""
    losses: Tensor
    """The mean squared error before each epoch: float64 `[m, epochs]`."""

    @classmethod
    @named("seed", "progress")
    def train(
        cls,
        data: tuple[Tensor, Tensor],
        sizes: Sequence[int] = (4, 16, 16, 2),
        n_models: int = 100,
        epochs: int = 1000,
        lr: float = 1e-2,
        *,
        seed: int = 0,
        progress: bool = True,
    ) -> TaskStudy:
        """Trains many MLPs with ReLU at once, by full-batch Adam on the mean squared error.

        Network i is `modfast.models.MLP(sizes)` made after `torch.manual_seed(seed + i)`, and its
        training is that of `torch.optim.Adam` with all samples in each step, up to rounding.

        Args:
            data: samples `[n, sizes[0]]` and targets `[n, sizes[-1]]`, float32 or float64, on the
                device to train on.
            sizes: widths from the input to the output.
            n_models: how many networks.
            epochs: Adam's steps.
            lr: Adam's learning rate.
            seed: of the first network; torch's global random state is left as it was.
            progress: show a progress bar, where standard error is a terminal.

        Raises:
            TypeError, ValueError: data of other types or shapes or that are not finite, numbers out
                of range.
            FloatingPointError: a network's loss became NaN or infinite.

        Source: N4, which trains 100 networks of 4-16-16-2 for 1,000 epochs, one by one.
        """
        n_models, epochs = checks.count("n_models", n_models), checks.count("epochs", epochs)
        seed = checks.seed("seed", seed)
        x, y = checks.pair("data", data)
        checks.floating("data[0]", x)
        checks.floating("data[1]", y)
        checks.finite("data[0]", x)
        checks.finite("data[1]", y)
        model = _empty(sizes, torch.float32, torch.device("cpu"))
        n, (first, *_, last) = len(x) if x.dim() else 0, model.sizes
        if (x.shape, y.shape, x.dtype) != ((n, first), (n, last), y.dtype):
            raise ValueError(
                f"data must be [n, {first}] and [n, {last}], as sizes, of one dtype, "
                f"got {[*x.shape]} and {[*y.shape]}, {x.dtype} and {y.dtype}"
            )
        starts = []
        for i in range(n_models):
            with OwnRandom(seed + i, torch.device("cpu"))():
                for layer in model.children():
                    if isinstance(layer, nn.Linear):
                        layer.reset_parameters()
            starts.append(nn.utils.parameters_to_vector(model.parameters()).detach())
        parameters = torch.stack(starts).to(x)
        state = torch.zeros_like(parameters), torch.zeros_like(parameters)
        losses = []
        for step in bar(range(0, epochs, _EPOCHS_AT_ONCE), f"{_EPOCHS_AT_ONCE} epochs", progress):
            n = min(_EPOCHS_AT_ONCE, epochs - step)
            losses.append(train_mlps_(x, y, model.sizes, parameters, *state, step, n, lr))
            bad = losses[-1].isfinite().logical_not().nonzero()
            if len(bad):
                raise FloatingPointError(
                    f"the loss of network {int(bad[0, 0])} became NaN or infinite at epoch "
                    f"{step + int(bad[0, 1])}; a smaller learning rate may help"
                )
        return cls(model.sizes, parameters, torch.cat(losses, dim=1))

    def __len__(self) -> int:
        return len(self.parameters)

    def model(self, index: int) -> MLP:
        """One of the networks, on its own.

        Raises:
            TypeError: no integer.
            IndexError: there is none of that number.
        """
        index = checks.integer("index", index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"index must be from {-len(self)} to {len(self) - 1}, got {index}")
        row = self.parameters[index].clone()
        model = _empty(self.sizes, row.dtype, row.device)
        nn.utils.vector_to_parameters(row, model.parameters())
        return model

    def outputs(self, x: Tensor) -> Tensor:
        """What all networks make of samples `[n, inputs]`: `[m, n, outputs]`.

        Raises:
            TypeError: samples of another dtype than the networks.
            ValueError: of another shape, on another device, or not finite.
        """
        self._check("x", x, self.sizes[0])
        return run_mlps(x, split_mlps(self.parameters, self.sizes))[-1]

    def validate(self, data: tuple[Tensor, Tensor]) -> Tensor:
        """Each network's mean squared error on other data: float64 `[m]`.

        Raises:
            TypeError, ValueError: as `outputs`, of samples and targets; not as many of both.
        """
        x, y = checks.pair("data", data)
        self._check("data[0]", x, self.sizes[0])
        outputs = self.outputs(x)
        self._check("data[1]", y, self.sizes[-1])
        if len(x) != len(y):
            raise ValueError(
                f"data must hold as many targets as samples, got {len(x)} and {len(y)}"
            )
        return (outputs - y).double().square().mean((1, 2))

    def _check(self, argument: str, values: Tensor, width: int) -> None:
        check_rows(argument, values)
        if values.shape[1] != width:
            raise ValueError(f"{argument} must have shape [n, {width}], got {list(values.shape)}")
        if values.dtype != self.parameters.dtype:
            raise TypeError(
                f"{argument} must be {self.parameters.dtype}, as the networks, got {values.dtype}"
            )
        if values.device != self.parameters.device:
            raise ValueError(f"{argument} must be on {self.parameters.device}, got {values.device}")

    @named("progress")
    def compare(
        self,
        inputs_by_task: Sequence[Tensor] | Tensor,
        sites: str | Sequence[str] | None = None,
        *,
        progress: bool = True,
    ) -> TaskComparisons:
        """How far each network's sites keep the tasks apart.

        Args:
            inputs_by_task: as in `compare_tasks`.
            sites: by default the input and the hidden layers after their activations.
            progress: show a progress bar, where standard error is a terminal.

        Raises:
            TypeError, ValueError: as `compare_tasks`.
        """
        if sites is None:
            sites = ["input", *(f"act{layer}" for layer in range(1, len(self.sizes) - 1))]
        each = [
            compare_tasks(self.model(i), inputs_by_task, sites)
            for i in bar(range(len(self)), "network", progress)
        ]
        names = tuple(each[0])

        def collected(value: Callable[[TaskComparison], Tensor]) -> Tensor:
            return torch.stack([torch.stack([value(one[s]) for s in names]) for one in each]).cpu()

        return TaskComparisons(
            names,
            collected(lambda found: found.capture),
            collected(lambda found: found.cosine),
            collected(lambda found: found.overlap),
            collected(
                lambda found: torch.tensor(
                    [len(each.norms) for each in found.distinct], device="cpu"
                )
            ),
        )

    def plot(self) -> Figure:
        """The networks' losses over the epochs: lowest and highest, quartiles and the median."""
        return plots.task_study(self.losses)


def _empty(sizes: Sequence[int], dtype: torch.dtype, device: torch.device) -> MLP:
    """A network without a start, for which no random numbers are drawn."""
    with torch.device("meta"):
        model = MLP(sizes)
    return model.to(dtype).to_empty(device=device)
