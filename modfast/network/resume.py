"""From a site on, many times: how a network is resumed there, and the one place that chooses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import vmap

from modfast import checks
from modfast._extension import is_reference
from modfast.network.calls import Slot
from modfast.network.chain import Chain, chain_of, keeps_rows, linear_of
from modfast.network.dims import unit_dim
from modfast.network.inputs import Batch
from modfast.network.logits import Output, Rows, pick, read_rows
from modfast.network.names import unwrapped
from modfast.network.parts import in_parts
from modfast.network.run import Run
from modfast.network.sites import Site
from modfast.network.tape import Tape
from modfast.network.visits import Visit, at_sites, check_features

BACKENDS = ("fused", "vmap", "replay", "model")
"""How a network is resumed: by fused kernels, where what follows is a chain of linear layers and
activations; by doing the recorded calls again, for many values at once or one by one; or by running
the model itself with the site's value replaced, which always works."""


Resume: TypeAlias = Callable[..., Tensor]
Choice: TypeAlias = tuple[str, Chain | None, list[Tensor], str]


@dataclass(frozen=True)
class Start:
    """One batch, run once: what all changes at the site share."""

    site: Tensor
    """Its value, as the model has it."""
    dim: int
    """Of its units."""
    rows: Rows
    """Of the model's own logits."""
    logits: Tensor
    """These, as the model or `output` gave them."""
    backend: str
    """"fused", "replay" or "model"."""
    resume: Resume
    """The logits for another value of the site."""
    mask: Tensor | None = None
    """Which positions of the site count, `[n, t]`."""
    tape: Tape | None = None
    chain: Chain | None = None
    outputs: Sequence[Tensor] = ()
    """Of the chain's layers."""

    def through(self, value: Tensor, then: Callable[[Tensor], Any]) -> Any:
        """What `then` makes of the logits for another value of the site, such as a gradient.

        Before what the model itself has written to its own tensors is put back.
        """
        if self.backend == "model":
            return self.resume(value, then)
        return then(self.resume(value))

    @property
    def features(self) -> Tensor:
        """The site's value with its units last: `[..., d]`."""
        return self.site.movedim(self.dim, -1)

    @property
    def counted(self) -> Tensor:
        """The same at samples and positions that count: `[n, d]`."""
        found = self.features
        if self.mask is not None and self.mask.shape == found.shape[:2]:
            return found[self.mask].flatten(0, -2)
        return found.flatten(0, -2)

    @property
    def features_last(self) -> bool:
        """Whether they lie so."""
        return self.dim == self.site.dim() - 1


def begin(
    run: Run,
    model: nn.Module,
    site: Site,
    batch: Batch,
    *,
    output: Output = None,
    dim: int | None = None,
    backend: str | None = None,
    argument: str = "site",
    around: AbstractContextManager[object] | None = None,
) -> Start:
    """Runs a model on a batch, and finds how to resume it from a site, the caller's `argument`.

    `around` is entered around the recorded run alone.

    Raises:
        TypeError: a site or model that gives no floating tensor.
        ValueError: a site that is not reached, or several times; logits of another shape or not
            finite; a backend that cannot be taken.
    """
    (found,) = begin_all(
        run,
        model,
        [site],
        batch,
        output=output,
        dim=dim,
        backend=backend,
        argument=argument,
        around=around,
    )
    return found


