"""Runs ablations, one batch of inputs after the other, and adds up what they do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from modfast import ops
from modfast.ablation.changes import Changes, Groups, Units
from modfast.ablation.memory import PeakMemory
from modfast.ablation.result import AblationResult, class_shares
from modfast.network.chain import Chain, channels_apart
from modfast.network.inputs import Inputs, Targets, read_batches
from modfast.network.interrupts import under
from modfast.network.logits import Output, Rows
from modfast.network.resume import Start, batched, begin, follower_of, joined, one_by_one
from modfast.network.run import running
from modfast.network.sites import parse_site
from modfast.precision import full_precision
from modfast.progress import bar
from modfast.reference import ACTIVATIONS

MAX_MEMORY = 2**28
# Of hidden layers: more falls out of a processor's cache, and goes back to the system each time.
CPU_BLOCK = 2**24
# Bytes of one ablation's suffix above which doing several at once gains nothing on a CPU.
CPU_VMAP = 2**20
# torch.vmap has no batched kernel of these, and loops or refuses.
_LOOPED = frozenset({"scaled_dot_product_attention", "multi_head_attention_forward", "lstm", "gru"})
LONG = 2.0  # seconds, after which a bar tells of progress
NOT_FUSED = (
    "backend='fused': needs units, or directions without an activation after the site, "
    "and linear layers of float32 or float64 up to the logits"
)


@dataclass(frozen=True)
class Options:
    """What all kinds of ablation take."""

    output: Output = None
    dim: int | None = None
    per_sample: bool = False
    max_memory: int | None = None
    progress: bool = True
    backend: str | None = None


@contextmanager
def starts(
    model: nn.Module, inputs: Inputs, site: str, targets: Targets, options: Options
) -> Iterator[Iterator[Start]]:
    """Each batch, run once, for as long as a `with` block lasts."""
    place = parse_site(model, site)
    with running(model) as run:
        yield (
            begin(
                run,
                model,
                place,
                batch,
                output=options.output,
                dim=options.dim,
                backend=options.backend,
            )
            for batch in read_batches(model, inputs, targets)
        )


@under(torch.no_grad)
def sweep(
    model: nn.Module,
    inputs: Inputs,
    site: str,
    make: Callable[[Tensor], Changes],
    targets: Targets,
    options: Options,
) -> AblationResult:
    """All ablations that `make` gives for the first batch's site `[..., d]`."""
    changes: Changes | None = None
    table = _Table(options.per_sample)
    with starts(model, inputs, site, targets, options) as all_starts:
        for start in all_starts:
            changes = changes or make(start.features)
            table.add(*_run(start, changes, options), start.rows)
    assert changes is not None
    return table.result(changes)


@under(torch.no_grad)
def mean_of_site(model: nn.Module, inputs: Inputs, site: str, options: Options) -> Tensor:
    """The mean activation of each unit, over samples and positions that count: `[d]`."""
    total: Tensor | float = 0.0
    n = 0
    with starts(model, inputs, site, None, options) as all_starts:
        for start in all_starts:
            found = start.counted
            total, n = total + found.double().sum(0), n + len(found)
            dtype = found.dtype
    assert isinstance(total, Tensor)
    return (total / n).to(dtype)


def _run(start: Start, changes: Changes, options: Options) -> tuple[Tensor, Tensor, str]:
    """Terms `[k, a]` (per sample: `[k, n, a]`), correct samples by class `[a, c]`, the backend."""
    if start.chain is not None:
        with full_precision():
            found = _fused(start, start.chain, changes, options)
        if found is not None:
            return *found, "fused"
    if options.backend == "fused":
        raise ValueError(NOT_FUSED)
    return _batched(start, changes, options)


