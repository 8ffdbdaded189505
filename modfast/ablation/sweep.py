"""Runs ablations, one batch of inputs after the other, and adds up what they do."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap

from modfast import checks, ops
from modfast.ablation.batches import Batch, Inputs, is_stream, read_batches
from modfast.ablation.chain import Chain
from modfast.ablation.changes import Changes, Groups, Units
from modfast.ablation.memory import PeakMemory
from modfast.ablation.result import AblationResult, class_shares
from modfast.ablation.routes import Follower, Start
from modfast.ablation.trace import find_route
from modfast.progress import bar
from modfast.reference import ACTIVATIONS, ablation_terms, class_sums
from modfast.scores import check_targets
from modfast.sites import in_mode, unit_dim

Output = Callable[[Any], Tensor]
MAX_MEMORY = 2**28
# Of hidden layers: more falls out of a processor's cache, and goes back to the system each time.
CPU_BLOCK = 2**24
LONG = 2.0  # seconds, after which a bar tells of progress
NOT_FUSED = (
    "path='fused': needs units, or directions without an activation after the site, "
    "and linear layers of float32 or float64 up to the logits"
)


@dataclass(frozen=True)
class Options:
    """What all kinds of ablation take."""

    output: Output | None = None
    dim: int | None = None
    per_sample: bool = False
    max_memory: int | None = None
    progress: bool = True
    path: str | None = None


@dataclass
class Place:
    """A site, its features in the last dimension, and the model from there on."""

    start: Start
    dim: int
    output: Output | None

    @property
    def site(self) -> Tensor:
        """`[..., d]`."""
        site = self.start.site
        return site if self.features_last else site.movedim(self.dim, -1)

    @property
    def is_chain(self) -> bool:
        """Whether rank-1 operators can run what follows."""
        chain = self.start.chain
        if chain is None or self.output is not None or not self.features_last:
            return False
        return chain.takes(self.start.site)

    def logits(self) -> Tensor:
        """Of the whole model: `[..., c]`."""
        logits = pick(self.start.output, self.output)
        if not logits.is_floating_point() or logits.dim() < 2:
            raise ValueError(
                "the model's logits must be floating and of shape [n, ..., classes], "
                f"got {logits.dtype} of shape {tuple(logits.shape)}; output= can pick them"
            )
        checks.finite("the model's logits", logits)
        return logits

    def resume(self, site: Tensor, *followed: Tensor) -> Tensor:
        """The logits for another value of the site, and perhaps of the layer that follows it."""
        return pick(self.start.resume(site.movedim(-1, self.dim), *followed), self.output)

    @property
    def follower(self) -> Follower | None:
        """The linear layer that takes the site's features, if there is one."""
        return self.start.follower if self.features_last else None

    @property
    def features_last(self) -> bool:
        """Whether the features are the last dimension, as linear layers take them."""
        return self.dim in (-1, self.start.site.dim() - 1)


def pick(output: Any, chosen: Output | None) -> Tensor:
    """The logits in a model's output."""
    found = output if chosen is None else chosen(output)
    if not isinstance(found, Tensor):
        hint = "output= must pick the logits" if chosen is None else "output= must return them"
        raise TypeError(f"the model returned a {type(found).__name__}, not a tensor; {hint}")
    return found


def as_rows(values: Tensor) -> Tensor:
    """`[..., d]` as `[n, d]`."""
    return values if values.dim() == 2 else values.reshape(-1, values.shape[-1])


def begin(model: nn.Module, site: str, batch: Batch, options: Options) -> Place:
    """Runs the model on a batch up to the site, and to the end."""
    route = find_route(model, site, batch.args, batch.kwargs, options.path)
    start = route.start(batch.args, batch.kwargs)
    value = start.site
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() < 2:
        what = (
            f"{value.dtype} of shape {tuple(value.shape)}"
            if isinstance(value, Tensor)
            else type(value).__name__
        )
        raise TypeError(f"site={site!r}: must be a floating tensor [n, ..., features], got {what}")
    dim = options.dim
    if dim is None:
        # Only of three dimensions does it hang on the module, which a graph's node has none of.
        modules = dict(model.named_modules(remove_duplicate=False)) if value.dim() == 3 else {}
        dim = unit_dim(value, modules.get(site))
    if not -value.dim() <= dim < value.dim():
        raise ValueError(f"dim must be a dimension of the site, {tuple(value.shape)}, got {dim}")
    return Place(start, dim, options.output)


def batches_of(model: nn.Module, inputs: Inputs, targets: Tensor | None) -> Any:
    """Checked batches; those of a stream go to the model's device."""
    parameter = next(model.parameters(), None) if is_stream(inputs) else None
    return read_batches(inputs, targets, None if parameter is None else parameter.device)


