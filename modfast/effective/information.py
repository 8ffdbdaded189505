"""How much information does the wiring of a network itself carry?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor, nn

from modfast import checks, plots
from modfast.effective.layers import BatchNorm, Unsupported, Use, uses_of
from modfast.effective.wiring import MAX_LOGIT, Norm
from modfast.network.inputs import Inputs
from modfast.network.names import modules_of
from modfast.network.turns import alone
from modfast.results import Result

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True, eq=False, repr=False)
class LayerInformation(Result):
    """One use of a layer by a network: its own effective information, in bits.

    Example:
        >>> LayerInformation("fc", "Linear", 4, 4, 2.0, 0.0, 2.0).ei
        2.0
    """

    name: str
    kind: str
    """The module's class."""
    n_in: int
    """In-units."""
    n_out: int
    """Out-units."""
    ei: float
    determinism: float
    degeneracy: float


@dataclass(frozen=True, eq=False, repr=False)
class EffectiveInformation(Result):
    """Effective information of a network's wiring, in bits; see `effective_information`.

    Example:
        >>> EffectiveInformation(2.0, 0.0, 2.0, ()).ei
        2.0
    """

    ei: float
    """degeneracy - determinism."""
    determinism: float
    """Mean entropy of the in-units' normalized out-weights."""
    degeneracy: float
    """Entropy of the out-units' summed in-weights."""
    layers: tuple[LayerInformation, ...]
    """The same of each layer by itself, in the order in which the network uses them."""

    def plot(self) -> Figure:
        """EI, determinism and degeneracy of each layer."""
        return plots.effective_information(
            [layer.determinism for layer in self.layers],
            [layer.degeneracy for layer in self.layers],
            [layer.name for layer in self.layers],
            (self.determinism, self.degeneracy),
            [f"{x.name}, {x.kind}, {x.n_in:,} → {x.n_out:,}" for x in self.layers],
        )


def effective_information(
    model: nn.Module,
    input_shape: Sequence[int] | int | None = None,
    norm: Norm = "linear",
    *,
    inputs: Inputs | None = None,
    batch_norm: BatchNorm = "skip",
    channel_mixing: bool = False,
    unsupported: Unsupported = "error",
) -> EffectiveInformation:
    """Effective information of a network's wiring, in bits.

    Each layer is a matrix W of in-units by out-units, whose rows are normalized to p_ij. Over all
    in-units i and out-units j of all layers:

        determinism = mean over i of H(p_i) = mean of -sum_j p_ij log2 p_ij
        degeneracy  = H(c), with c_j = sum_i p_ij, divided by the sum of all c
        EI          = degeneracy - determinism

    The names are the source's. A layer that is used several times counts as often. The matrices
    are never built: a convolution's rows and columns are computed once for each kind of position.

    Layers are nn.Linear, Conv1d, Conv2d, ConvTranspose1d, ConvTranspose2d, AvgPool1d, AvgPool2d and
    transformers' Conv1D. Other modules without weights, such as activations and other poolings,
    are skipped, and so are normalizations and PReLU, which join no unit to another. One sample of
    zeros goes through the model, in eval mode, to see what is used and in which shapes; training
    flags, buffers and hooks are left as they were.

    Args:
        model: a network, or one layer.
        input_shape: of its input, without the batch axis.
        norm: how rows are normalized, see `normalize_rows`.
        inputs: in place of `input_shape`, one batch (a tensor, a tuple or a mapping) for a model
            that takes no one tensor of zeros; its first sample is what goes through the model.
        batch_norm: "skip", or "fold": the factors of a BatchNorm multiply the weights of the layer
            before it.
        channel_mixing: average pooling connects every channel to every channel, as the source
            library has it, rather than each to itself.
        unsupported: what becomes of weights that are not in a supported layer, or in one that the
            model does not call: "error", which lists them, or "skip".

    Returns:
        The network's EI and each layer's; sums are taken in float64.

    Raises:
        TypeError: `model` is no module, `input_shape` no shape, weights of another type.
        ValueError: an input that does not fit the model, weights that are not counted or not
            finite, a layer without inputs or outputs, a padding mode other than zeros, a BatchNorm
            that cannot be folded, weights beyond -600 to 600 with "softmax", an unknown option.

    Source: N2, the effective-information notebook; Mattsson, Michaud and Hoel (2020).

    Example:
        >>> import torch, modfast
        >>> layer = torch.nn.Linear(4, 4)
        >>> _ = layer.weight.data.fill_(1.0)
        >>> found = modfast.effective_information(layer, 4)
        >>> found.ei, found.determinism, found.degeneracy
        (0.0, 2.0, 2.0)
        >>> _ = layer.weight.data.copy_(torch.eye(4))
        >>> modfast.effective_information(layer, 4).ei
        2.0
    """
    checks.choice("norm", norm, get_args(Norm))
    checks.flag("channel_mixing", channel_mixing)
    checks.choice("batch_norm", batch_norm, get_args(BatchNorm))
    checks.choice("unsupported", unsupported, get_args(Unsupported))
    checks.module("model", model)
    shapes, sums = [], []
    with alone(modules_of(model)):
        uses = uses_of(model, input_shape, inputs, batch_norm, unsupported)
        for use in uses:
            wiring = use.wiring(channel_mixing)
            if norm == "softmax" and wiring.weight.numel():
                _require_small(use, wiring.weight, wiring.scale)
            shapes.append(wiring.shape)
            sums.append(wiring.sums(norm).cpu())
    rows = torch.stack(sums).tolist()
    layers = tuple(
        LayerInformation(use.name, type(use.module).__name__, *shape, *_bits(shape[0], *row))
        for use, shape, row in zip(uses, shapes, rows, strict=True)
    )
    n_in = sum(layer.n_in for layer in layers)
    return EffectiveInformation(*_bits(n_in, *map(math.fsum, zip(*rows, strict=True))), layers)


