"""A model as a chain of weight layers, whose units are nodes with edges from layer to layer.

An edge from unit s to unit r of the next layer carries weight[r, s] * h_s, where h_s is what
becomes of s on the way, by activations and pooling. A unit's pre-activation is the sum over its
edges and its bias.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from modfast import checks
from modfast.ablation.chain import is_changed, takes_channels_apart
from modfast.ablation.trace import same_output
from modfast.clusters import Clusters
from modfast.network.names import nearest

Groups: TypeAlias = Clusters | Sequence[Sequence[int]] | str
INPUT = "input"

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_RESHAPES = ("flatten", "view", "reshape")
# Besides what `takes_channels_apart` knows; `_check_apart` sees to it that it is true of each.
_POOLS = (
    *(nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveMaxPool1d, nn.AdaptiveAvgPool1d),
    *(nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveMaxPool3d, nn.AdaptiveAvgPool3d, nn.BatchNorm3d),
)


@dataclass(frozen=True)
class Layer:
    """A weight layer, and what works on each of its units by itself up to the next."""

    name: str
    module: Any
    after: Callable[[Tensor], Tensor]
    senders: Tensor
    """The unit of the layer before, or of the input, that each of the weight's columns takes."""

    @property
    def weight(self) -> Tensor:
        """`[units, m, ...]`."""
        found: Tensor = self.module.weight.detach()
        return found

    @property
    def constant(self) -> Tensor:
        """The bias, to be added to what `linear` returns; 0 where there is none."""
        bias = self.module.bias
        if bias is None:
            return self.weight.new_zeros(())
        found: Tensor = bias.detach().reshape(-1, *[1] * (self.weight.dim() - 2))
        return found

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer without its bias, by another weight, of whole rows or columns of it."""
        if isinstance(self.module, nn.Linear):
            return functional.linear(x, weight)
        found: Tensor = self.module._conv_forward(x, weight, None)
        return found


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


def read_network(model: nn.Module, x: Tensor, nodes: Mapping[str, Groups] | None = None) -> Network:
    """Reads a model, in eval mode, as a chain that gives the same output for `x`.

    Raises:
        ValueError: it is no such chain; nodes of an unknown layer, or that do not fit.
    """
    parts, modules = _parts(model)
    h = parts[0](x.clone())
    layers: list[Layer] = []
    units, z = None, h
    for (name, module), after in zip(modules, parts[1:], strict=True):
        m = module.weight.shape[1]
        if h.dim() != module.weight.dim() or h.shape[:2] != (len(x), m):
            wanted = ", ".join([str(len(x)), str(m), *"lmn"[: module.weight.dim() - 2]])
            raise ValueError(f"model must pass [{wanted}] to {name!r}, got shape {list(h.shape)}")
        # Rows of a sample come first in what is flattened, so each unit's columns lie together.
        n_senders = m if units is None else units
        if m % n_senders:
            raise ValueError(
                f"model must pass as many values of each of {n_senders} units to {name!r}, got {m}"
            )
        senders = torch.arange(m, device=module.weight.device) // (m // n_senders)
        if layers:
            _check_apart(layers[-1], z, h, senders)
        layers.append(Layer(name, module, after, senders))
        z = module(h)
        h = after(z.clone())
        units = len(module.weight)
    sizes = {INPUT: layers[0].weight.shape[1]}
    sizes |= {layer.name: len(layer.weight) for layer in layers}
    network = Network(parts[0], layers, _nodes(sizes, nodes or {}, layers[0].weight.device))
    if h.dim() != 2 or not same_output(h, model(x.clone())):
        raise ValueError("model must be a chain of layers that returns logits [n, classes]")
    return network


def _check_apart(layer: Layer, z: Tensor, h: Tensor, senders: Tensor) -> None:
    """Refuses what mixes units between two layers, as a 2-d pool of `[n, units, length]` does."""
    moved = z.clone()
    moved[:, ::2] += 1
    still = senders % 2 == 1
    if not torch.allclose(layer.after(moved)[:, still], h[:, still], equal_nan=True):
        raise ValueError(f"model must take each unit of {layer.name!r} by itself up to the next")


def _parts(model: nn.Module) -> tuple[list[fx.GraphModule], list[tuple[str, Any]]]:
    """What comes before, between and after the weight layers, and these by name."""
    attributes = set(model.__dict__)
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:
        raise ValueError(f"model must be a chain that torch.fx can trace: {error}") from error
    finally:
        for name in set(model.__dict__) - attributes:  # constants that the tracer puts there
            del model.__dict__[name]
    placeholders = graph.find_nodes(op="placeholder")
    if len(placeholders) != 1:
        raise ValueError(f"model must take one input, got {[n.name for n in placeholders]}")
    chain, starts = [placeholders[0]], [placeholders[0]]
    modules: list[tuple[str, Any]] = []
    while True:
        users = [user for user in chain[-1].users if not _is_size(user)]
        if len(users) != 1 or users[0].args[:1] != (chain[-1],):
            raise ValueError(
                f"model must be a chain of layers, got {chain[-1].name!r}, which "
                f"{[user.name for user in users]} take"
            )
        (node,) = users
        if node.op == "output":
            break
        chain.append(node)
        module: Any = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if type(module) in (nn.Linear, *_CONVOLUTIONS) and not is_changed(module):
            _check_layer(str(node.target), module, [name for name, _ in modules])
            starts.append(node)
            modules.append((str(node.target), module))
        elif not _takes_apart(model, node, module):
            kind = "" if module is None else f", a {type(module).__name__}"
            raise ValueError(
                "model must be a chain of Linear and convolution layers with activations, "
                f"pooling, batch norm and flatten between them, got {node.name!r}{kind}"
            )
    if not modules:
        raise ValueError("model must have Linear or convolution layers, got none")
    ends = [*starts[1:], None]
    parts = [_part(model, graph, chain, s, e) for s, e in zip(starts, ends, strict=True)]
    return parts, modules


def _part(
    model: nn.Module, graph: fx.Graph, chain: list[fx.Node], start: fx.Node, end: fx.Node | None
) -> fx.GraphModule:
    """From what node `start` returns to the input of node `end`, or to the end."""
    first = chain.index(start)
    last = len(chain) if end is None else chain.index(end)
    part = fx.Graph()
    copies = {start: part.placeholder(start.name)}
    inside = set(chain[first + 1 : last])
    for node in graph.nodes:
        sizes = node not in chain and node.op != "output" and node.all_input_nodes
        if node in inside or (sizes and all(x in copies for x in node.all_input_nodes)):
            if not all(x in copies for x in node.all_input_nodes):
                raise ValueError(f"model must be a chain, got {node.name!r}, which looks back")
            copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(copies[chain[last - 1]])
    return fx.GraphModule(model, part)


def _is_size(node: fx.Node) -> bool:
    method = node.op == "call_method" and node.target in ("size", "dim")
    return method or (node.op == "call_function" and node.target is getattr)


def _takes_apart(model: nn.Module, node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node may stand between two layers."""
    pools = module is not None and type(module) in _POOLS and not is_changed(module)
    return pools or _is_reshape(node, module) or takes_channels_apart(model, node)