@torch.no_grad()
def sweep(
    model: nn.Module,
    inputs: Inputs,
    site: str,
    make: Callable[[Tensor], Changes],
    targets: Tensor | None,
    options: Options,
) -> AblationResult:
    """All ablations that `make` gives for the first batch's site `[..., d]`."""
    changes: Changes | None = None
    table = _Table(options.per_sample)
    with in_mode(model, training=False):
        for batch in batches_of(model, inputs, targets):
            place = begin(model, site, batch, options)
            changes = changes or make(place.site)
            logits = place.logits()
            rows = as_rows(logits)
            y = None
            if batch.targets is not None:
                y = batch.targets.reshape(-1)
                check_targets("targets", y, *rows.shape)
                if y.is_floating_point():
                    raise TypeError(f"targets must be int64 classes, got {y.dtype}")
            table.add(*_run(place, changes, rows, y, options), rows, y)
    assert changes is not None
    return table.result(changes)


def mean_of_site(model: nn.Module, inputs: Inputs, site: str, options: Options) -> Tensor:
    """The mean activation of each unit, over samples and positions: `[d]`."""
    total: Tensor | float = 0.0
    n = 0
    with in_mode(model, training=False), torch.no_grad():
        for batch in batches_of(model, inputs, None):
            found = begin(model, site, batch, options).site.flatten(0, -2)
            total, n = total + found.double().sum(0), n + len(found)
    assert isinstance(total, Tensor)
    return (total / n).to(found.dtype)


def _run(
    place: Place, changes: Changes, logits: Tensor, targets: Tensor | None, options: Options
) -> tuple[Tensor, Tensor]:
    """Terms `[k, a]` (per sample: `[k, n, a]`) and correct samples by class `[a, c]`."""
    if options.path in (None, "fused"):
        found = _fused(place, changes, logits, targets, options)
        if found is not None:
            return found
        if options.path == "fused":
            raise ValueError(NOT_FUSED)
    return _batched(place, changes, logits, targets, options)


def _fused(
    place: Place, changes: Changes, logits: Tensor, targets: Tensor | None, options: Options
) -> tuple[Tensor, Tensor] | None:
    chain = place.start.chain
    if chain is None or not place.is_chain or logits.dtype != place.start.site.dtype:
        return None
    site, hidden = as_rows(place.start.site), as_rows(place.start.outputs[0])
    activation = None if chain.activations[0] == "identity" else ACTIVATIONS[chain.activations[0]]
    memory = options.max_memory or MAX_MEMORY
    # Scales and updates are all that grows with the number of ablations, ...
    each = (len(site) + hidden.shape[1]) * site.element_size()
    if is_deep := len(chain.layers) > 2:
        # ... or what goes into and comes out of each activation, and the terms' doubles.
        widths = sum(layer.out_features for layer in chain.layers)
        each = len(site) * (2 * widths * site.element_size() + 80 * logits.shape[1])
        memory = min(memory, CPU_BLOCK) if site.device.type == "cpu" else memory
    chunks = _chunks(len(changes), each, memory)
    found = _Found(len(changes))
    for chosen in bar(chunks, "ablations", options.progress, LONG) if is_deep else chunks:
        rank_one = changes.rank_one(site, activation, chain.layers[0].weight, chosen)
        if rank_one is None:
            return None
        if is_deep:
            ablated = _ablated(chain, logits, hidden, *rank_one)
            part = _summed(ablated, logits, targets, options)
        elif len(chain.layers) == 1:
            part = ops.ablation_sweep(logits, *rank_one, targets, options.per_sample)
        else:
            part = ops.ablation_sweep_hidden(
                logits,
                hidden,
                *rank_one,
                chain.activations[1],
                chain.layers[1].weight,
                targets,
                options.per_sample,
            )
        found.put(chosen, *part)
    return found.whole()


def _ablated(
    chain: Chain, logits: Tensor, hidden: Tensor, scales: Tensor, updates: Tensor
) -> Tensor:
    """The logits `[a, n, c]` where the first layer's outputs change by scales times updates.

    Only the samples with a scale go through the other layers: a unit that is off stays off.
    """
    j, i = scales.T.nonzero(as_tuple=True)
    changed = hidden[i].addcmul_(scales[i, j, None], updates[j])
    ablated = logits.repeat(len(updates), 1, 1)
    ablated[j, i] = chain.outputs(changed, 1)[-1]
    return ablated


def _summed(
    ablated: Tensor, logits: Tensor, targets: Tensor | None, options: Options
) -> tuple[Tensor, Tensor]:
    """What `_run` returns, from the logits after each ablation: `[a, n, c]`."""
    terms = ablation_terms(logits, ablated, targets).movedim(1, -1)
    classes = class_sums(terms[-1], targets, logits.shape[1])
    return (terms if options.per_sample else terms.sum(1)), classes


