"""Which single weights does a network need for the samples of a label?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Literal, overload

import torch
from torch import Tensor, nn

from modfast import checks
from modfast._extension import cuda_loaded, has_ops, is_reference
from modfast._renamed import renamed, warn_renamed
from modfast.circuits.order import Order, layers_to_prune, read_order
from modfast.circuits.result import Circuit
from modfast.circuits.trials import LiveWeight, Place, Rule, Trials, find_place
from modfast.network.inputs import Batch, Inputs, Targets, one_batch
from modfast.network.interrupts import under
from modfast.network.logits import IGNORED, Output, check_output
from modfast.network.names import WRAPPED, nearest, unwrapped
from modfast.network.resume import joined
from modfast.network.run import Run, running
from modfast.ops import prune_layer
from modfast.precision import full_precision
from modfast.progress import bar

BASELINES = ("running", "original")
BACKENDS = ("fused", "replay", "model")


@overload
def prune_circuit(
    model: nn.Module,
    inputs: Inputs,
    targets: Targets = None,
    layers: str | Sequence[str] | None = None,
    order: Order = "row",
    threshold: float = 1e-4,
    baseline: str = "running",
    labels: int | None = None,
    *,
    output: Output = None,
    progress: bool = True,
    backend: str | None = None,
) -> Circuit: ...


@overload
def prune_circuit(
    model: nn.Module,
    inputs: Inputs,
    targets: Targets = None,
    layers: str | Sequence[str] | None = None,
    order: Order = "row",
    threshold: float = 1e-4,
    baseline: str = "running",
    labels: Literal["all"] | Sequence[int] = "all",
    *,
    output: Output = None,
    progress: bool = True,
    backend: str | None = None,
) -> dict[int, Circuit]: ...


@renamed(against="baseline", path="backend")
@under(torch.no_grad)
def prune_circuit(
    model: nn.Module,
    inputs: Inputs,
    targets: Targets = None,
    layers: str | Sequence[str] | None = None,
    order: Order = "row",
    threshold: float = 1e-4,
    baseline: str = "running",
    labels: int | str | Sequence[int] | None = None,
    *,
    output: Output = None,
    progress: bool = True,
    backend: str | None = None,
) -> Circuit | dict[int, Circuit]:
    """Zeroes weights one by one, and puts back those without which the loss rises.

    Layer by layer, each weight is set to 0 and the mean cross-entropy on the samples is compared.
    It stays 0 if the loss is at most `threshold` above the running loss, which then becomes the new
    one, or above the loss of the whole network. A weight that is 0 already changes nothing, and so
    goes by the same rule. Biases stay. The model is left as it was, but its own
    weights are written to while the function runs.

    What decides is the loss of the model itself with the weight zeroed. Only what follows from a
    weight is computed anew where runs of the model prove that this gives the same: for linear
    layers with ReLU up to the logits (float32 or float64) by `modfast.ops.prune_layer`; for any
    other plain layer by computing one channel and doing the model's recorded calls again. Layers
    with hooks, subclasses such as LoRA's, layers that are called several times, and outputs of
    less than float32, as under autocast, are tried by running the model. In float32 a decision
    whose margin is less than about 1e-6 may differ from that in exact arithmetic
    (`Circuit.close_calls`).

    Args:
        model: any module that gives logits `[n, ..., c]`; it runs in eval mode, all samples at
            once.
        inputs: one batch: a tensor, a tuple of positional inputs or a mapping of keyword inputs, on
            its device.
        targets: integer classes, one for each row of logits; or the name of the targets in a
            mapping, which by default are its `labels`. Those of -100 count nowhere.
        layers: names or patterns of the layers to prune, in turn: Linear, convolutions or
            transformers' Conv1D. What one pattern matches is pruned last layer first, and so are by
            default all layers, as the model registers them.
        order: in which the weights of a layer are visited, with the parameter's dimensions: `"row"`
            by row, `"column"` by column (a kernel's entries are of their input's), `"magnitude"`
            smallest first; or int64 indices into the flattened weight, by layer name or, for a
            single layer, alone. Weights that are not visited are kept.
        threshold: at least 0, in nats.
        baseline: `"running"` or `"original"`: over which loss a rise is counted.
        labels: prune on the samples of this label; of each label that occurs (`"all"`), or of
            several, which share work and threads; by default on all samples.
        output: picks the logits out of what the model returns: a function or a key.
        progress: show a progress bar, where standard error is a terminal.
        backend: `"fused"` for the operator, `"replay"` for recorded calls, `"model"` for the model
            itself; by default the first that can be taken. `Circuit.backend` says which were.

    Returns:
        A `Circuit`; with several labels one by label, in ascending order or as they were given.

    Raises:
        TypeError: arguments of a wrong type.
        ValueError: unknown layers (the nearest are listed), grouped convolutions, weights that are
            shared, or computed from others in each pass; unknown options, labels without samples,
            a backend that cannot be taken, inputs, weights or a loss that are not finite.

    Source: N1, its circuit complexity reduction, whose restore writes back a view of the weight
    that is zero by then, so that every weight it visits stays zero.

    Example:
        >>> import torch, modfast
        >>> model = modfast.models.MLP([8, 6, 6, 3])
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> circuit = modfast.prune_circuit(model, x, y, labels=2)
        >>> list(circuit.mask)
        ['fc3.weight', 'fc2.weight', 'fc1.weight']
        >>> circuit.kept <= circuit.total == 102
        True
    """
    checks.choice("baseline", baseline, BASELINES)
    if isinstance(backend, str) and backend == "modules":
        warn_renamed("backend='modules'", "backend='replay' or 'model'", stacklevel=3)
        backends: tuple[str, ...] = BACKENDS[1:]
    else:
        checks.choice("backend", backend, (None, *BACKENDS))
        backends = BACKENDS if backend is None else (backend,)
    if is_reference():
        backends = ("model",)
    check_output(output)
    threshold = checks.finite_number("threshold", threshold)
    if threshold < 0:
        raise ValueError(f"threshold must be at least 0, got {threshold}")
    inner = unwrapped(model) if isinstance(model, nn.Module) else model
    weights = layers_to_prune(inner, layers)
    if isinstance(order, Mapping):
        order = {name.removeprefix(WRAPPED): each for name, each in order.items()}
    if isinstance(order, Mapping) and not order.keys() <= weights.keys():
        unknown = next(name for name in order if name not in weights)
        raise ValueError(
            f"order has {unknown!r}, which is no layer to prune; {nearest(unknown, weights)}"
        )
    orders = {name: read_order(order, name, weights) for name in weights}
    batch = one_batch(model, inputs, targets, "all samples are needed at once")
    groups = _groups(labels, batch)
    rule = Rule(threshold, baseline, backends)
    with running(model) as run, _writing(weights) as live:
        pruning = _Pruning(run, inner, live, groups, rule, output, progress)
        for name in bar(weights, "pruning", progress):
            pruning.prune(name, orders[name])
    circuits = {group.label: group.circuit(rule) for group in groups}
    if not isinstance(labels, Iterable):
        return next(iter(circuits.values()))
    return {label: circuit for label, circuit in circuits.items() if label is not None}


@contextmanager
def _writing(weights: Mapping[str, Tensor]) -> Iterator[dict[str, LiveWeight]]:
    """The weights of layers to be written to, until the end of a `with` block."""
    live = {name: LiveWeight(weight) for name, weight in weights.items()}
    with ExitStack() as stack:
        # Autocast would go on with weights as it first cast them.
        stack.callback(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())
        torch.set_autocast_cache_enabled(False)
        for weight in live.values():
            stack.enter_context(weight)
        yield live


class _Group:
    """Samples that have a circuit of their own, and how far that is found."""

    def __init__(self, label: int | None, batch: Batch) -> None:
        self.label, self.batch = label, batch
        self.margins: dict[str, Tensor] = {}
        self.masks: dict[str, Tensor] = {}
        self.losses: list[Tensor] = []
        self.backends: list[str] = []

    @property
    def original_loss(self) -> Tensor:
        return self.losses[0][0]

    def add(
        self, name: str, weight: Tensor, order: Tensor, found: tuple[Tensor, Tensor], backend: str
    ) -> None:
        """Takes a pruned layer over: the margins and losses of its visits."""
        margins, losses = (tensor.cpu() for tensor in found)
        of = "" if self.label is None else f" of label {self.label}"
        checks.finite(f"pruning {name!r}, the loss on the samples{of}", losses)
        by_weight = torch.full((weight.numel(),), torch.nan, dtype=torch.float64, device="cpu")
        by_weight[order] = margins
        self.margins[f"{name}.weight"] = by_weight.view(weight.shape)
        self.masks[f"{name}.weight"] = ~(by_weight <= 0.0).view(weight.shape)
        self.losses.append(losses)
        self.backends.append(backend)

    def write(self, live: Mapping[str, LiveWeight]) -> None:
        """Zeroes, in the model, what is pruned so far."""
        for name, mask in self.masks.items():
            weight = live[name.removesuffix(".weight")]
            weight.put(weight.whole.masked_fill(~mask.to(weight.whole.device), 0))

    def circuit(self, rule: Rule) -> Circuit:
        targets = self.batch.targets
        assert targets is not None
        return Circuit(
            mask=self.masks,
            kept=sum(int(each.sum()) for each in self.masks.values()),
            total=sum(each.numel() for each in self.masks.values()),
            loss=self.losses[-1][-1].clone(),
            original_loss=self.original_loss.clone(),
            loss_path=torch.cat([losses[1:] for losses in self.losses]),
            margins=self.margins,
            threshold=rule.threshold,
            against=rule.baseline,
            n_samples=int((targets != IGNORED).sum()),
            backend=joined(self.backends),
        )


class _Pruning:
    """Prunes layer after layer, for all groups."""

    def __init__(
        self,
        run: Run,
        model: nn.Module,
        live: Mapping[str, LiveWeight],
        groups: list[_Group],
        rule: Rule,
        output: Output,
        progress: bool,
    ) -> None:
        self.run, self.model, self.live, self.groups = run, model, live, groups
        self.rule, self.output, self.progress = rule, output, progress

    def prune(self, name: str, order: Tensor) -> None:
        """One layer."""
        rule, weight = self.rule, self.live[name]
        compiled = {"cpu": has_ops(), "cuda": cuda_loaded}.get(weight.whole.device.type, False)
        waiting = []
        for group in self.groups:
            group.write(self.live)
            place: Place | str = "the model itself runs"
            if rule.backends != ("model",):
                place = find_place(self.run, self.model, name, weight, group.batch, self.output)
            network = None
            if not isinstance(place, str) and compiled and "fused" in rule.backends:
                network = place.network(weight.whole)
            if network is not None and not isinstance(place, str):
                waiting.append((group, place.start.rows.targets, network))
                continue
            backend = "model" if isinstance(place, str) else "replay"
            if backend not in rule.backends:
                if not isinstance(place, str):
                    place = f"layer {name!r} is not followed by linear layers and ReLU alone"
                raise ValueError(f"backend={rule.backends[0]!r} cannot be taken: {place}")
            found = Trials(
                self.run,
                weight,
                group.batch,
                self.output,
                None if isinstance(place, str) else place,
            ).prune(
                order,
                rule,
                float(group.original_loss) if group.losses else None,
                partial(bar, description=name, shown=self.progress),
            )
            group.add(name, weight.whole, order, found, backend)
        if waiting:
            with full_precision():
                self._fused(name, order, waiting)

    def _fused(
        self,
        name: str,
        order: Tensor,
        waiting: list[tuple[_Group, Tensor | None, tuple[Tensor, list[Tensor], list[Tensor]]]],
    ) -> None:
        """The first of a chain of linear layers, by the operator."""
        groups, targets, networks = zip(*waiting, strict=True)
        inputs, weights, biases = zip(*networks, strict=True)
        device = inputs[0].device
        network = (
            torch.cat(inputs) if len(inputs) > 1 else inputs[0],
            [torch.stack(each) for each in zip(*weights, strict=True)],
            [torch.stack(each) for each in zip(*biases, strict=True)],
            torch.cat(targets),
            torch.tensor([len(x) for x in inputs], device=device),
        )
        visits, original = order.to(device), None
        if self.rule.baseline == "original":
            if groups[0].losses:
                original = torch.stack([group.original_loss for group in groups]).to(device)
            else:  # the operator's own, by a visit of no weight
                original = prune_layer(*network, visits[:0])[1][:, 0]
        margins, losses = prune_layer(*network, visits, original, self.rule.threshold)
        whole = self.live[name].whole
        for i, group in enumerate(groups):
            group.add(name, whole, order, (margins[i], losses[i]), "fused")


def _groups(labels: int | str | Sequence[int] | None, batch: Batch) -> list[_Group]:
    """The samples of each label, or all."""
    targets = batch.targets
    if targets is None:
        raise TypeError("targets must be a tensor, or among the inputs, as their labels, got None")
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise TypeError(f"targets must have integer classes, got {targets.dtype}")
    targets = targets.long()
    batch = Batch(batch.args, batch.kwargs, targets)
    if labels is None:
        return [_Group(None, batch)]
    if isinstance(labels, str):
        if labels != "all":
            raise ValueError(f"labels must be a label, several, 'all' or None, got {labels!r}")
        wanted = targets[targets != IGNORED].unique().tolist()
    else:
        wanted = list(labels) if isinstance(labels, Iterable) else [labels]
    wanted = [checks.integer("each of labels", label) for label in wanted]
    if not wanted or len(set(wanted)) < len(wanted):
        raise ValueError(f"labels must be different labels, at least one, got {labels!r}")
    by_row = all(tensor.shape[:1] == targets.shape for tensor in batch.tensors())
    groups = []
    for label in wanted:
        if not -(2**63) <= label < 2**63:
            raise ValueError(f"labels must be held by int64, got {label!r:.40}")
        chosen = targets == label
        if not bool(chosen.any()):
            raise ValueError(f"labels must have samples, {label} has none")
        if by_row:
            own = batch.rows(chosen.nonzero()[:, 0])
        else:  # of positions, or of samples that not all inputs have a row for: all of them run
            own = Batch(batch.args, batch.kwargs, targets.masked_fill(~chosen, IGNORED))
        groups.append(_Group(label, own))
    return groups
