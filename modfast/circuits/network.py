"""A model as a chain of weight layers, whose units are nodes with edges from layer to layer.

An edge from unit s to unit r of the next layer carries weight[r, s] * h_s, where h_s is what
becomes of s on the way, by activations and pooling. A unit's pre-activation is the sum over its
edges and its bias.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from modfast import checks
from modfast.clusters import Clusters
from modfast.network.calls import Call, Slot
from modfast.network.chain import BY_CHANNEL, RESHAPES, linear_of
from modfast.network.inputs import Batch
from modfast.network.logits import Output, check_output, pick
from modfast.network.names import nearest, unwrapped
from modfast.network.resume import equal_to_rounding
from modfast.network.run import Run
from modfast.network.sites import Site, plain_name
from modfast.network.tape import Tape
from modfast.network.visits import Visit, at_sites

Groups: TypeAlias = Clusters | Sequence[Sequence[int]] | str
INPUT = "input"
Intervention: TypeAlias = Literal["patch", "zero", "mean", "positional-mean"]
KINDS = ("layers", "heads", "units")
"""What nodes may be, in a word: whole layers, of attention the heads, or all units apart."""
BACKEND = "replay"

# Besides `BY_CHANNEL`; `_check_apart` sees to it that it is true of each.
_MORE = re.compile(r"(adaptive_)?(avg|max)_pool[13]d|dropout[123]?d?|hardsigmoid|pad")
_ARITHMETIC = ("add", "sub", "mul", "div", "neg")
_NO_CHAIN = (
    "model must be a chain of Linear and convolution layers with activations, pooling, batch norm "
    "and flatten between them, "
)


class NoChainError(ValueError):
    """A model is no chain of layers."""


@dataclass(frozen=True)
class Layer:
    """A weight layer, and what works on each of its units by itself up to the next."""

    name: str
    weight: Tensor
    """`[units, m, ...]`."""
    bias: Tensor | None
    linear: Callable[[Tensor, Tensor], Tensor]
    """The layer without its bias, of an input and a weight, which may be whole rows or columns."""
    after: Callable[[Tensor], Tensor]
    senders: Tensor
    """The unit of the layer before, or of the input, that each of the weight's columns takes."""

    @property
    def constant(self) -> Tensor:
        """The bias, to be added to what `linear` returns; 0 where there is none."""
        if self.bias is None:
            return self.weight.new_zeros(())
        return self.bias.reshape(-1, *[1] * (self.weight.dim() - 2))


@dataclass(frozen=True)
class Pass:
    """A forward pass of a whole network: by layer what goes in, and the pre-activations."""

    inputs: list[Tensor]
    outputs: list[Tensor]
    logits: Tensor


@dataclass(frozen=True)
class Network:
    """The layers of a chain, and to which node each unit of the input and of each layer belongs."""

    before: Callable[[Tensor], Tensor]
    layers: list[Layer]
    nodes: dict[str, Tensor]
    """int64 `[units]` by layer, the input first."""

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Each layer with the one before."""
        names = [INPUT, *(layer.name for layer in self.layers)]
        return list(pairwise(names))

    def n_nodes(self, name: str) -> int:
        """Of the input or of a layer."""
        return int(self.nodes[name].max()) + 1

    def run(self, x: Tensor) -> Pass:
        """Runs the whole network; ValueError for logits that are not finite."""
        # Copies, since what comes between layers may work in place.
        h = self.before(x.clone())
        inputs, outputs = [], []
        for layer in self.layers:
            inputs.append(h)
            outputs.append(layer.linear(h, layer.weight) + layer.constant)
            h = layer.after(outputs[-1].clone())
        checks.finite("the model's logits", h)
        return Pass(inputs, outputs, h)

    def columns(self, level: int) -> Tensor:
        """The sender node of each of the weight's columns."""
        return self.nodes[self.pairs[level][0]][self.layers[level].senders]

    def masked_weight(self, level: int, mask: Tensor) -> Tensor:
        """A layer's weight, 0 for the edges that are not in a bool mask [senders, receivers]."""
        weight = self.layers[level].weight
        rows = self.nodes[self.layers[level].name]
        kept = mask.to(weight.device)[self.columns(level)][:, rows].T
        return weight * kept.reshape(*kept.shape, *[1] * (weight.dim() - 2))


