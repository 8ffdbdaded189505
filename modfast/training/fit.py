"""A training loop, which can be killed and resumed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from modfast import checks, plots
from modfast._renamed import named
from modfast.models import MLP
from modfast.network.inputs import Batch
from modfast.network.interrupts import deliver, under
from modfast.network.logits import Output, check_classes, check_output, pick, read_rows
from modfast.network.names import in_mode, modules_of, unwrapped
from modfast.network.random import OwnRandom
from modfast.network.samples import Data
from modfast.network.sites import Site
from modfast.network.turns import RANDOM, alone
from modfast.network.visits import EachVisit, at_sites
from modfast.progress import bar
from modfast.reference import ratio
from modfast.results import Result
from modfast.scores import class_scores, scores
from modfast.training.checkpoint import load_checkpoint, save_checkpoint
from modfast.training.direct import DirectMLP, covers
from modfast.training.feed import Feed
from modfast.training.optimizer import Modularity

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

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
@under(partial(torch.inference_mode, False), torch.enable_grad)
def fit(
    model: nn.Module,
    train: Data,
    epochs: int,
    batch_size: int | None = None,
    optimizer: torch.optim.Optimizer | OptimizerMaker | None = None,
    regularizer: Callable[[], Tensor] | None = None,
    test: Data | None = None,
    *,
    seed: int | None = None,
    progress: bool = True,
    checkpoint: str | Path | None = None,
    output: Output = None,
) -> History:
    """Trains a model on tensors in memory, without per-sample Python, or on a data set or loader.

    The loss is cross-entropy for classes and the mean squared error for real targets, plus
    `regularizer()` if given. Tensors move to the model's device once, other data batch by batch.

    Args:
        model: maps samples to `[n, n_outputs]`, or `[n, ..., n_outputs]` with as many targets;
            trained in place.
        train: samples with targets, read by the same rules everywhere: a pair (inputs, targets) or
            a mapping of inputs with `labels`, a Dataset, or a DataLoader. Targets are integer
            classes `[n, ...]` or real values `[n, ..., n_outputs]`. Classes of -100, and positions
            that an `attention_mask` leaves out, count nowhere.
        epochs: passes over the data in all, those before a resumed checkpoint included.
        batch_size: samples per step, by default 64; the last batch of an epoch may be smaller. A
            DataLoader has its own size, and its own order, drawn anew in each epoch.
        optimizer: a torch optimizer, or a callable that makes one from
            `model.named_parameters()` such as `modfast.Modularity`; by default Adam at 1e-3.
        regularizer: called at each step for a term to add, such as `modfast.ClusterabilityLoss`.
        test: such data to evaluate on before training and after each epoch.
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
            BatchNorm cannot train on, a checkpoint of another run. Nothing has been trained then,
            unless by the batches before it of a data set or loader.
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
    epochs = checks.count("epochs", epochs)
    batch_size = None if batch_size is None else checks.count("batch_size", batch_size)
    seed = None if seed is None else checks.seed("seed", seed)
    check_output(output)
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("model must have parameters that require gradients, got none to train")
    for name, value in (("optimizer", optimizer), ("regularizer", regularizer)):
        if not (value is None or callable(value) or isinstance(value, torch.optim.Optimizer)):
            raise TypeError(f"{name} must be callable, got {value!r}")
    with alone(modules_of(model)):
        feed = Feed(model, train, "train", batch_size)
        held_out = None if test is None else Feed(model, test, "test")
        device = next(model.parameters()).device
        # Random numbers that these passes draw are not among the run's.
        aside = nullcontext if seed is None else OwnRandom(seed, device)
        for each in (feed, held_out):
            if each is not None and each.whole is not None:
                with aside():
                    _try_out(model, each, each.whole, output)
        random = (lambda: RANDOM) if seed is None else OwnRandom(seed, device)
        if optimizer is None:
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        elif not isinstance(optimizer, torch.optim.Optimizer):
            made: Any = optimizer(model.named_parameters())
            if not isinstance(made, torch.optim.Optimizer):
                raise TypeError(f"optimizer must make an Optimizer, got {checks.shown(made)}")
            optimizer = made
        path = None if checkpoint is None else checks.path("checkpoint", checkpoint)
        run = _Run(model, feed, optimizer, regularizer, held_out, output, seed, random, aside)
        run.train(epochs, progress, path)
        return run.history()


