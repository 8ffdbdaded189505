"""Which layers does a network have, how often does it use each, and how is each one wired?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias
from weakref import ref

import torch
from torch import Tensor, nn

from modfast import checks
from modfast.clusters.weights import has_weight, input_first
from modfast.effective.wiring import Axis, Wiring, convolution_axis, pooling_axis
from modfast.sites import in_mode

BatchNorm: TypeAlias = Literal["skip", "fold"]
Unsupported: TypeAlias = Literal["error", "skip"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d)
_POOLS = (nn.AvgPool1d, nn.AvgPool2d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
# They scale each unit, or all together, and so join no unit to another of its own choice.
_UNWIRED = (
    *(*_BATCH_NORMS, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    *(nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.PReLU),
)


@dataclass(eq=False)
class Use:
    """One call of a layer in a forward pass."""

    name: str
    module: nn.Module
    in_shape: torch.Size
    out_shape: torch.Size
    batch_norm: str | None = None
    """The name of the BatchNorm that follows."""
    scale: Tensor | None = None
    """What that one multiplies each out-channel by."""

    def wiring(self, channel_mixing: bool) -> Wiring:
        """How the layer connects its units.

        Raises:
            TypeError: weights that are not float32, float64, bfloat16 or float16.
            ValueError: weights that are not finite, another padding mode than zeros, a BatchNorm
                over other channels than the layer's.
        """
        module: Any = self.module
        if isinstance(module, _POOLS):
            return _pooling(module, self.in_shape, self.out_shape, channel_mixing)
        weight = module.weight.detach()
        if weight.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            raise TypeError(
                f"the weight of {self.name!r} must be float32, float64, bfloat16 or float16, "
                f"got {weight.dtype}"
            )
        checks.finite(f"the weight of {self.name!r}", weight)
        if not isinstance(module, (*_CONVOLUTIONS, *_TRANSPOSED)):
            weight = weight.T if input_first(module) else weight
            blocks = math.prod(self.in_shape[:-1])
            alone = _point()
            scale = self._scale(len(weight), 1, over_channels=len(self.in_shape) == 2)
            return Wiring(weight[None, :, :, None, None], alone, alone, scale, blocks)
        if module.padding_mode != "zeros":
            raise ValueError(
                f"layer {self.name!r} must have padding_mode='zeros', got {module.padding_mode!r}: "
                "with others one pair of units may be connected twice"
            )
        weight = weight if weight.dim() == 4 else weight[:, :, None]
        weight = weight.reshape(module.groups, -1, *weight.shape[1:])
        weight = weight.transpose(1, 2) if isinstance(module, _TRANSPOSED) else weight
        axes = _convolution_axes(module, self.in_shape, self.out_shape)
        batched = len(self.in_shape) == len(module.kernel_size) + 2
        scale = self._scale(module.out_channels, module.groups, over_channels=batched)
        return Wiring(weight, *axes, scale, self.in_shape[0] if batched else 1)

    def _scale(self, n_channels: int, groups: int, over_channels: bool) -> Tensor | None:
        """The BatchNorm's factors `[groups, channels]`; None without."""
        if self.scale is None:
            return None
        if not over_channels or len(self.scale) != n_channels:
            raise ValueError(
                f"batch_norm='fold': {self.batch_norm!r} is not over the {n_channels} out-channels "
                f"of {self.name!r}"
            )
        return self.scale.reshape(groups, -1)


def is_layer(module: nn.Module) -> bool:
    """Whether the module is of a kind that effective information is of."""
    if isinstance(module, (*_CONVOLUTIONS, *_TRANSPOSED, *_POOLS)):
        return True
    return has_weight(module) and not hasattr(module, "kernel_size")


