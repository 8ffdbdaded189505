"""Which dimension of a value holds its units."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from modfast import checks
from modfast.network.sites import Site, plain_name

_CHANNELS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
_FEATURES = (
    *(nn.Linear, nn.Bilinear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.EmbeddingBag),
    *(nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase),
    *(nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.TransformerEncoder),
    *(nn.TransformerDecoder, nn.Transformer),
)
_CHANNEL_CALLS = re.compile(
    r"conv(_transpose)?\dd|(adaptive_)?(max|avg)_?pool\dd\w*|(batch|group|instance)_norm|"
    r"interpolate|pixel_shuffle"
)
_FEATURE_CALLS = {"linear", "layer_norm", "rms_norm", "embedding", "addmm"}
_ELEMENTWISE = {
    *("add", "sub", "mul", "div", "relu", "relu6", "gelu", "silu", "tanh", "sigmoid", "elu"),
    *("leaky_relu", "hardtanh", "hardswish", "hardsigmoid", "mish", "softplus", "selu", "celu"),
    *("dropout", "dropout2d", "clamp", "contiguous", "clone", "to", "float", "double", "half"),
    *("bfloat16", "neg", "abs", "where", "view_as", "detach"),
}


class UnitDims:
    """Which dimension of a tensor of four dimensions or more holds units, by how it was made."""

    def __init__(self) -> None:
        self.found: dict[int, tuple[Any, int]] = {}  # by id, with a reference that tells who it was

    def note(self, func: Any, args: Any, output: Tensor) -> None:
        """Follows one call of torch that gave such a tensor."""
        name = plain_name(func)
        if _CHANNEL_CALLS.fullmatch(name):
            self._put(output, 1)
        elif name in _FEATURE_CALLS:
            self._put(output, output.dim() - 1)
        elif name in _ELEMENTWISE or name in ("permute", "transpose"):
            known = {self.of(x) for x in args if isinstance(x, Tensor) and x.dim() == output.dim()}
            dim = known.pop() if len(known) == 1 else None
            if dim is not None and name == "permute":
                order = args[1] if isinstance(args[1], (tuple, list)) else args[1:]
                dim = [d % output.dim() for d in order].index(dim)
            elif dim is not None and name == "transpose":
                a, b = (d % output.dim() for d in args[1:3])
                dim = {a: b, b: a}.get(dim, dim)
            if dim is not None:
                self._put(output, dim)

    def of(self, value: Tensor) -> int | None:
        """The dimension; None where it is not known."""
        kept, dim = self.found.get(id(value), (None, 0))
        return dim if kept is not None and kept() is value else None

    def _put(self, value: Tensor, dim: int) -> None:
        self.found[id(value)] = ref(value), dim


class NotingUnits(TorchFunctionMode):
    """Follows all calls of torch in a `with` block."""

    def __init__(self) -> None:
        super().__init__()
        self.dims = UnitDims()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if type(output) is Tensor:
            with torch._C.DisableTorchFunction():
                if output.dim() > 3:
                    self.dims.note(func, args, output)
        return output


def unit_dim(
    value: Tensor, site: Site, module: nn.Module, known: int | None = None, dim: int | None = None
) -> int:
    """The dimension of a site's units.

    The last of what Linear, LayerNorm, Embedding, attention and their like take and return;
    dimension 1 of what convolutions, their pools and norms do. Of others the last, up to three
    dimensions; beyond these, what is `known` of how the value was made.

    Raises:
        ValueError: `dim` is no dimension of the value; not given where it is not known.

    Example:
        >>> import torch
        >>> unit_dim(torch.zeros(5, 7, 7, 8), Site("fc", "fc"), nn.Linear(3, 8))
        3
    """
    n = value.dim()
    if dim is not None:
        dim = checks.integer("dim", dim)
        if not -n <= dim < n:
            raise ValueError(
                f"dim must be a dimension of the site, {tuple(value.shape)}, got {dim}"
            )
        return dim % n
    if site.function is None:
        kind = type(module)
        if n > 3 and known is not None and kind not in (*_CHANNELS, *_FEATURES):
            return known  # a subclass may arrange its output otherwise
        if isinstance(module, _CHANNELS):
            return 1
        if isinstance(module, _FEATURES) or kind.__name__ in ("Conv1D", "RMSNorm"):
            return n - 1
    if n <= 3:
        return n - 1
    if known is None:
        raise ValueError(
            f"dim must say which dimension of {site.name!r} holds its units: its shape is "
            f"{tuple(value.shape)}, and a {type(module).__name__} may have them anywhere"
        )
    return known