def begin_all(
    run: Run,
    model: nn.Module,
    sites: Sequence[Site],
    batch: Batch,
    *,
    output: Output = None,
    dim: int | None = None,
    backend: str | None = None,
    argument: str = "site",
    around: AbstractContextManager[object] | None = None,
) -> list[Start]:
    """As `begin`, for several sites in one run."""
    tensors = batch.tensors()
    device = tensors[0].device.type if tensors else "cpu"
    tape = Tape(run.guard(batch), [*tensors, *run.tensors], device)
    order: list[int] = []

    def take(i: int, value: Tensor) -> Tensor:
        order.append(i)
        with torch._C.DisableTorchFunction():
            check_features(value, sites[i], argument)
            own = run.own(value) if len(order) == 1 else value
        return tape.begin(own) if len(order) == 1 else tape.mark(value)

    def read(found: Any) -> Tensor:
        logits = pick(found, output, batch)
        tape.finish(logits)
        return run.own(logits)

    visits = [Visit(site, partial(take, i), argument) for i, site in enumerate(sites)]
    with at_sites(model, visits), around or nullcontext():
        logits = run(batch, read, tape)
    for visit in visits:
        visit.check()
    random = run.random
    assert tape.site is not None
    first = sites[order[0]]
    value = tape.site.detach()
    if not logits.is_floating_point() or logits.dim() < 2:
        raise ValueError(
            "the model's logits must be floating and of shape [n, ..., classes], "
            f"got {logits.dtype} of shape {tuple(logits.shape)}; output= can pick them"
        )
    checks.finite("the model's logits", logits)

    def by_model(changed: Tensor, then: Callable[[Tensor], Any] = lambda logits: logits) -> Any:
        again = Visit(first, lambda old: changed.clone())  # in memory of its own, as the site's is
        with at_sites(model, [again]):
            return run(
                batch, lambda result: then(run.own(pick(result, output, batch))), random=random
            )

    modules = unwrapped(model)

    def started(
        site: Site, value: Tensor, units: int, tape: Tape, choice: Choice, resume: Resume
    ) -> Start:
        kind, chain, outputs, why = choice
        if backend == "vmap" and kind == "replay":
            kind = "vmap"
        if backend not in (None, kind) and not (backend == "fused" and kind == "model"):
            raise ValueError(f"backend={backend!r}: cannot be taken at {site.name!r}: {why}")
        mask = batch.mask(decoder="decoder" in site.module)
        own = tape if kind != "model" else None
        return Start(value, units, rows, logits, kind, resume, mask, own, chain, outputs)

    def dim_of(site: Site, tape: Tape) -> int:
        assert tape.site is not None
        return unit_dim(tape.site, site, modules.get_submodule(site.module), tape.unit_dim, dim)

    units, rows = dim_of(first, tape), read_rows(logits, batch)
    choice = choose(tape, value, units, logits, by_model, backend)
    is_model = choice[0] == "model"
    found = {
        order[0]: started(first, value, units, tape, choice, by_model if is_model else tape.replay)
    }
    parts: list[Tape | None] = [None] * len(tape.marks)
    if tape.marks and not is_model:
        again, parts = in_parts(tape, value)
        if not equal_to_rounding(again, logits):
            parts = [None] * len(parts)
    options: Any = {"output": output, "dim": dim, "backend": backend, "argument": argument}
    for i, part in zip(order[1:], parts, strict=True):
        if part is None:
            found[i] = begin(run, model, sites[i], batch, around=around, **options)
            continue
        assert part.site is not None
        value, units = part.site.detach(), dim_of(sites[i], part)
        choice = _fused(part, value, units, logits, backend)
        found[i] = started(sites[i], value, units, part, choice, part.replay)
    return [found[i] for i in range(len(sites))]


def choose(
    tape: Tape,
    site: Tensor,
    dim: int,
    logits: Tensor,
    by_model: Callable[[Tensor], Tensor],
    backend: str | None = None,
) -> Choice:
    """How what followed a site can be done again: the one place that decides it.

    The first of these that gives the run's own logits again: "fused", "replay", "model". The
    unchanged site must give them; where a constant's origin was not seen, or the logits seem not to
    depend on the site at all, a changed site must give what the model itself then does.

    Returns:
        The backend, the chain of linear layers if there is one and what they return, and why no
        quicker way is taken.
    """
    if backend == "model" or is_reference():
        return "model", None, [], "asked for"
    if tape.why is not None:
        return "model", None, [], tape.why
    if tape.doubts or tape.out_slot < 0:
        generator = torch.Generator("cpu").manual_seed(0)
        noise = torch.randn(site.shape, generator=generator, device="cpu", dtype=torch.float32)
        moved = site + (0.1 + site.abs().mean()) * noise.to(site)
        found = tape.replay(moved) if tape.out_slot >= 0 else logits
        if not equal_to_rounding(found, by_model(moved)):
            return "model", None, [], (tape.doubts or ["the logits do not depend on the site"])[0]
    if tape.out_slot < 0:
        return "model", None, [], "the logits do not depend on the site"
    choice = _fused(tape, site, dim, logits, backend)
    if choice[0] == "fused" or equal_to_rounding(tape.replay(site), logits):
        return choice
    return "model", None, [], "the recorded calls give other logits"


