"""A training loop over tensors in memory, which can be killed and resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from modfast import checks, plots
from modfast._renamed import named
from modfast.models import MLP
from modfast.network.names import in_mode
from modfast.progress import bar
from modfast.reference import ratio
from modfast.results import Result
from modfast.scores import check_targets, scores
from modfast.training.checkpoint import load_checkpoint, save_checkpoint
from modfast.training.direct import DirectMLP, covers
from modfast.training.optimizer import Modularity
from modfast.training.random import OwnRandom

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Output = Callable[[Any], Tensor] | str | int
OptimizerMaker = Callable[[Iterable[tuple[str, nn.Parameter]]], torch.optim.Optimizer]


@dataclass(frozen=True, eq=False, repr=False)
class History(Result):
    """What happened during training; tensors on the CPU."""

    loss: Tensor
    """The batch's loss before each step, without any clusterability term: `[steps]`."""
    clusterability: Tensor
    """Of each regularized layer before each step: float64 `[steps, layers]`, layers 0 if none."""
    accuracy: Tensor
    """On the test data (R^2 for real targets): float64 `[evaluations]`, empty without any."""
    accuracy_steps: Tensor
    """How many steps had been taken at each evaluation: int64 `[evaluations]`."""
    backend: str = ""
    """Which way it was computed."""

    def plot(self, score: str = "accuracy") -> Figure:
        """Loss, clusterability and accuracy over steps."""
        return self.overlay({"": self}, score)

    @classmethod
    def overlay(cls, results: Mapping[str, History], score: str = "accuracy") -> Figure:
        """Several runs over each other, by name; `score` is what the accuracy is called.

        Raises:
            TypeError, ValueError: other values than results, none.
        """
        named = cls.by_name(results)
        return plots.history(
            {name: each.loss for name, each in named.items()},
            {name: each.clusterability for name, each in named.items()},
            {name: each.accuracy for name, each in named.items()},
            {name: each.accuracy_steps for name, each in named.items()},
            score,
        )


@named("seed", "progress", "checkpoint", "output")
@torch.inference_mode(False)
@torch.enable_grad()
def fit(
    model: nn.Module,
    train: tuple[Tensor, Tensor],
    epochs: int,
    batch_size: int = 64,
    optimizer: torch.optim.Optimizer | OptimizerMaker | None = None,
    regularizer: Callable[[], Tensor] | None = None,
    test: tuple[Tensor, Tensor] | None = None,
    *,
    seed: int | None = None,
    progress: bool = True,
    checkpoint: str | Path | None = None,
    output: Output | None = None,
) -> History:
    """Trains a model on tensors in memory: shuffled batches, no per-sample Python.

    The loss is cross-entropy for int64 targets and the mean squared error for real ones, plus
    `regularizer()` if given. The data moves to the model's device once.

    Args:
        model: maps `[n, ...]` samples to `[n, n_outputs]`; trained in place.
        train: samples `[n, ...]`, and targets `[n]` (int64 classes) or `[n, n_outputs]` (real).
        epochs: passes over the data in all, those before a resumed checkpoint included.
        batch_size: samples per step; the last batch of an epoch may be smaller.
        optimizer: a torch optimizer, or a callable that makes one from
            `model.named_parameters()` such as `modfast.Modularity`; by default Adam at 1e-3.
        regularizer: called at each step for a term to add, such as `modfast.ClusterabilityLoss`.
        test: samples and targets to evaluate on before training and after each epoch.
        seed: fixes batch order and the model's own randomness (dropout), whatever other threads
            draw; torch's global random state is left as it was. Layers draw from the global
            generators, so steps of seeded runs in several threads take turns. None draws from the
            global state.
        progress: show a progress bar, where standard error is a terminal and tqdm is installed.
        checkpoint: file to write after each epoch, atomically. If it is there already, training
            resumes from it and gives the weights of an uninterrupted run.
        output: where the model does not return a tensor, what its outputs are: a callable that
            gets what the model returned, or a key or index of it; by default `.logits`.

    Returns:
        The history, that of resumed epochs included.

    Raises:
        TypeError: arguments of the wrong kind.
        ValueError: empty or mismatched data, samples that the model refuses, values that are not
            finite, classes out of range, nothing to train, a last batch of one sample that
            BatchNorm cannot train on, a checkpoint of another run; nothing has been trained then.
        FloatingPointError: the loss became NaN or infinite.

    Example:
        >>> import torch, modfast
        >>> data = modfast.data.load("digits")
        >>> model = modfast.models.MLP([64, 32, 32, 10])
        >>> history = modfast.fit(model, data.train, epochs=2, test=data.test, seed=0)
        >>> history.accuracy.shape
        torch.Size([3])
    """
    checks.module("model", model)
    epochs, batch_size = checks.count("epochs", epochs), checks.count("batch_size", batch_size)
    seed = None if seed is None else checks.seed("seed", seed)
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("model must have parameters that require gradients, got none to train")
    device = next(model.parameters()).device
    x, y = _on_device("train", train, device)
    held_out = None if test is None else _on_device("test", test, device)
    for name, value in (("optimizer", optimizer), ("regularizer", regularizer)):
        if not (value is None or callable(value) or isinstance(value, torch.optim.Optimizer)):
            raise TypeError(f"{name} must be callable, got {value!r}")
    random = nullcontext if seed is None else OwnRandom(seed, device)
    # Random numbers that these passes draw are not among the run's.
    with (nullcontext if seed is None else OwnRandom(seed, device))():
        n_outputs = _n_outputs(model, "train", x, output)
        if held_out is not None:
            _n_outputs(model, "test", held_out[0], output)
        if (len(x) % batch_size or min(batch_size, len(x))) == 1:
            _refuse_batch_norm(model, x[:1], f"{batch_size} for {len(x)} samples")
    check_targets("train", y, len(x), n_outputs)
    if held_out is not None:
        check_targets("test", held_out[1], len(held_out[0]), n_outputs)
    if optimizer is None:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    elif not isinstance(optimizer, torch.optim.Optimizer):
        optimizer = optimizer(model.named_parameters())
    run = _Run(model, x, y, batch_size, optimizer, regularizer, held_out, output, seed, random)
    run.train(epochs, progress, None if checkpoint is None else Path(checkpoint))
    return run.history()


