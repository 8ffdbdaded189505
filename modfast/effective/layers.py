"""Which layers does a network have, how often does it use each, and how is each one wired?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias
from weakref import ref

import torch
from torch import Tensor, nn

from modfast import checks
from modfast.effective.wiring import Axis, Wiring, convolution_axis, pooling_axis
from modfast.network.inputs import Batch, Inputs, mapped, one_batch
from modfast.network.names import modules_of, unwrapped
from modfast.network.run import running
from modfast.network.sites import Site
from modfast.network.turns import alone
from modfast.network.visits import EachVisit, Visit, at_sites
from modfast.network.weights import current_weight, has_weight, input_first

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
        weight = current_weight(module, self.name).detach()
        require_real(self.name, weight)
        if 0 in weight.shape:
            raise ValueError(
                f"layer {self.name!r} must have inputs and outputs, got a weight of shape "
                f"{tuple(weight.shape)}"
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


def require_real(name: str, weight: Tensor) -> None:
    """Refuses a weight of another type than effective information is computed of.

    Raises:
        TypeError: it is one.
    """
    if weight.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise TypeError(
            f"the weight of {name!r} must be float32, float64, bfloat16 or float16, "
            f"got {weight.dtype}"
        )


def uses_of(
    model: nn.Module,
    input_shape: Sequence[int] | int | None,
    inputs: Inputs | None,
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
    paths = {module: path for path, module in unwrapped(model).named_modules()}
    names = {module: path or type(module).__name__ for module, path in paths.items()}
    found: list[Use] = []
    # The use that gave an output, for as long as that is alive and not worked on in place.
    givers: dict[tuple[int, int], tuple[ref[Tensor], Use]] = {}
    shapes: dict[nn.Module, torch.Size] = {}

    def watch(module: nn.Module) -> list[Visit]:
        def on_input(x: Tensor) -> None:
            shapes[module] = x.shape

        def on_output(output: Tensor) -> None:
            use = Use(names[module], module, shapes[module], output.shape)
            found.append(use)
            givers[id(output), output._version] = ref(output), use

        def on_norm(x: Tensor) -> None:
            giver, use = givers.get((id(x), x._version), (None, None))
            if giver is None or use is None or giver() is not x or use.scale is not None:
                raise ValueError(
                    f"batch_norm='fold': {names[module]!r} does not follow a layer that it could "
                    "be folded into; batch_norm='skip' leaves it out"
                )
            use.batch_norm, use.scale = names[module], _factors(names[module], module)

        path = paths[module]
        entry = Site(f"{path}:input", path, of_input=True)
        if is_layer(module):
            return [EachVisit(entry, on_input), EachVisit(Site(path, path), on_output)]
        if batch_norm == "fold" and isinstance(module, _BATCH_NORMS):
            return [EachVisit(entry, on_norm)]
        return []

    visits = [visit for module in names for visit in watch(module)]
    with alone(modules_of(model)), at_sites(model, visits):
        run_once(model, input_shape, inputs)
    if unsupported == "error":
        _require_supported(names, {use.module for use in found})
    if not found:
        raise ValueError(
            f"model must use a linear, convolution or average pooling layer, got {model}"
        )
    return found


def run_once(
    model: nn.Module, input_shape: Sequence[int] | int | None, inputs: Inputs | None = None
) -> Any:
    """What the model returns for one sample, in eval mode and without gradients.

    Args:
        model: the model.
        input_shape: of a sample of zeros;
        inputs: or a batch of inputs, of which the first sample is taken.

    Raises:
        TypeError: `model` is no module, `input_shape` no shape, weights of another type.
        ValueError: an input that does not fit the model; both kinds of input, or none.
    """
    checks.module("model", model)
    if (input_shape is None) == (inputs is None):
        raise ValueError(
            f"input_shape must be given or inputs must, got {'none' if inputs is None else 'both'}"
        )
    if inputs is None:
        assert input_shape is not None
        x = torch.zeros(1, *shape_of(input_shape), **_like(model))
        batch, what = Batch((x,), {}), f"input_shape={tuple(x.shape[1:])}"
        hint = "; a model that takes no one tensor of zeros, but integers, say, needs inputs="
    else:
        batch, what = one_batch(model, inputs, None, "one sample is enough"), "inputs"
        args, kwargs = mapped(lambda x: x[:1] if x.dim() else x, (batch.args, batch.kwargs))
        batch, hint = Batch(args, kwargs), ""
    with running(model, argument=what) as run, torch.no_grad():
        try:
            return run(batch)
        except ValueError as error:
            if error.__cause__ is None:
                raise
            for name, module in unwrapped(model).named_modules():
                weight = module._parameters.get("weight")
                if is_layer(module) and weight is not None:
                    require_real(name or type(module).__name__, weight)
            raise ValueError(f"{error}{hint}") from error.__cause__


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