class _Found:
    """The terms and classes of n ablations, as runs of some of them are put in.

    All lie in memory that is taken once: small results that are kept between large tensors that
    are not would keep the allocator from giving these back.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.parts: tuple[Tensor, Tensor] | None = None

    def put(self, chosen: slice, terms: Tensor, classes: Tensor) -> None:
        if chosen == slice(0, self.n):
            self.parts = terms, classes
            return
        if self.parts is None:
            shape = (*terms.shape[:-1], self.n)
            self.parts = terms.new_empty(shape), classes.new_empty(self.n, classes.shape[1])
        self.parts[0][..., chosen] = terms
        self.parts[1][chosen] = classes

    def whole(self) -> tuple[Tensor, Tensor]:
        assert self.parts is not None
        return self.parts


def _chunks(n: int, each: int, memory: int) -> list[slice]:
    """Slices of n ablations that take `each` bytes apiece, as many at a time as may be."""
    size = max(1, memory // max(each, 1))
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def _batched(
    place: Place, changes: Changes, logits: Tensor, targets: Tensor | None, options: Options
) -> tuple[Tensor, Tensor]:
    place, changes = _after_channels(place, changes)
    site = place.site
    follower = place.follower
    resume: Callable[..., Tensor] = vmap(place.resume)

    def run(chosen: slice) -> tuple[Tensor, Tensor]:
        values = [changes.apply(site, chosen)]
        if follower is not None:
            rank_one = changes.rank_one(site.flatten(0, -2), None, follower.weight, chosen)
            values += [] if rank_one is None else [follower.changed(*rank_one)]
        return _summed(resume(*values).reshape(-1, *logits.shape), logits, targets, options)

    first, found = slice(0, 1), _Found(len(changes))
    with PeakMemory() as memory:
        try:
            found.put(first, *run(first))
        except RuntimeError:
            # The suffix asks a tensor for its value, or changes one in place, which vmap refuses.
            resume = _one_by_one(place.resume)
            found.put(first, *run(first))
    rest = _chunks(len(changes) - 1, memory.peak, options.max_memory or MAX_MEMORY)
    for chunk in bar(rest, "ablations", options.progress, LONG):
        chosen = slice(chunk.start + 1, chunk.stop + 1)
        found.put(chosen, *run(chosen))
    return found.whole()


def _after_channels(place: Place, changes: Changes) -> tuple[Place, Changes]:
    """The same ablations behind what takes each channel for itself, which then runs only twice.

    It is run on the channels as they are, and on those in which all have their new values.
    """
    start = place.start
    channels = place.dim in (1, -3) and isinstance(changes, (Units, Groups))
    if not channels or start.by_channel is None or start.resume_after is None:
        return place, changes
    assert isinstance(changes, (Units, Groups))
    ablated = changes.value[:, None, None].expand(1, *start.site.shape[1:])
    value = start.by_channel(ablated).movedim(1, -1)
    later = Start(start.by_channel(start.site), start.output, start.resume_after)
    return Place(later, place.dim, place.output), replace(changes, value=value)


def _one_by_one(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *values: torch.stack([function(*each) for each in zip(*values, strict=True)])


@dataclass
class _Table:
    """Adds up batches."""

    per_sample: bool
    terms: list[Tensor] = field(default_factory=list)
    classes: list[Tensor] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)
    n_samples: int = 0

    def add(self, terms: Tensor, classes: Tensor, logits: Tensor, targets: Tensor | None) -> None:
        if self.terms and (targets is None) == bool(self.targets):
            raise ValueError("inputs must have targets in all of its batches, or in none")
        self.terms.append(terms)
        self.classes.append(classes)
        self.n_samples += len(logits)
        if targets is not None:
            self.targets.append(targets)

    def result(self, changes: Changes) -> AblationResult:
        if self.per_sample:
            terms = torch.cat(self.terms, dim=1)
        else:
            terms = self.terms[0] if len(self.terms) == 1 else torch.stack(self.terms).sum(0)
        terms = terms.cpu()
        # One pass where all is well, as NaN and infinity spread to the sum.
        if not math.isfinite(terms.sum().item()) and not terms.isfinite().all():
            bad = int((~terms.isfinite()).flatten(0, -2).any(0).nonzero()[0])
            number = int(changes.numbers()[bad])
            raise ValueError(f"the logits after ablating {changes.kind} {number} must be finite")
        entropy, kl_after, kl_before, *others = terms.unbind()
        names: dict[str, Any] = {"kind": changes.kind, "numbers": changes.numbers().cpu()}
        if not self.targets:
            return AblationResult(entropy, kl_after, kl_before, self.n_samples, **names)
        classes = torch.stack(self.classes).sum(0)
        loss, correct = others
        accuracy = correct if self.per_sample else correct / self.n_samples
        shares = class_shares(classes, torch.cat(self.targets)).cpu()
        return AblationResult(
            entropy, kl_after, kl_before, self.n_samples, loss, accuracy, shares, **names
        )