class _Run:
    """The state of one training run, and its checkpoint."""

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        batch_size: int,
        optimizer: torch.optim.Optimizer,
        regularizer: Callable[[], Tensor] | None,
        test: tuple[Tensor, Tensor] | None,
        output: Output | None,
        seed: int | None,
        random: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.output, self.seed, self.random = output, seed, random
        self.model, self.x, self.y, self.batch_size = model, x, y, batch_size
        self.optimizer, self.regularizer, self.test = optimizer, regularizer, test
        self.criterion = functional.mse_loss if y.is_floating_point() else functional.cross_entropy
        # The optimizer has its sums at hand; the loss reads its weights once more for them.
        knows_sums = optimizer if isinstance(optimizer, Modularity) else regularizer
        self.clustered = knows_sums if hasattr(knows_sums, "sums") else None
        # The regularizer's gradient adds to what autograd leaves, not to what is set directly.
        self.set_gradients: Callable[[Tensor, Tensor], Tensor] = (
            DirectMLP(cast(MLP, model))
            if regularizer is None and output is None and covers(model)
            else self.set_gradients_by_autograd
        )
        self.generator = torch.Generator("cpu")  # on any default device
        self.losses: list[Tensor] = []
        self.sums: list[Tensor] = []
        self.accuracies: list[Tensor] = []
        self.accuracy_steps: list[int] = []
        self.epoch = 0

    def train(self, epochs: int, progress: bool, checkpoint: Path | None) -> None:
        seed = self.seed
        if seed is None:
            seed = int(torch.randint(2**62, (), device="cpu"))
        self.generator.manual_seed(seed)
        if checkpoint is not None and checkpoint.exists():
            with self.random():
                load_checkpoint(checkpoint, self, epochs)
        elif self.test is not None:
            self.evaluate()
        for _ in bar(range(self.epoch, epochs), "epoch", progress):
            with in_mode(self.model, training=True):
                self.one_epoch()
            if self.test is not None:
                self.evaluate()
            self.epoch += 1
            if checkpoint is not None:
                with self.random():
                    save_checkpoint(checkpoint, self)

    def one_epoch(self) -> None:
        order = torch.randperm(len(self.x), generator=self.generator, device="cpu")
        order = order.to(self.x.device)
        losses, sums = [], []
        # Nothing in it is random, and the smallest networks' steps take little longer than a block.
        direct = isinstance(self.set_gradients, DirectMLP)
        for index in order.split(self.batch_size):
            if self.clustered is not None:
                sums.append(self.clustered.sums.clone())
            x, y = self.x.index_select(0, index), self.y.index_select(0, index)
            with nullcontext() if direct else self.random():
                losses.append(self.set_gradients(x, y))
                self.optimizer.step()
        found = torch.stack(losses).cpu()
        if not torch.isfinite(found).all():
            bad = int((~torch.isfinite(found)).nonzero()[0])
            raise FloatingPointError(
                f"the loss became {float(found[bad])} at step {bad} of epoch {self.epoch}; "
                "a smaller learning rate may help"
            )
        self.losses.append(found)
        if sums:
            self.sums.append(torch.stack(sums).cpu())

    def set_gradients_by_autograd(self, x: Tensor, y: Tensor) -> Tensor:
        loss = self.criterion(_pick(self.model(x), self.output), y)
        total = loss if self.regularizer is None else loss + self.regularizer()
        self.optimizer.zero_grad()
        total.backward()
        return loss.detach()

    @torch.no_grad()
    def evaluate(self) -> None:
        assert self.test is not None
        with in_mode(self.model, training=False), self.random():
            outputs = _pick(self.model(self.test[0]), self.output)
        self.accuracies.append(scores(outputs, self.test[1])[0].cpu())
        self.accuracy_steps.append(sum(map(len, self.losses)))

    def history(self) -> History:
        steps = sum(map(len, self.losses))
        none = torch.zeros(0, dtype=torch.float64, device="cpu")
        sums = torch.cat(self.sums) if self.sums else none.new_zeros(steps, 0, 2)
        return History(
            torch.cat(self.losses) if self.losses else none.float(),
            ratio(sums),
            torch.stack(self.accuracies) if self.accuracies else none,
            torch.tensor(self.accuracy_steps, dtype=torch.int64, device="cpu"),
        )