def uses_of(
    model: nn.Module,
    input_shape: Sequence[int] | int,
    batch_norm: BatchNorm,
    unsupported: Unsupported,
) -> list[Use]:
    """Every use of a layer in one forward pass of one sample, in eval mode, in order of calls.

    Raises:
        TypeError: `model` is no module, or `input_shape` no shape.
        ValueError: an input that does not fit the model, no layer at all, weights in modules that
            are not supported or not called, a BatchNorm that cannot be folded.
    """
    checks.module("model", model)
    names = {module: name or type(module).__name__ for name, module in model.named_modules()}
    found: list[Use] = []
    # The use that gave an output, for as long as that is alive and not worked on in place.
    givers: dict[tuple[int, int], tuple[ref[Tensor], Use]] = {}

    def on_call(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        use = Use(names[module], module, _first(args, kwargs).shape, output.shape)
        found.append(use)
        givers[id(output), output._version] = ref(output), use

    def on_norm(module: nn.Module, args: Any, kwargs: Any) -> None:
        x = _first(args, kwargs)
        giver, use = givers.get((id(x), x._version), (None, None))
        if giver is None or use is None or giver() is not x or use.scale is not None:
            raise ValueError(
                f"batch_norm='fold': {names[module]!r} does not follow a layer that it could be "
                "folded into; batch_norm='skip' leaves it out"
            )
        use.batch_norm, use.scale = names[module], _factors(names[module], module)

    with ExitStack() as stack:
        for module in names:
            if is_layer(module):
                hook = module.register_forward_hook(on_call, with_kwargs=True)
                stack.enter_context(hook)
            elif batch_norm == "fold" and isinstance(module, _BATCH_NORMS):
                hook = module.register_forward_pre_hook(on_norm, with_kwargs=True)
                stack.enter_context(hook)
        run_once(model, input_shape)
    if unsupported == "error":
        _require_supported(names, {use.module for use in found})
    if not found:
        raise ValueError(
            f"model must use a linear, convolution or average pooling layer, got {model}"
        )
    return found


def run_once(model: nn.Module, input_shape: Sequence[int] | int) -> Any:
    """What the model returns for one sample of zeros, in eval mode and without gradients.

    Raises:
        TypeError: `model` is no module, or `input_shape` no shape.
        ValueError: an input that does not fit the model.
    """
    checks.module("model", model)
    x = torch.zeros(1, *shape_of(input_shape), **_like(model))
    with in_mode(model, training=False), torch.no_grad():
        try:
            return model(x)
        except (RuntimeError, IndexError) as error:
            raise ValueError(
                f"input_shape={tuple(x.shape[1:])} does not fit the model: {error}"
            ) from error


def shape_of(input_shape: Sequence[int] | int) -> tuple[int, ...]:
    """`input_shape` as a tuple of ints of at least 1.

    Raises:
        TypeError, ValueError: it is none.
    """
    sizes = input_shape if isinstance(input_shape, Sequence) else (input_shape,)
    if not sizes:
        raise ValueError("input_shape must have at least one size, got none")
    return tuple(checks.count("input_shape", size) for size in sizes)


def _like(model: nn.Module) -> dict[str, Any]:
    """Device and dtype of the model's first floating parameter; torch's own without any."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            return {"device": parameter.device, "dtype": parameter.dtype}
    return {}


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else next(iter(kwargs.values()))


def _require_supported(names: dict[nn.Module, str], called: set[nn.Module]) -> None:
    wrong = []
    for module, name in names.items():
        # A parametrization's weights are those of the layer that it is for.
        if module._parameters and not (
            isinstance(module, _UNWIRED) or "parametrizations" in name.split(".")
        ):
            if not is_layer(module):
                wrong.append(f"{name!r} ({type(module).__name__}) is not supported")
            elif module not in called:
                wrong.append(f"{name!r} ({type(module).__name__}) was not called")
    if wrong:
        raise ValueError(
            f"model has weights that are not counted: {', '.join(wrong)}; "
            "unsupported='skip' leaves them out"
        )


def _factors(name: str, norm: Any) -> Tensor:
    if norm.running_var is None:
        raise ValueError(
            f"batch_norm='fold': {name!r} has no running statistics (track_running_stats=False)"
        )
    factors: Tensor = (norm.running_var.double() + norm.eps).rsqrt()
    return factors if norm.weight is None else factors * norm.weight.detach().double()


def _convolution_axes(
    module: Any, in_shape: torch.Size, out_shape: torch.Size
) -> tuple[Axis, Axis]:
    transposed = isinstance(module, _TRANSPOSED)
    dims = len(module.kernel_size)
    paddings = module.padding
    if paddings == "same":
        # torch puts the odd one on the right.
        paddings = [
            d * (k - 1) // 2 for k, d in zip(module.kernel_size, module.dilation, strict=True)
        ]
    elif paddings == "valid":
        paddings = [0] * dims
    *_, last = axes = [
        convolution_axis(*sizes, transposed)
        for sizes in zip(
            in_shape[-dims:],
            out_shape[-dims:],
            module.kernel_size,
            module.stride,
            paddings,
            module.dilation,
            strict=True,
        )
    ]
    return axes[0] if dims == 2 else _point(), last


def _pooling(
    module: Any, in_shape: torch.Size, out_shape: torch.Size, channel_mixing: bool
) -> Wiring:
    dims = 1 if isinstance(module, nn.AvgPool1d) else 2
    override = getattr(module, "divisor_override", None)
    divide = "padded" if module.count_include_pad else "valid"
    axes, shares = [], []
    for i in range(-dims, 0):
        kernel, stride, padding = (
            size if isinstance(size, int) else size[i]
            for size in (module.kernel_size, module.stride, module.padding)
        )
        axis, share = pooling_axis(
            in_shape[i], out_shape[i], kernel, stride, padding, "not" if override else divide
        )
        axes.append(axis)
        shares.append(share)
    if dims == 1:
        axes.insert(0, _point())
        shares.insert(0, torch.ones(1, dtype=torch.float64, device="cpu"))
    weight = (shares[0][:, None] * shares[1] / (override or 1))[None, None, None]
    rows, columns = axes
    channels, batch = in_shape[-dims - 1], math.prod(in_shape[: -dims - 1])
    if channel_mixing:
        return Wiring(weight, rows, columns, blocks=batch, ins=channels, outs=channels)
    return Wiring(weight, rows, columns, blocks=batch * channels)


@lru_cache(maxsize=1)
def _point() -> Axis:
    """The axis of a layer that has no positions."""
    return Axis.of_table(torch.zeros(1, 1, dtype=torch.int64, device="cpu"), 1)
