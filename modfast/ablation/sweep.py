"""Runs ablations, one batch of inputs after the other, and adds up what they do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from modfast import ops
from modfast.ablation.changes import AtEach, Changes, Groups, Units
from modfast.ablation.memory import PeakMemory
from modfast.ablation.optimal import constants, optimized
from modfast.ablation.result import AblationResult
from modfast.ablation.table import Found, Part, Table
from modfast.ablation.values import (
    At,
    Positions,
    Source,
    check_samples,
    each_position,
    read_positions,
    seen_at,
    with_partners,
)
from modfast.metrics import Function, samplewise
from modfast.network.chain import Chain, channels_apart
from modfast.network.inputs import Batch, Inputs, Targets
from modfast.network.interrupts import under
from modfast.network.logits import Output
from modfast.network.resume import Start, batched, begin_all, follower_of, one_by_one
from modfast.network.run import running
from modfast.network.sites import Site
from modfast.precision import full_precision
from modfast.progress import bar
from modfast.reference import ACTIVATIONS

MAX_MEMORY = 2**28
# More falls out of a processor's cache, and goes back to the system each time.
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
    metrics: Mapping[str, Function] = field(default_factory=dict)
    argument: str = "site"
    """What the caller names places by."""


Make = Callable[[At, Tensor | None, Tensor | None], Changes]
"""The changes at a site, by the new values (None for the kind's own) and where they are put."""


@dataclass(frozen=True)
class Plan:
    """What is changed at some sites of a network, and to what."""

    sites: Sequence[Site]
    make: Make
    source: Source | None = None
    positions: Positions = None
    corrupted: Inputs | None = None

    def changes(self, at: At, start: Start, corrupted: At | None) -> Changes:
        """Those of a batch."""
        where = read_positions(self.positions, at)
        if self.source is not None and self.source.kind == "optimal":
            mean = at.counted.double().mean(0).to(at.features.dtype)
            return optimized(start, self.make(at, mean, None), where, at.counted)
        value = None if self.source is None else self.source.at(at, corrupted)
        changes = self.make(at, value, where)
        if isinstance(self.positions, str):
            return AtEach(changes, *each_position(at))
        return changes


@contextmanager
def starts(
    model: nn.Module,
    inputs: Inputs,
    sites: Sequence[Site],
    targets: Targets,
    options: Options,
    corrupted: Inputs | None = None,
    around: AbstractContextManager[object] | None = None,
) -> Iterator[Iterator[tuple[Batch, list[Start], dict[str, At]]]]:
    """Each batch, run once, for as long as a `with` block lasts; what corrupted inputs have."""
    with running(model) as run:

        def each() -> Iterator[tuple[Batch, list[Start], dict[str, At]]]:
            for batch, other in with_partners(model, inputs, targets, corrupted):
                found = begin_all(
                    run,
                    model,
                    sites,
                    batch,
                    output=options.output,
                    dim=options.dim,
                    backend=options.backend,
                    argument=options.argument,
                    around=around,
                )
                seen: dict[str, At] = {}
                if other is not None:
                    seen = seen_at(run, model, sites, other, options.dim, options.argument)
                yield batch, found, seen

        yield each()


@under(torch.no_grad)
def sweep(
    model: nn.Module, inputs: Inputs, plan: Plan, targets: Targets, options: Options
) -> dict[str, AblationResult]:
    """All ablations of a plan, by site."""
    changes: dict[str, Changes] = {}
    tables = {site.name: Table(options.per_sample) for site in plan.sites}
    paired = None if plan.source is None else plan.source.paired(plan.corrupted)
    with starts(model, inputs, plan.sites, targets, options, paired) as every:
        for batch, found, corrupted in every:
            before = _values(options.metrics, found[0].logits, batch)
            for site, start in zip(plan.sites, found, strict=True):
                name = site.name
                at = At(name, start.features, start.dim, start.mask, batch.first)
                changes[name] = plan.changes(at, start, corrupted.get(name))
                judge = Judge(start, options, batch, before)
                tables[name].add(*_run(start, changes[name], judge), start.rows, len(batch))
    n = next(iter(tables.values())).n_inputs
    check_samples(plan.positions, at, n)
    if plan.source is not None:
        plan.source.check_rows(n)
    return {
        name: table.result(changes[name], **constants(changes[name]))
        for name, table in tables.items()
    }


def _values(functions: Mapping[str, Function], logits: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Each metric's values `[n]` of a batch."""
    with full_precision():
        found = {name: samplewise(each, logits, batch) for name, each in functions.items()}
    return {name: each.detach().double().expand(len(batch)) for name, each in found.items()}


@dataclass(frozen=True)
class Judge:
    """Tells what ablations did to the logits of a batch."""

    start: Start
    options: Options
    batch: Batch
    before: Mapping[str, Tensor]
    """Each metric of the model's own logits, `[n]`."""

    def __call__(self, ablated: Tensor) -> Part:
        """Of logits `[a, n, ..., c]`."""
        rows, per_sample = self.start.rows, self.options.per_sample
        with full_precision():  # autocast is the run's business; what is measured is so exactly
            each = rows.of_each(ablated)
            terms, classes = ops.logit_terms(rows.logits, each, rows.targets, per_sample)
        return Part(terms, classes, self._metrics(ablated))

    def _metrics(self, ablated: Tensor) -> dict[str, Tensor]:
        found: dict[str, list[Tensor]] = {name: [] for name in self.before}
        if not found:
            return {}
        for each in ablated:
            logits = each.reshape(self.start.logits.shape)
            after = _values(self.options.metrics, logits, self.batch)
            for name, values in after.items():
                change = values - self.before[name]
                found[name].append(change if self.options.per_sample else change.sum())
        return {name: torch.stack(each, -1) for name, each in found.items()}


def _run(start: Start, changes: Changes, judge: Judge) -> tuple[Part, str]:
    """What the ablations do, and the backend."""
    options = judge.options
    if start.chain is not None:
        with full_precision():
            found = _fused(start, start.chain, changes, judge)
        if found is not None:
            return found, "fused"
    if options.backend == "fused":
        raise ValueError(NOT_FUSED)
    return _batched(start, changes, judge)


def _fused(start: Start, chain: Chain, changes: Changes, judge: Judge) -> Part | None:
    options = judge.options
    place = _after_channels(start, chain, changes)
    if place is None:
        return None
    value, changes = place
    rows = start.rows
    site = rows.of(value)
    if len(site) != len(rows.logits) or (options.metrics and rows.kept is not None):
        return None
    changes = changes.of_rows(lambda x: rows.of(x.expand(*value.shape[:-1], x.shape[-1])))
    logits, hidden = rows.of(start.outputs[-1]), rows.of(start.outputs[0])
    name = chain.activations[0]
    activation = None if name == "identity" else ACTIVATIONS[name]
    memory = options.max_memory or MAX_MEMORY
    # Scales and updates are all that grows with the number of ablations, ...
    each = (len(site) + hidden.shape[1]) * site.element_size()
    # Logits are made where they are asked for.
    if is_deep := len(chain.weights) > 2 or bool(options.metrics):
        # ... or what goes into and comes out of each activation, and the terms' doubles.
        widths = sum(len(weight) for weight in chain.weights)
        each = len(site) * (2 * widths * site.element_size() + 80 * logits.shape[1])
        memory = min(memory, CPU_BLOCK) if site.device.type == "cpu" else memory
    chunks = _chunks(len(changes), each, memory)
    found = Found(len(changes))
    for chosen in bar(chunks, "ablations", options.progress, LONG) if is_deep else chunks:
        rank_one = changes.rank_one(site, activation, chain.weights[0], chosen)
        if rank_one is None:
            return None
        if is_deep:
            found.put(chosen, judge(_ablated(chain, logits, hidden, *rank_one)))
            continue
        if len(chain.weights) == 1:
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
        found.put(chosen, Part(*part, {}))
    return found.whole


def _after_channels(start: Start, chain: Chain, changes: Changes) -> tuple[Tensor, Changes] | None:
    """What goes into a chain, and the same ablations there.

    What comes before it and takes each channel for itself runs only twice: on the channels as they
    are, and on those in which all have their new values.
    """
    if chain.start == 0:
        return start.site, changes
    if not isinstance(changes, (Units, Groups)) or getattr(changes, "own", None) is not None:
        return None
    value, changes = _apart(start, chain.start, changes)
    if changes.value.dim() > 2:  # of one position
        changes = replace(changes, value=changes.value.flatten(0, -2))
    return value.flatten(1), changes


def _apart(start: Start, stop: int, changes: Units | Groups) -> tuple[Tensor, Units | Groups]:
    tape = start.tape
    assert tape is not None
    changed = changes.value
    if changed.dim() == 1:
        ablated = changed[:, None, None].expand(1, *start.site.shape[1:])
    else:
        ablated = changed.expand(len(changed), *start.features.shape[1:]).movedim(-1, start.dim)
    value = tape.replay(ablated, stop=stop)
    value = value.movedim(1, -1)
    if len(value) == 1 and value.numel() == value.shape[-1]:
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
    ablated[j, i] = [changed, *chain.outputs(changed, 1)][-1]
    return ablated


def _chunks(n: int, each: int, memory: int) -> list[slice]:
    """Slices of n ablations that take `each` bytes apiece, as many at a time as may be."""
    size = max(1, memory // max(each, 1))
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def _batched(start: Start, changes: Changes, judge: Judge) -> tuple[Part, str]:
    """As `_run`, by doing again what followed the site, or by running the model."""
    options = judge.options
    suffix = _Suffix.of(start, changes)
    found = Found(len(changes))
    backend = start.backend if start.backend != "fused" else "replay"

    def run(chosen: slice, resume: Callable[[Tensor], Tensor]) -> None:
        found.put(chosen, judge(resume(suffix.values(chosen))))

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
        if options.max_memory is None and start.site.device.type == "cpu":
            # One by one: more at a time only share the reading of the original logits.
            limit = CPU_BLOCK
    rest = _chunks(len(changes) - chosen.stop, peak, limit)
    for chunk in bar(rest, "ablations", options.progress, LONG):
        run(slice(chunk.start + chosen.stop, chunk.stop + chosen.stop), resume)
    return found.whole, backend


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
        by_unit = isinstance(changes, Units) or (
            isinstance(changes, Groups) and changes.own is None
        )
        apart = channels_apart(tape, start.site, dim) if by_unit else 0
        if apart and start.site.dim() == 4:
            assert isinstance(changes, Units | Groups)
            value, later = _apart(start, apart, changes)
            later_features = value.movedim(1, -1)

            def after(chosen: slice) -> Tensor:
                return later.apply(later_features, chosen).movedim(-1, 2)

            return cls(apart, lambda x: tape.replay(x, start=apart), after)
        follower = follower_of(start)
        flat = features.flatten(0, -2)
        rows = changes.of_rows(lambda x: x.expand(*features.shape[:-1], -1).flatten(0, -2))
        if follower is None or rows.rank_one(flat, None, follower.weight, slice(0, 1)) is None:
            return cls(0, start.resume, values)
        first, weight = follower.start, follower.weight

        def changed(chosen: slice) -> Tensor:
            rank_one = rows.rank_one(flat, None, weight, chosen)
            assert rank_one is not None
            return follower.changed(*rank_one)

        return cls(first, lambda x: tape.replay(x, start=first), changed)