def read_network(
    run: Run,
    model: nn.Module,
    clean: Tensor,
    corrupted: Tensor,
    nodes: Mapping[str, Groups] | str | None = None,
    output: Output = None,
) -> tuple[Network, Pass, Pass]:
    """Reads a model as a chain, from a run that is recorded; and its passes on both inputs.

    The chain must give what the model gives, on the clean and on the corrupted inputs.

    Raises:
        NoChainError: it is no such chain.
        ValueError: nodes of an unknown layer, or that do not fit.
    """
    check_output(output)
    tape, logits = _record(run, model, clean, output)
    linears, parts = _parts(tape, model, clean)
    before = _composed(parts[0])
    h = before(clean.clone())
    layers: list[Layer] = []
    units, z = None, h
    for (name, weight, bias, linear), part in zip(linears, parts[1:], strict=True):
        m = weight.shape[1]
        if 0 in weight.shape:
            raise NoChainError(f"model must have units in {name!r}, got a weight {[*weight.shape]}")
        if h.dim() != weight.dim() or h.shape[:2] != (len(clean), m):
            wanted = ", ".join([str(len(clean)), str(m), *"lmn"[: weight.dim() - 2]])
            raise NoChainError(f"model must pass [{wanted}] to {name!r}, got shape {list(h.shape)}")
        # Rows of a sample come first in what is flattened, so each unit's columns lie together.
        n_senders = m if units is None else units
        if m % n_senders:
            raise NoChainError(
                f"model must pass as many values of each of {n_senders} units to {name!r}, got {m}"
            )
        senders = torch.arange(m, device=weight.device) // (m // n_senders)
        if layers:
            _check_apart(layers[-1], z, h, senders)
        layers.append(Layer(name, weight, bias, linear, _composed(part), senders))
        z = linear(h, weight) + layers[-1].constant
        h = layers[-1].after(z.clone())
        units = len(weight)
    sizes = {INPUT: layers[0].weight.shape[1]}
    sizes |= {layer.name: len(layer.weight) for layer in layers}
    network = Network(
        before, layers, _nodes(sizes, {} if nodes is None else nodes, layers[0].weight.device)
    )

    def own(x: Tensor) -> Tensor:
        found: Tensor = run(Batch((x,), {}), lambda result: run.own(pick(result, output)))
        return found

    whole, other = network.run(clean), network.run(corrupted)
    pairs = [(whole.logits, logits), (other.logits, own(corrupted))]
    if tape.doubts:
        noise = torch.randn(
            clean.shape,
            generator=torch.Generator("cpu").manual_seed(0),
            device="cpu",
            dtype=torch.float32,
        )
        moved = clean + (0.1 + clean.abs().mean()) * noise.to(clean)
        pairs.append((network.run(moved).logits, own(moved)))
    if h.dim() != 2 or not all(equal_to_rounding(found, wanted) for found, wanted in pairs):
        raise NoChainError("model must be a chain of layers that returns logits [n, classes]")
    return network, whole, other


def _record(run: Run, model: nn.Module, x: Tensor, output: Output) -> tuple[Tape, Tensor]:
    """What a model does with its input."""
    batch = Batch((x,), {})
    tape = Tape(run.guard(batch), [x, *run.tensors], x.device.type)

    def read(result: Any) -> Tensor:
        logits = pick(result, output, batch)
        tape.finish(logits)
        return run.own(logits)

    with at_sites(model, [Visit(Site(INPUT, "", of_input=True), tape.begin, "clean")]):
        logits = run(batch, read, tape)
    if tape.why is not None:
        raise ValueError(f"model must make the same calls whatever its input is: {tape.why}")
    return tape, logits


_Linear: TypeAlias = tuple[str, Tensor, Tensor | None, Callable[[Tensor, Tensor], Tensor]]
_Step: TypeAlias = Callable[[Tensor], Tensor]


def _parts(tape: Tape, model: nn.Module, x: Tensor) -> tuple[list[_Linear], list[list[_Step]]]:
    """The weight layers, and what comes before, between and after them."""
    names: dict[int, str] = {}
    for name, parameter in unwrapped(model).named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), name.removesuffix(".weight"))
    layers: list[_Linear] = []
    parts: list[list[_Step]] = [[]]
    slot, shape = tape.site_slot, tuple(x.shape)
    for call in tape.calls:
        found = call.shape
        if call.slots() != [slot] or not isinstance(call.outs, Slot) or found is None:
            raise NoChainError(
                f"{_NO_CHAIN}got {call.name!r}, which takes or returns more than the one value"
            )
        if call.cast[0]:
            raise NoChainError(f"{_NO_CHAIN}got {call.name!r} under autocast")
        layer = _layer(call, names)
        if layer is not None:
            if layer[0] in [each[0] for each in layers]:
                raise NoChainError(f"model must use each layer once, got {layer[0]!r} twice")
            layers.append(layer)
            parts.append([])
        else:
            parts[-1].append(_step(call, shape, found))
        slot, shape = call.outs.number, found
    if slot != tape.out_slot:
        raise ValueError("model must return logits that depend on its input")
    if not layers:
        raise NoChainError("model must have Linear or convolution layers, got none")
    return layers, parts


