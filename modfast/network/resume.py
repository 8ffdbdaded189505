"""From a site on, many times: how a network is resumed there, and the one place that chooses."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional

from modfast import checks
from modfast._extension import is_reference
from modfast.network.dims import unit_dim
from modfast.network.inputs import Batch
from modfast.network.logits import Output, Rows, pick, read_rows
from modfast.network.run import Run
from modfast.network.sites import Site, unwrapped
from modfast.network.tape import Call, Slot, Tape
from modfast.network.visits import Visit, at_sites
from modfast.reference import ACTIVATIONS

BACKENDS = ("fused", "vmap", "replay", "model")
"""How a network is resumed: by fused kernels, where what follows is a chain of linear layers and
activations; by doing the recorded calls again, for many values at once or one by one; or by running
the model itself with the site's value replaced, which always works."""


@dataclass(frozen=True)
class Chain:
    """Linear layers up to the logits, and the name of the activation before each."""

    start: int
    """How many calls come before it, which take each channel for itself."""
    activations: tuple[str, ...]
    weights: tuple[Tensor, ...]
    """`[m, d]` each."""
    biases: tuple[Tensor | None, ...]

    def outputs(self, value: Tensor, first: int = 0) -> list[Tensor]:
        """What the layers from `first` on return for what comes before it; the logits are last."""
        found = []
        layers = zip(self.activations, self.weights, self.biases, strict=True)
        for name, weight, bias in list(layers)[first:]:
            value = functional.linear(ACTIVATIONS[name](value), weight, bias)
            found.append(value)
        return found