def _fused(tape: Tape, site: Tensor, dim: int, logits: Tensor, backend: str | None) -> Choice:
    """The chain of layers that follows a site if there is one, and else the calls as they are."""
    why = "what follows is no chain of linear layers and activations"
    if backend in (None, "fused"):
        chain = chain_of(tape, site, dim)
        if chain is not None:
            value = site if chain.start == 0 else tape.replay(site, stop=chain.start)
            outputs = chain.outputs(value.flatten(1) if chain.start else value)
            if equal_to_rounding(outputs[-1].reshape(logits.shape), logits):
                return "fused", chain, outputs, ""
            why = "the layers as recorded give other logits"
    return "replay", None, [], why


def equal_to_rounding(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same but for the rounding of their dtype."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if torch.equal(a, b):
        return True
    slack = {torch.float64: 1e-10, torch.float32: 2e-5}.get(b.dtype, 2e-2)
    scale = float(b.abs().amax()) if b.numel() else 0.0
    return bool(((a - b).abs() <= slack * max(scale, 1e-30)).all())


@dataclass(frozen=True)
class Follower:
    """A linear layer that takes the site as it is, so that a unit changes its output by rank 1."""

    start: int
    """The call after it."""
    weight: Tensor
    """`[m, d]`."""
    output: Tensor
    """`[..., m]`."""

    def changed(self, scales: Tensor, updates: Tensor) -> Tensor:
        """Its outputs after changes by scales `[n, a]` times updates `[a, m]`: `[a, ..., m]`."""
        before = self.output.flatten(0, -2)
        after = torch.addcmul(before, scales.T[..., None], updates[:, None])
        return after.reshape(-1, *self.output.shape)


def follower_of(start: Start) -> Follower | None:
    """The layer that alone takes the site, if it is linear."""
    tape = start.tape
    if tape is None or not start.features_last:
        return None
    slot, d = tape.site_slot, start.site.shape[-1]
    for i, call in enumerate(tape.calls[:-1]):
        if call.slots() != [slot] or not isinstance(call.outs, Slot) or call.cast[0]:
            return None
        layer = linear_of(call)
        if layer is not None:
            weight = layer[0]
            if weight.shape[1] != d or weight.dtype != start.site.dtype:
                return None
            if not tape.alone_from(i + 1):
                return None
            return Follower(i + 1, weight, tape.replay(start.site, stop=i + 1))
        if not keeps_rows(call, slot, d):
            return None
        slot = call.outs.number
    return None


def batched(tape: Tape, first: int = 0) -> Callable[[Tensor], Tensor]:
    """The logits `[a, ...]` for values `[a, ...]` of what call `first` takes, all at once."""

    def run(values: Tensor) -> Tensor:
        constants = [x.expand(len(values), *x.shape).clone() for x in tape.constants]

        def one(value: Tensor, *own: Tensor) -> Tensor:
            return tape.replay(value, own or None, first)

        return vmap(one)(values, *constants)

    return run


def one_by_one(resume: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The logits `[a, ...]` for values `[a, ...]`, each by itself."""
    return lambda values: torch.stack([resume(value) for value in values])


def joined(backends: Sequence[str]) -> str:
    """What a result says of the batches' backends."""
    return ", ".join(dict.fromkeys(backends))