def _layer(call: Call, names: Mapping[int, str]) -> _Linear | None:
    """A call as a weight layer; None where it is none."""
    linear = linear_of(call)
    conv = re.fullmatch(r"conv[123]d", call.name) is not None
    if linear is None and not (conv and call.places is not None and call.places[0][0] == 0):
        return None
    own = [p for p in [*call.args, *call.kwargs.values()] if id(p) in names and p.dim() > 1]
    if len(own) != 1:
        raise NoChainError(f"{_NO_CHAIN}got {call.name!r} with a weight that is no parameter")
    (weight,) = own
    name = names[id(weight)]
    if name == INPUT:
        raise ValueError(f"model must have no layer called {INPUT!r}, which is the input's name")
    if linear is not None:
        return name, _usable(linear[0]), _usable(linear[1]), functional.linear
    args, kwargs = list(call.args), dict(call.kwargs)
    if kwargs.get("groups", args[6] if len(args) > 6 else 1) != 1:
        raise NoChainError(f"model must have convolutions of groups=1, got {name!r}")
    bias = args[2] if len(args) > 2 else kwargs.pop("bias", None)
    kwargs.pop("weight", None)

    def convolve(x: Tensor, weight: Tensor) -> Tensor:
        found: Tensor = call.func(x, weight, None, *args[3:], **kwargs)
        return found

    return name, _usable(weight), _usable(bias), convolve


def _step(call: Call, before: tuple[int, ...], after: tuple[int, ...]) -> _Step:
    """A call between layers, which takes each unit by itself, for any number of samples."""
    rows = before[:1] == after[:1]
    if call.name in RESHAPES and rows:
        return lambda x: x.reshape(len(x), *after[1:])
    at = call.places[0][0] if call.places else 0
    args = [each for i, each in enumerate(call.args) if i != at]
    apart = any(names.fullmatch(call.name) for names in (BY_CHANNEL, _MORE))
    if call.name == "batch_norm":
        apart = apart and not call.kwargs.get("training", args[4] if len(args) > 4 else False)
    if plain_name(call.func) in _ARITHMETIC:
        apart = apart or all(isinstance(x, (int, float)) for x in (*args, *call.kwargs.values()))
    lone = call.places is not None or isinstance(call.args[0], Slot)
    if not apart or not lone or not rows or len(before) != len(after) or before[1] != after[1]:
        raise NoChainError(f"{_NO_CHAIN}got {call.name!r}")
    constants = [_usable(each) for each in args]
    options = {name: _usable(each) for name, each in call.kwargs.items()}

    def step(x: Tensor) -> Tensor:
        found: Tensor = call.func(*constants[:at], x, *constants[at:], **options)
        return found

    return step


def _usable(value: Any) -> Any:
    """A constant as gradients can be taken through it."""
    if not isinstance(value, Tensor):
        return value
    return value.clone() if value.is_inference() else value.detach()


def _composed(steps: Sequence[_Step]) -> _Step:
    return lambda x: reduce(lambda value, step: step(value), steps, x)


def _check_apart(layer: Layer, z: Tensor, h: Tensor, senders: Tensor) -> None:
    """Refuses what mixes units between two layers, as a 2-d pool of `[n, units, length]` does."""
    moved = z.clone()
    moved[:, ::2] += 1
    still = senders % 2 == 1
    if not torch.allclose(layer.after(moved)[:, still], h[:, still], equal_nan=True):
        raise NoChainError(f"model must take each unit of {layer.name!r} by itself up to the next")


def _nodes(
    sizes: Mapping[str, int], nodes: Mapping[str, Groups] | str, device: torch.device
) -> dict[str, Tensor]:
    if isinstance(nodes, str):
        checks.choice("nodes", nodes, KINDS)
        nodes = {} if nodes == "units" else dict.fromkeys(sizes, "one")
    if not isinstance(nodes, Mapping):
        raise TypeError(f"nodes must be a mapping by layer, got {type(nodes).__name__}")
    for name in nodes:
        if name not in sizes:
            raise ValueError(f"nodes={name!r}: no such layer; {nearest(str(name), sizes)}")
    return {name: group_labels(name, nodes.get(name), n).to(device) for name, n in sizes.items()}


def group_labels(name: str, groups: Groups | None, n: int) -> Tensor:
    """The node of each unit: the groups, then each unit that is in none."""
    if groups is None:
        return torch.arange(n, device="cpu")
    if isinstance(groups, str):
        if groups != "one":
            raise ValueError(f"nodes[{name!r}] must be groups, Clusters or 'one', got {groups!r}")
        return torch.zeros(n, dtype=torch.int64, device="cpu")
    if isinstance(groups, Clusters):
        labels = groups.rows.long().cpu()
        if len(labels) != n:
            raise ValueError(f"nodes[{name!r}] must be clusters of {n} outputs, got {len(labels)}")
    else:
        try:
            labels = Clusters.from_indices(groups, [], (n, 0)).rows.long()
        except (TypeError, ValueError) as error:
            raise type(error)(f"nodes[{name!r}]: {error}") from error
    free = labels < 0
    labels = torch.where(free, labels.max().clamp(min=-1) + free.cumsum(0), labels)
    # Empty groups are no nodes.
    found: Tensor = labels.unique(return_inverse=True)[1]
    return found