@dataclass(frozen=True)
class Start:
    """One batch, run once: what all changes at the site share."""

    site: Tensor
    """Its value, as the model has it."""
    dim: int
    """Of its units."""
    rows: Rows
    """Of the model's own logits."""
    shape: torch.Size
    """Of all logits."""
    backend: str
    """"fused", "replay" or "model"."""
    resume: Callable[[Tensor], Tensor]
    """The logits for another value of the site."""
    mask: Tensor | None = None
    """Which positions of the site count, `[n, t]`."""
    tape: Tape | None = None
    chain: Chain | None = None
    outputs: Sequence[Tensor] = ()
    """Of the chain's layers."""

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
) -> Start:
    """Runs a model on a batch, and finds how to resume it from a site.

    Raises:
        TypeError: a site or model that gives no floating tensor.
        ValueError: a site that is not reached, or several times; logits of another shape or not
            finite; a backend that cannot be taken.
    """
    place = unwrapped(model).get_submodule(site.module)
    tensors = batch.tensors()
    device = tensors[0].device.type if tensors else "cpu"
    tape = Tape(run.guard(batch), [*tensors, *run.tensors], device)

    def take(value: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            if not value.is_floating_point() or value.dim() < 2:
                raise TypeError(
                    f"site={site.name!r}: must be a floating tensor [n, ..., features], got "
                    f"{value.dtype} of shape {tuple(value.shape)}"
                )
            own = run.own(value)
        return tape.begin(own)

    def read(found: Any) -> Tensor:
        logits = pick(found, output, batch)
        tape.finish(logits)
        return run.own(logits)

    visit = Visit(site, take)
    with at_sites(model, [visit]):
        logits = run(batch, read, tape)
    visit.check()
    random = run.random
    assert tape.site is not None
    value = tape.site.detach()
    checks.dense(f"site={site.name!r}", value)
    if not logits.is_floating_point() or logits.dim() < 2:
        raise ValueError(
            "the model's logits must be floating and of shape [n, ..., classes], "
            f"got {logits.dtype} of shape {tuple(logits.shape)}; output= can pick them"
        )
    checks.finite("the model's logits", logits)

    def by_model(changed: Tensor) -> Tensor:
        again = Visit(site, lambda old: changed.clone())  # in memory of its own, as the site's is
        with at_sites(model, [again]):
            found: Tensor = run(
                batch, lambda result: run.own(pick(result, output, batch)), random=random
            )
        return found

    units = unit_dim(value, site, place, tape.unit_dim, dim)
    rows = read_rows(logits, batch)
    kind, chain, outputs, why = choose(tape, value, units, logits, by_model, backend)
    if backend == "vmap" and kind == "replay":
        kind = "vmap"
    if backend not in (None, kind) and not (backend == "fused" and kind == "model"):
        raise ValueError(f"backend={backend!r}: cannot be taken at {site.name!r}: {why}")
    resume = by_model if kind == "model" else tape.replay
    mask = batch.mask(decoder="decoder" in site.module)
    return Start(
        value,
        units,
        rows,
        logits.shape,
        kind,
        resume,
        mask,
        tape if kind != "model" else None,
        chain,
        outputs,
    )


def choose(
    tape: Tape,
    site: Tensor,
    dim: int,
    logits: Tensor,
    by_model: Callable[[Tensor], Tensor],
    backend: str | None = None,
) -> tuple[str, Chain | None, list[Tensor], str]:
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
    why = "what follows is no chain of linear layers and activations"
    if backend in (None, "fused"):
        chain = chain_of(tape, site, dim)
        if chain is not None:
            value = site if chain.start == 0 else tape.replay(site, stop=chain.start)
            outputs = chain.outputs(value.flatten(1) if chain.start else value)
            if equal_to_rounding(outputs[-1].reshape(logits.shape), logits):
                return "fused", chain, outputs, ""
            why = "the layers as recorded give other logits"
    if equal_to_rounding(tape.replay(site), logits):
        return "replay", None, [], why
    return "model", None, [], "the recorded calls give other logits"


def equal_to_rounding(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same but for the rounding of their dtype."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if torch.equal(a, b):
        return True
    slack = {torch.float64: 1e-10, torch.float32: 2e-5}.get(b.dtype, 2e-2)
    scale = float(b.abs().amax()) if b.numel() else 0.0
    return bool(((a - b).abs() <= slack * max(scale, 1e-30)).all())


# ---------------------------------------------------------------------- what the recorded calls are

_ACTIVATIONS = {"relu", "relu_", "tanh", "tanh_", "sigmoid", "sigmoid_", "silu", "gelu"}
RESHAPES = {"flatten", "view", "reshape", "contiguous", "squeeze", "view_as", "clone"}
BY_CHANNEL = re.compile(
    r"(adaptive_)?(avg|max)_?pool[23]d|batch_norm|relu_?|relu6|gelu|silu|tanh|sigmoid|leaky_relu_?|"
    r"elu_?|selu_?|celu_?|softplus|hardtanh_?|hardswish|mish"
)


def chain_of(tape: Tape, site: Tensor, dim: int) -> Chain | None:
    """The linear layers and activations that a run's calls after a site are; None if they are not.

    What takes each channel `[n, c, h, w]` for itself may come before, if one position is left.
    """
    if site.dtype not in (torch.float32, torch.float64):
        return None
    start, width = 0, site.shape[dim]
    if dim != site.dim() - 1:
        start = channels_apart(tape, site, dim)
        shape = tape.calls[start - 1].shape if start else None
        if start == len(tape.calls) or shape is None or shape[:2] != site.shape[:2]:
            return None
        if shape[2:].count(1) != len(shape[2:]):
            return None
    slot = _slot_before(tape, start)
    activations: list[str] = []
    layers: list[tuple[Tensor, Tensor | None]] = []
    before = "identity"
    for call in tape.calls[start:]:
        if call.slots() != [slot] or not isinstance(call.outs, Slot) or call.cast[0]:
            return None
        layer = linear_of(call)
        name = activation_of(call)
        if layer is not None and layer[0].shape[1] == width and layer[0].dtype == site.dtype:
            activations.append(before)
            layers.append(layer)
            before, width = "identity", len(layer[0])
        elif name is not None and before == "identity":
            before = name
        elif not _keeps_rows(call, slot, width):
            return None
        slot = call.outs.number
    if before != "identity" or not layers or slot != tape.out_slot:
        return None
    weights, biases = zip(*layers, strict=True)
    return Chain(start, tuple(activations), weights, biases)


def _slot_before(tape: Tape, start: int) -> int:
    return tape.site_slot if start == 0 else tape.calls[start - 1].outs.number


def _keeps_rows(call: Call, slot: int, width: int) -> bool:
    """Whether a call leaves the last dimension as it is, and the rows in their order."""
    if call.outs.number == slot and not call.writes:
        return True
    return call.name in RESHAPES and call.shape is not None and call.shape[-1] == width


def linear_of(call: Call) -> tuple[Tensor, Tensor | None] | None:
    """Weight `[m, d]` and bias of a call that is a linear layer, on one value that depends."""
    if call.places is None or len(call.places) != 1 or call.writes:
        return None
    at, args = call.places[0][0], call.args
    if call.name == "linear" and at == 0 and set(call.kwargs) <= {"bias"}:
        weight, bias = args[1], args[2] if len(args) > 2 else call.kwargs.get("bias")
    elif call.name == "addmm" and at == 1 and len(args) == 3 and not call.kwargs:
        weight, bias = args[2].T, args[0]  # transformers' Conv1D
    elif call.name in ("matmul", "__matmul__", "mm") and at == 0 and len(args) == 2:
        weight, bias = args[1].T if args[1].dim() == 2 else args[1], None
    else:
        return None
    plain = type(weight) in (Tensor, nn.Parameter) and weight.dim() == 2
    if not plain or (bias is not None and bias.shape != weight.shape[:1]):
        return None
    return weight.detach(), None if bias is None else bias.detach()


def activation_of(call: Call) -> str | None:
    """A name of `modfast.reference.ACTIVATIONS`."""
    options = {name: value for name, value in call.kwargs.items() if name != "inplace"}
    if call.name not in _ACTIVATIONS or call.places is None or len(call.args) > 2:
        return None
    if len(call.args) == 2 and not isinstance(call.args[1], bool):
        return None
    if call.name == "gelu":
        kind = options.pop("approximate", "none")
        return (
            None if options or len(call.args) > 1 else {"none": "gelu", "tanh": "gelu_tanh"}[kind]
        )
    return None if options else call.name.rstrip("_")


def channels_apart(tape: Tape, site: Tensor, dim: int) -> int:
    """How many calls right after a site `[n, c, h, w]` take each channel for itself."""
    if dim != 1 or site.dim() != 4:
        return 0
    slot, n = tape.site_slot, 0
    for call in tape.calls:
        if call.slots() != [slot] or call.places is None or not isinstance(call.outs, Slot):
            break
        name = call.name
        apart = BY_CHANNEL.fullmatch(name) is not None and call.places[0][0] == 0
        if name == "batch_norm":
            training = call.kwargs.get("training", call.args[5] if len(call.args) > 5 else False)
            apart = apart and not training
        shape = call.shape or ()
        last_one = name in RESHAPES and shape == site.shape[:2] and _one_position(tape, n)
        over = name == "mean" and shape[:2] == site.shape[:2] and _over_positions(call)
        if not (apart and len(shape) == 4) and not last_one and not over:
            break
        slot, n = call.outs.number, n + 1
        if len(shape) == 2:
            break
    return n if n and n < len(tape.calls) and tape.alone_from(n) else 0


def _one_position(tape: Tape, n: int) -> bool:
    shape = tape.calls[n - 1].shape if n else None
    return shape is not None and shape[2:] == (1, 1)


def _over_positions(call: Call) -> bool:
    dims = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else None)
    return isinstance(dims, (tuple, list)) and sorted(d % 4 for d in dims) == [2, 3]


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
        if not _keeps_rows(call, slot, d):
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
