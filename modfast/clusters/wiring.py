"""Weights as a graph: which units each of them joins.

A side is a group of units, such as a layer's outputs, which are the next layer's inputs, or the
dimensions of a residual stream, which every block reads and writes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from modfast import checks
from modfast.clusters.labels import Clusters
from modfast.network.names import match_names, unwrapped
from modfast.network.weights import (
    has_weight,
    hidden_weights,
    input_first,
    require_dense,
    shows_attention,
    weight_of,
)

Array: TypeAlias = NDArray[Any]
Weights: TypeAlias = Tensor | Mapping[str, Tensor] | nn.Module

_BLOCK = re.compile(r"(.*\d)\.")
_SHORTCUT = re.compile(r"downsample|shortcut|skip")
_STREAM = re.compile(r"(^|\.)(mlp|ffn|feed_?forward|DenseReluDense|intermediate|linear1)(\.|$)")


@dataclass(frozen=True)
class Layer:
    """A weight between two sides."""

    name: str
    values: Array
    """`[rows, cols, m]`: the m entries between each two units."""
    rows: int
    """Which side the rows are."""
    cols: int
    spread: int = 1
    """How many of the weight's columns a unit has, as after flattening a convolution's output."""


@dataclass(frozen=True)
class Wiring:
    """Weights, and the number of units of each side."""

    layers: tuple[Layer, ...]
    sizes: tuple[int, ...]

    def clusters(self, labels: Sequence[Array], k: int) -> dict[str, Clusters]:
        """By weight, the clusters of its rows and columns, of labels of the sides."""
        return {
            each.name: Clusters(
                torch.from_numpy(labels[each.rows].astype(np.int32)),
                torch.from_numpy(labels[each.cols].astype(np.int32).repeat(each.spread)),
                k,
            )
            for each in self.layers
        }

    def labels(self, clusters: Mapping[str, Clusters]) -> list[Array]:
        """Labels of the sides, of clusters of the weights.

        Raises:
            ValueError: clusters of other weights or sizes, or of which two say different things of
                the same units.
        """
        found: dict[int, tuple[str, Array]] = {}
        if clusters.keys() != {each.name for each in self.layers}:
            names = [each.name for each in self.layers]
            raise ValueError(f"clusters must be given for {names}, got {list(clusters)}")
        for layer in self.layers:
            each = clusters[layer.name]
            if not isinstance(each, Clusters):
                raise TypeError(f"clusters must be Clusters, got {type(each).__name__}")
            shape = self.sizes[layer.rows], self.sizes[layer.cols] * layer.spread
            if each.shape != shape:
                raise ValueError(
                    f"clusters of {layer.name!r} must be of a {shape[0]} x {shape[1]} weight, "
                    f"got {each.shape[0]} x {each.shape[1]}"
                )
            cols = each.cols.cpu().numpy().reshape(-1, layer.spread)
            for side, labels in ((layer.rows, each.rows.cpu().numpy()), (layer.cols, cols[:, 0])):
                other, before = found.setdefault(side, (layer.name, labels))
                if not (np.array_equal(before, labels) and (cols == cols[:, :1]).all()):
                    raise ValueError(
                        "clusters must agree on units that weights share, got others for "
                        f"{layer.name!r} than for {other!r}"
                    )
        return [found[side][1] for side in range(len(self.sizes))]


@dataclass
class _End:
    """A weight that has not been joined to others yet."""

    name: str
    values: Tensor
    """`[rows, cols, *kernel]`."""
    inputs_first: bool = False

    def n(self, out: bool) -> int:
        return int(self.values.shape[0 if out != self.inputs_first else 1])


def read_wiring(weights: Weights, layers: str | Sequence[str] | None = None) -> Wiring:
    """The graph of one weight, of several by name, or of a model's.

    Of a model: the layers in their order, each reading what the one before it gives (through a
    flattening too); where names show blocks around a residual stream (transformers, of which the
    blocks' MLPs are taken if `layers` is None, and ResNets), each block reads and writes the
    stream. Of several weights: the same by their sizes, outputs first or inputs first, and names.

    Raises:
        TypeError: none of these, a weight that does not float.
        ValueError: unknown names, no weights, some that are not finite, or without two dimensions.
    """
    if isinstance(weights, nn.Module):
        return _of_model(weights, layers)
    if layers is not None:
        raise ValueError(f"layers must be None where no model is given, got {layers!r:.60}")
    if isinstance(weights, Mapping):
        ends = [_End(checks.text("weight's keys", name), x) for name, x in weights.items()]
    else:
        ends = [_End("weight", weights)]
    for each in ends:
        what = "weight" if not isinstance(weights, Mapping) else f"weight[{each.name!r}]"
        checks.floating(what, each.values)
        require_dense(what, each.values)
        _require_units(what, each.values)
        checks.finite(what, each.values.detach())
    if not ends:
        raise ValueError("weight must hold at least one weight, got none")
    pairs = list(pairwise(ends))
    outputs_first = sum(_fits(a, b) is not None for a, b in pairs)
    inputs_first = sum(a.values.shape[1] == b.values.shape[0] for a, b in pairs)
    stream = len(ends) > 1 and all(_STREAM.search(each.name) for each in ends)
    # Of what fits both ways, a stream is narrower than what a block's first weight makes of it.
    narrow = stream and ends[0].values.shape[0] < ends[0].values.shape[1]
    if inputs_first > outputs_first or (inputs_first == outputs_first and narrow):
        for each in ends:
            each.inputs_first = True
    return _stream(ends) if stream else _chain(ends, [True] * len(ends))


def _of_model(model: nn.Module, layers: str | Sequence[str] | None) -> Wiring:
    inner = unwrapped(model)
    modules = {name: x for name, x in inner.named_modules() if name and has_weight(x)}
    own = {id(x._parameters.get("weight", x)): name for name, x in reversed(modules.items())}
    modules = {name: x for name, x in modules.items() if name in own.values()}  # tied ones once
    attention = shows_attention(name for name, _ in inner.named_parameters())
    if layers is not None:
        chosen = match_names(modules, layers, "layers", "suitable module")
    elif attention:
        names = hidden_weights(dict(inner.named_parameters()))
        chosen = [name.removesuffix(".weight") for name in names]
        chosen = [name for name in modules if name in chosen]
    else:
        chosen = list(modules)
    if not chosen:
        raise ValueError("model must have a Linear, a convolution or a Conv1D, got none")
    ends = []
    for name in chosen:
        weight = weight_of(modules[name], name).detach()
        _require_units(f"the weight of {name!r}", weight)
        ends.append(_End(name, weight.transpose(0, 1) if input_first(modules[name]) else weight))
    if attention or any(_SHORTCUT.search(name) for name in modules):
        return _stream(ends)
    order = list(modules)
    follows = [i > 0 and order[order.index(x) - 1] == chosen[i - 1] for i, x in enumerate(chosen)]
    return _chain(ends, follows)


def _require_units(what: str, weight: Tensor) -> None:
    if weight.dim() < 2 or not weight.numel():
        raise ValueError(
            f"{what} must have at least two dimensions and entries, got shape {tuple(weight.shape)}"
        )


def _fits(before: _End, end: _End) -> int | None:
    """How many of a weight's inputs each output of the one before it is; None if it is not."""
    times, rest = divmod(end.n(out=False), before.n(out=True))
    flat = before.values.dim() > 2 and end.values.dim() == 2
    return times if not rest and times and (times == 1 or flat) else None


class _Sides:
    """The sides so far, and the weights between them."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.layers: list[Layer] = []

    def new(self, size: int) -> int:
        self.sizes.append(size)
        return len(self.sizes) - 1

    def add(self, end: _End, source: int | None, target: int | None = None) -> int:
        """Joins a weight to a side that it reads and one that it writes; returns the latter."""
        if source is None:
            source = self.new(end.n(out=False))
        if target is None:
            target = self.new(end.n(out=True))
        rows, cols = (source, target) if end.inputs_first else (target, source)
        values = end.values.detach().cpu()
        values = values.double() if values.dtype == torch.float64 else values.float()
        n_rows, n_cols = self.sizes[rows], self.sizes[cols]
        array: Array = values.reshape(n_rows, n_cols, -1).resolve_neg().numpy()
        spread = int(values.shape[1]) // n_cols
        self.layers.append(Layer(end.name, array, rows, cols, spread))
        return target

    def wiring(self) -> Wiring:
        return Wiring(tuple(self.layers), tuple(self.sizes))


def _chain(ends: list[_End], follows: list[bool]) -> Wiring:
    sides = _Sides()
    before: tuple[_End, int] | None = None
    for end, follow in zip(ends, follows, strict=True):
        tied = before is not None and follow and _fits(before[0], end) is not None
        before = end, sides.add(end, before[1] if before is not None and tied else None)
    return sides.wiring()


def _stream(ends: list[_End]) -> Wiring:
    """Blocks, by the last number in names, each of which reads and writes a residual stream."""
    blocks: dict[str, list[_End]] = {}
    for end in ends:
        found = _BLOCK.match(end.name)
        blocks.setdefault(found[1] if found else end.name, []).append(end)
    sides = _Sides()
    stream: tuple[_End | None, int] | None = None  # what wrote it, and its side

    def reads(end: _End) -> int | None:
        """The stream, if a weight's inputs are as many; several a unit after a flattening."""
        if stream is None:
            return None
        writer, side = stream
        if sides.sizes[side] == end.n(out=False):
            return side
        return side if writer is not None and _fits(writer, end) is not None else None

    for name, block in blocks.items():
        cuts = [end for end in block if _SHORTCUT.search(end.name)]
        body = [end for end in block if end not in cuts]
        if len(block) == 1 and name == block[0].name:  # outside of all blocks
            stream = block[0], sides.add(block[0], reads(block[0]))
            continue
        if len(body) == 1:  # its smaller side is the stream
            (end,) = body
            width = min(end.n(out=False), end.n(out=True))
            if stream is None or sides.sizes[stream[1]] != width:
                stream = None, sides.new(width)
            into = end.n(out=False) == width
            sides.add(end, stream[1] if into else None, None if into else stream[1])
            continue
        if stream is None or reads(body[0]) is None:
            stream = None, sides.new(body[0].n(out=False))
        last = sides.add(body[0], stream[1])
        for before, end in pairwise(body[:-1]):
            if end.n(out=False) == before.n(out=True):
                last = sides.add(end, last)
            else:  # a gate beside it, or one that reads something else
                same = end.n(out=True) == sides.sizes[last]
                last = sides.add(end, reads(end), last if same else None)
        tied = body[-1].n(out=False) == sides.sizes[last]
        back = not cuts and body[-1].n(out=True) == sides.sizes[stream[1]]
        side = sides.add(body[-1], last if tied else None, stream[1] if back else None)
        for end in cuts:
            there = side if end.n(out=True) == sides.sizes[side] else None
            sides.add(end, reads(end), there)
        stream = body[-1], side
    return sides.wiring()
