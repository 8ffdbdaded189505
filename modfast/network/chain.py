"""What recorded calls are: linear layers, activations, and what takes each channel for itself."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from modfast.network.calls import Call, Slot
from modfast.network.tape import Tape
from modfast.reference import ACTIVATIONS


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
        elif not keeps_rows(call, slot, width):
            return None
        slot = call.outs.number
    if before != "identity" or not layers or slot != tape.out_slot:
        return None
    weights, biases = zip(*layers, strict=True)
    return Chain(start, tuple(activations), weights, biases)


def _slot_before(tape: Tape, start: int) -> int:
    return tape.site_slot if start == 0 else tape.calls[start - 1].outs.number


def keeps_rows(call: Call, slot: int, width: int) -> bool:
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


def weights_read(tape: Tape) -> int:
    """The bytes of the weights of a run's linear layers."""
    layers = [linear_of(call) for call in tape.calls]
    return sum(layer[0].nbytes for layer in layers if layer is not None)


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