def _fused(
    start: Start, chain: Chain, changes: Changes, options: Options
) -> tuple[Tensor, Tensor] | None:
    place = _after_channels(start, chain, changes)
    if place is None:
        return None
    value, changes = place
    rows = start.rows
    site = rows.of(value)
    if len(site) != len(rows.logits):
        return None
    logits, hidden = rows.of(start.outputs[-1]), rows.of(start.outputs[0])
    name = chain.activations[0]
    activation = None if name == "identity" else ACTIVATIONS[name]
    memory = options.max_memory or MAX_MEMORY
    # Scales and updates are all that grows with the number of ablations, ...
    each = (len(site) + hidden.shape[1]) * site.element_size()
    if is_deep := len(chain.weights) > 2:
        # ... or what goes into and comes out of each activation, and the terms' doubles.
        widths = sum(len(weight) for weight in chain.weights)
        each = len(site) * (2 * widths * site.element_size() + 80 * logits.shape[1])
        memory = min(memory, CPU_BLOCK) if site.device.type == "cpu" else memory
    chunks = _chunks(len(changes), each, memory)
    found = _Found(len(changes))
    for chosen in bar(chunks, "ablations", options.progress, LONG) if is_deep else chunks:
        rank_one = changes.rank_one(site, activation, chain.weights[0], chosen)
        if rank_one is None:
            return None
        if is_deep:
            part = _terms(_ablated(chain, logits, hidden, *rank_one), logits, rows, options)
        elif len(chain.weights) == 1:
            part = ops.ablation_sweep(logits, *rank_one, rows.targets, options.per_sample)
        else:
            part = ops.ablation_sweep_hidden(
                logits,
                hidden,
                *rank_one,
                chain.activations[1],
                chain.weights[1],
                rows.targets,
                options.per_sample,
            )
        found.put(chosen, *part)
    return found.whole()


def _after_channels(start: Start, chain: Chain, changes: Changes) -> tuple[Tensor, Changes] | None:
    """What goes into a chain, and the same ablations there.

    What comes before it and takes each channel for itself runs only twice: on the channels as they
    are, and on those in which all have their new values.
    """
    if chain.start == 0:
        return start.site, changes
    if not isinstance(changes, (Units, Groups)):
        return None
    value, changes = _apart(start, chain.start, changes)
    return value.flatten(1), changes


def _apart(start: Start, stop: int, changes: Units | Groups) -> tuple[Tensor, Units | Groups]:
    tape = start.tape
    assert tape is not None
    ablated = changes.value[:, None, None].expand(1, *start.site.shape[1:])
    value = tape.replay(ablated, stop=stop)
    value = value.movedim(1, -1) if value.dim() > 2 else value[0]
    if value.dim() > 2 and value[0].numel() == value.shape[-1]:
        value = value.reshape(-1)
    return tape.replay(start.site, stop=stop), replace(changes, value=value)


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


def _terms(ablated: Tensor, logits: Tensor, rows: Rows, options: Options) -> tuple[Tensor, Tensor]:
    """What `_run` returns, from the logits after each ablation: `[a, n, c]`."""
    return ops.logit_terms(logits, ablated, rows.targets, options.per_sample)


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