def _on_device(argument: str, data: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    x, y = checks.pair(argument, data)
    if x.dim() == 0 or len(x) == 0:
        raise ValueError(f"{argument} must not be empty, got 0 samples")
    checks.finite(argument, x)
    # What was made in inference mode cannot be trained on, a copy of it can.
    x, y = (each.clone() if each.is_inference() else each for each in (x, y))
    return x.to(device), y.to(device)


def _pick(outputs: Any, chosen: Output | None) -> Any:
    """The tensor of a model's outputs; see `fit`."""
    if chosen is None:
        return outputs if isinstance(outputs, Tensor) else getattr(outputs, "logits", outputs)
    return chosen(outputs) if callable(chosen) else outputs[chosen]


@torch.no_grad()
def _n_outputs(model: nn.Module, argument: str, x: Tensor, output: Output | None) -> int:
    """How many outputs a model has, by what it makes of the first sample.

    Raises:
        ValueError: it does not take the samples, or gives outputs of another shape.
    """
    with in_mode(model, training=False):
        try:
            found = model(x[:1])
        except (RuntimeError, ValueError, IndexError) as error:
            raise ValueError(
                f"{argument} must hold samples that the model takes, got {x.dtype} of shape "
                f"{tuple(x.shape)}: {error}"
            ) from error
        try:
            outputs = _pick(found, output)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(
                f"output must be a key or index of what the model returns, or take it, got "
                f"{output!r} for a {type(found).__name__}: {error!r}"
            ) from error
    if not isinstance(outputs, Tensor) or outputs.dim() != 2:
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        way_out = "" if isinstance(outputs, Tensor) else "; output= says which part it is"
        raise ValueError(
            f"model must return [n, n_outputs] for n samples, got {shape} for one{way_out}"
        )
    return outputs.shape[1]


@torch.no_grad()
def _refuse_batch_norm(model: nn.Module, x: Tensor, got: str) -> None:
    """Refuses a batch of one sample where BatchNorm will train on one value a channel.

    Raises:
        ValueError: it would.
    """
    single: list[str] = []

    def look(name: str, inputs: Tensor) -> None:
        if inputs.numel() == inputs.shape[1]:
            single.append(name)

    with in_mode(model, training=True):  # a layer may refuse to be put into it
        norms = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
        }
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: look(name, inputs[0]))
        for name, module in norms.items()
    ]
    try:
        with in_mode(model, training=False):
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    if single:
        raise ValueError(
            "batch_size must leave more than one sample for the last batch, of which the "
            f"BatchNorm {single[0]!r} takes the variance, got {got}"
        )