class _Run:
    """The state of one training run, and its checkpoint."""

    def __init__(
        self,
        model: nn.Module,
        feed: Feed,
        optimizer: torch.optim.Optimizer,
        regularizer: Callable[[], Tensor] | None,
        test: Feed | None,
        output: Output,
        seed: int | None,
        random: Callable[[], AbstractContextManager[Any]],
        aside: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.output, self.seed, self.random, self.aside = output, seed, random, aside
        self.model, self.feed, self.test = model, feed, test
        self.optimizer, self.regularizer = optimizer, regularizer
        # The optimizer has its sums at hand; the loss reads its weights once more for them.
        knows_sums = optimizer if isinstance(optimizer, Modularity) else regularizer
        self.clustered = knows_sums if hasattr(knows_sums, "sums") else None
        # The regularizer's gradient adds to what autograd leaves, not to what is set directly.
        self.plain = feed.plain
        direct = regularizer is None and output is None and self.plain and covers(model)
        self.direct = DirectMLP(cast(MLP, model)) if direct else None
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
        losses, sums = [], []
        # Nothing in it is random, and the smallest networks' steps take little longer than a block.
        random = nullcontext if self.direct else self.random
        for batch in self.batches():
            deliver()
            if self.clustered is not None:
                sums.append(self.clustered.sums.clone())
            with random():
                losses.append(self.set_gradients(batch))
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

    def batches(self) -> Iterator[Batch]:
        """Those of an epoch."""
        drawn = self.feed.epoch(self.generator)
        if self.feed.whole is not None:
            yield from drawn
            return
        first = not self.losses
        while True:
            with self.random():  # which a loader draws its order from
                batch = next(drawn, None)
            if batch is None:
                return
            if first:
                with self.aside():
                    _try_out(self.model, self.feed, batch, self.output)
            first = False
            yield batch

    def set_gradients(self, batch: Batch) -> Tensor:
        """The loss of a batch, whose gradients the parameters have then."""
        if self.direct is not None:
            return self.direct(batch.args[0], cast(Tensor, batch.targets))
        args, kwargs = batch.arguments()
        logits = pick(self.model(*args, **kwargs), self.output, batch)
        y = cast(Tensor, batch.targets)
        if not self.plain or logits.dim() > 2:  # tensors in memory have been looked at
            logits, y = _counted(logits, batch, "train")
        loss: Tensor = (functional.mse_loss if _real(y) else functional.cross_entropy)(logits, y)
        total = loss
        if self.regularizer is not None:
            total = loss + checks.scalar("regularizer", self.regularizer())
        self.optimizer.zero_grad()
        total.backward()
        return loss.detach()

    @torch.no_grad()
    def evaluate(self) -> None:
        assert self.test is not None
        outputs, targets = [], []
        with in_mode(self.model, training=False), self.random():
            for batch in self.test:
                args, kwargs = batch.arguments()
                found = pick(self.model(*args, **kwargs), self.output, batch)
                logits, y = _counted(found, batch, "test")
                outputs.append(logits if _real(y) else logits.argmax(1))
                targets.append(y)
        x, y = torch.cat(outputs), torch.cat(targets)
        score, _ = scores(x, y) if _real(y) else class_scores(x, y, logits.shape[1])
        self.accuracies.append(score.cpu())
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


def _real(targets: Tensor) -> bool:
    return targets.is_floating_point()


def _counted(logits: Tensor, batch: Batch, argument: str) -> tuple[Tensor, Tensor]:
    """Rows of logits that count, with their targets."""
    y = cast(Tensor, batch.targets)
    if not _real(y):
        rows = read_rows(logits, batch, argument)
        return rows.logits, cast(Tensor, rows.targets)
    _check_real(argument, y, logits.shape)
    rows = read_rows(logits, replace(batch, targets=None), argument)
    return rows.logits, rows.of(y)


def _check_real(argument: str, y: Tensor, shape: Sequence[int]) -> None:
    if tuple(y.shape) != tuple(shape):
        raise ValueError(
            f"{argument} must have real targets of shape {tuple(shape)}, as the model's outputs, "
            f"got {tuple(y.shape)}"
        )
    checks.finite(argument, y)


@torch.no_grad()
def _try_out(model: nn.Module, feed: Feed, batch: Batch, output: Output) -> None:
    """Refuses samples that a model does not take, by the first, and targets that do not fit.

    Raises:
        TypeError, ValueError: such; outputs of another shape; an epoch's last batch of one sample
            that BatchNorm cannot train on.
    """
    one, n = batch.rows(slice(0, 1)) if feed.whole is not None else batch, batch.n_samples
    args, kwargs = one.arguments()
    with in_mode(model, training=False):
        try:
            found = model(*args, **kwargs)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            kinds = ", ".join(f"{x.dtype} of shape {tuple(x.shape)}" for x in batch.tensors())
            raise ValueError(
                f"{feed.argument} must hold samples that the model takes, got {kinds}: {error}"
            ) from error
        outputs = pick(found, output, one)
    if outputs.dim() < 2:
        raise ValueError(
            f"model must return [n, ..., n_outputs] for n samples, got {tuple(outputs.shape)}"
        )
    y = cast(Tensor, batch.targets)
    if _real(y):
        _check_real(feed.argument, y, (n, *outputs.shape[1:]))
    else:
        n_rows = n * math.prod(outputs.shape[1:-1])
        check_classes(feed.argument, y, n_rows, outputs.shape[-1])
    if feed.argument == "train" and feed.leaves_one:
        one = batch.rows(slice(0, 1))
        _refuse_batch_norm(model, one, f"{feed.size} for {feed.n} samples")


@torch.no_grad()
def _refuse_batch_norm(model: nn.Module, one: Batch, got: str) -> None:
    """Refuses a batch of one sample where BatchNorm will train on one value a channel.

    Raises:
        ValueError: it would.
    """
    single: list[str] = []

    def look(name: str, inputs: Tensor) -> None:
        if inputs.numel() == inputs.shape[1]:
            single.append(name)

    with in_mode(model, training=True):  # a layer may refuse to be put into it
        norms = [
            name
            for name, module in unwrapped(model).named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
        ]
    visits = [EachVisit(Site(name, name, of_input=True), partial(look, name)) for name in norms]
    with in_mode(model, training=False), at_sites(model, visits):
        args, kwargs = one.arguments()
        model(*args, **kwargs)
    if single:
        raise ValueError(
            "batch_size must leave more than one sample for the last batch, of which the "
            f"BatchNorm {single[0]!r} takes the variance, got {got}"
        )