def _batched(start: Start, changes: Changes, options: Options) -> tuple[Tensor, Tensor, str]:
    """As `_run`, by doing again what followed the site, or by running the model."""
    suffix = _Suffix.of(start, changes)
    rows, found = start.rows, _Found(len(changes))
    backend = start.backend if start.backend != "fused" else "replay"

    def run(chosen: slice, resume: Callable[[Tensor], Tensor]) -> None:
        # Autocast is the run's business; what is measured is measured exactly.
        ablated = resume(suffix.values(chosen))
        with full_precision():
            ablated = ablated.reshape(len(ablated), -1, ablated.shape[-1])
            if rows.kept is not None:
                ablated = ablated[:, rows.kept]
            found.put(chosen, *_terms(ablated, rows.logits, rows, options))

    alone = one_by_one(suffix.resume)
    with PeakMemory() as memory:
        run(slice(0, 1), alone)
    resume = alone
    peak, limit = max(memory.peak, 1), options.max_memory or MAX_MEMORY
    if start.tape is not None and _gains_by_vmap(start, peak, options.backend):
        resume, backend = batched(start.tape, suffix.first), "vmap"
        chosen = slice(0, min(len(changes), max(1, limit // peak)))
        try:
            # The first ones again: all of a result are made in one way.
            run(chosen, resume)
        except (RuntimeError, NotImplementedError):
            if options.backend == "vmap":
                raise ValueError("backend='vmap': torch.vmap cannot run what follows") from None
            resume, backend, chosen = alone, "replay", slice(0, 1)
    else:
        chosen = slice(0, 1)
    rest = _chunks(len(changes) - chosen.stop, peak, limit)
    for chunk in bar(rest, "ablations", options.progress, LONG):
        run(slice(chunk.start + chosen.stop, chunk.stop + chosen.stop), resume)
    return *found.whole(), backend


def _gains_by_vmap(start: Start, peak: int, backend: str | None) -> bool:
    if backend is not None or start.backend == "model":
        return backend == "vmap"
    # Below float32 its other order of sums shows.
    if start.rows.logits.dtype not in (torch.float32, torch.float64):
        return False
    if start.tape is None or any(call.name in _LOOPED for call in start.tape.calls):
        return False
    return start.site.device.type != "cpu" or peak <= CPU_VMAP


@dataclass(frozen=True)
class _Suffix:
    """What is done again for each ablation, and the values to begin with."""

    first: int
    """The call of the tape with which it begins."""
    resume: Callable[[Tensor], Tensor]
    values: Callable[[slice], Tensor]
    """Of some ablations: `[a, ...]`."""

    @classmethod
    def of(cls, start: Start, changes: Changes) -> _Suffix:
        tape, features, dim = start.tape, start.features, start.dim

        def values(chosen: slice) -> Tensor:
            return changes.apply(features, chosen).movedim(-1, dim + 1)

        if tape is None:
            return cls(0, start.resume, values)
        apart = channels_apart(tape, start.site, dim) if isinstance(changes, Units | Groups) else 0
        if apart and start.site.dim() == 4:
            assert isinstance(changes, Units | Groups)
            value, later = _apart(start, apart, changes)
            later_features = value.movedim(1, -1)

            def after(chosen: slice) -> Tensor:
                return later.apply(later_features, chosen).movedim(-1, 2)

            return cls(apart, lambda x: tape.replay(x, start=apart), after)
        follower = follower_of(start)
        flat = features.flatten(0, -2)
        if follower is None or changes.rank_one(flat, None, follower.weight, slice(0, 1)) is None:
            return cls(0, start.resume, values)
        first, weight = follower.start, follower.weight

        def changed(chosen: slice) -> Tensor:
            rank_one = changes.rank_one(flat, None, weight, chosen)
            assert rank_one is not None
            return follower.changed(*rank_one)

        return cls(first, lambda x: tape.replay(x, start=first), changed)


@dataclass
class _Table:
    """Adds up batches."""

    per_sample: bool
    terms: list[Tensor] = field(default_factory=list)
    classes: list[Tensor] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)
    backends: list[str] = field(default_factory=list)
    n_samples: int = 0

    def add(self, terms: Tensor, classes: Tensor, backend: str, rows: Rows) -> None:
        if self.terms and (rows.targets is None) == bool(self.targets):
            raise ValueError("inputs must have targets in all of its batches, or in none")
        self.terms.append(terms)
        self.classes.append(classes)
        self.backends.append(backend)
        self.n_samples += len(rows.logits)
        if rows.targets is not None:
            self.targets.append(rows.targets)

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
        more: dict[str, Any] = {"kind": changes.kind, "numbers": changes.numbers().cpu()}
        more["backend"] = joined(self.backends)
        if self.targets:
            classes = torch.stack(self.classes).sum(0)
            loss, correct = others
            more["loss"] = loss
            more["accuracy"] = correct if self.per_sample else correct / self.n_samples
            more["class_accuracy"] = class_shares(classes, torch.cat(self.targets)).cpu()
        return AblationResult(entropy, kl_after, kl_before, self.n_samples, **more)