def determinism(
    model: nn.Module,
    input_shape: Sequence[int] | int | None = None,
    norm: Norm = "linear",
    *,
    inputs: Inputs | None = None,
    batch_norm: BatchNorm = "skip",
    channel_mixing: bool = False,
    unsupported: Unsupported = "error",
) -> float:
    """The mean entropy of the in-units' normalized out-weights, in bits.

    Arguments and errors are those of `effective_information`.

    Source: N2, the effective-information notebook.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(4, 8)
        >>> _ = layer.weight.data.fill_(1.0)
        >>> determinism(layer, 4)
        3.0
    """
    return effective_information(
        model,
        input_shape,
        norm,
        inputs=inputs,
        batch_norm=batch_norm,
        channel_mixing=channel_mixing,
        unsupported=unsupported,
    ).determinism


def degeneracy(
    model: nn.Module,
    input_shape: Sequence[int] | int | None = None,
    norm: Norm = "linear",
    *,
    inputs: Inputs | None = None,
    batch_norm: BatchNorm = "skip",
    channel_mixing: bool = False,
    unsupported: Unsupported = "error",
) -> float:
    """The entropy of the out-units' summed in-weights, all layers' normalized together, in bits.

    Arguments and errors are those of `effective_information`.

    Source: N2, the effective-information notebook.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(4, 4)
        >>> _ = layer.weight.data.copy_(torch.eye(4))
        >>> degeneracy(layer, 4)
        2.0
    """
    return effective_information(
        model,
        input_shape,
        norm,
        inputs=inputs,
        batch_norm=batch_norm,
        channel_mixing=channel_mixing,
        unsupported=unsupported,
    ).degeneracy


def _bits(n_in: int, entropy: float, total: float, total_log: float) -> tuple[float, float, float]:
    """EI, determinism and degeneracy from sums of H_i, c_j and c_j ln c_j in nats."""
    mean = entropy / n_in / math.log(2)
    # Without a positive weight there is nothing to spread.
    spread = (math.log(total) - total_log / total) / math.log(2) if total > 0 else 0.0
    return spread - mean, mean, spread


def _require_small(use: Use, weight: Tensor, scale: Tensor | None) -> None:
    ends = torch.stack([weight.amin((2, 3, 4)), weight.amax((2, 3, 4))])
    ends = ends if scale is None else ends * scale
    largest = float(ends.abs().amax())
    if largest > MAX_LOGIT:
        raise ValueError(
            f"the weight of {use.name!r} must be from -{MAX_LOGIT:.0f} to {MAX_LOGIT:.0f} with "
            f"norm='softmax', got {largest} in size"
        )