def _is_reshape(node: fx.Node, module: nn.Module | None) -> bool:
    if node.op == "call_method":
        return node.target in _RESHAPES
    functions = (torch.flatten, torch.reshape)
    return type(module) is nn.Flatten or (node.op == "call_function" and node.target in functions)


def _check_layer(name: str, module: Any, known: list[str]) -> None:
    if name in known:
        raise ValueError(f"model must use each layer once, got {name!r} twice")
    if name == INPUT:
        raise ValueError(f"model must have no layer called {INPUT!r}, which is the input's name")
    if getattr(module, "groups", 1) != 1:
        raise ValueError(f"model must have convolutions of groups=1, got {name!r}")


def _nodes(
    sizes: Mapping[str, int], nodes: Mapping[str, Groups], device: torch.device
) -> dict[str, Tensor]:
    if not isinstance(nodes, Mapping):
        raise TypeError(f"nodes must be a mapping by layer, got {type(nodes).__name__}")
    for name in nodes:
        if name not in sizes:
            raise ValueError(f"nodes={name!r}: no such layer; {nearest(str(name), sizes)}")
    return {name: _labels(name, nodes.get(name), n).to(device) for name, n in sizes.items()}


def _labels(name: str, groups: Groups | None, n: int) -> Tensor:
    """The node of each unit: the groups, then each unit that is in none."""
    if groups is None:
        return torch.arange(n)
    if isinstance(groups, str):
        if groups != "one":
            raise ValueError(f"nodes[{name!r}] must be groups, Clusters or 'one', got {groups!r}")
        return torch.zeros(n, dtype=torch.int64)
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


def checked_inputs(model: nn.Module, clean: Tensor, corrupted: Tensor) -> None:
    """Refuses inputs that no network, or not this one, should run on.

    Raises:
        TypeError: no tensors, no module.
        ValueError: different shapes, dtypes or devices; not the model's; empty; not finite.
    """
    checks.module("model", model)
    for argument, x in (("clean", clean), ("corrupted", corrupted)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{argument} must be a tensor, got {type(x).__name__}")
        if x.numel() == 0:
            raise ValueError(f"{argument} must not be empty, got shape {tuple(x.shape)}")
        if x.dim() < 2:
            raise ValueError(f"{argument} must be [n, ...], got shape {tuple(x.shape)}")
    if (clean.shape, *_kind(clean)) != (corrupted.shape, *_kind(corrupted)):
        raise ValueError(f"corrupted must be as clean, {_told(clean)}, got {_told(corrupted)}")
    parameter = next(model.parameters(), None)
    if parameter is not None and _kind(clean) != _kind(parameter):
        dtype, device = _kind(parameter)
        raise ValueError(f"clean must be as the model, {dtype} on {device}, got {_told(clean)}")
    for argument, x in (("clean", clean), ("corrupted", corrupted)):
        checks.finite(argument, x)


def _kind(x: Tensor) -> tuple[torch.dtype, torch.device]:
    return x.dtype, x.device


def _told(x: Tensor) -> str:
    return f"{x.dtype} {tuple(x.shape)} on {x.device}"
