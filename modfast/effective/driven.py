"""A layer whose inputs are set, wherever in a network it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from modfast import checks
from modfast.effective.layers import run_once
from modfast.information import Binning
from modfast.network.inputs import Batch
from modfast.network.logits import Output, check_output, pick
from modfast.network.names import modules_of, resolve_modules
from modfast.network.run import running
from modfast.network.turns import alone

Limits: TypeAlias = tuple[float, float]

_CELLS_AT_ONCE = 2**22


class Driven:
    """A layer whose inputs are set and whose outputs are observed."""

    def __init__(
        self,
        model: nn.Module,
        input_shape: Sequence[int] | int,
        layer: str | None,
        in_range: Limits,
        out_range: Limits | None,
        activation: Callable[[Tensor], Tensor] | None,
        bins: int,
        seed: int | None,
        output: Output = None,
    ) -> None:
        check_output(output)
        self.output = output if layer is None else None
        self.module, one = _module_and_input(model, input_shape, layer)
        self.shape = one.shape[1:]
        self.like: dict[str, Any] = {"device": one.device, "dtype": one.dtype}
        self.n_in = self.shape.numel()
        self.in_range = _limits("in_range", in_range)
        self.out_range = None if out_range is None else _limits("out_range", out_range)
        if activation is not None and not callable(activation):
            raise TypeError(f"activation must be a function or None, got {activation!r}")
        self.activation = activation
        self.binning = Binning(bins, self.in_range)
        self.bins = self.binning.bins
        # On the CPU, so that the noise is the same on each device.
        self.generator = torch.Generator("cpu")
        drawn = (
            int(torch.randint(2**62, (), device="cpu"))
            if seed is None
            else checks.seed("seed", seed)
        )
        self.generator.manual_seed(drawn)
        self.width = max(self.n_in, self.outputs(one.flatten(1)).shape[1])

    def noise(self, n: int, d: int) -> Tensor:
        """Uniform inputs `[n, d]`."""
        low, high = self.in_range
        unit = torch.rand(n, d, generator=self.generator, dtype=torch.float64, device="cpu")
        values: Tensor = (low + (high - low) * unit).to(**self.like)
        return values

    def outputs(self, x: Tensor) -> Tensor:
        """The layer's outputs `[n, n_out]` for inputs `[n, n_in]`."""
        with running(self.module) as run, torch.no_grad():
            batch = Batch((x.unflatten(1, self.shape),), {})
            y = run(batch, lambda found: pick(found, self.output, batch))
            if self.activation is not None:
                y = self.activation(y)
        if not isinstance(y, Tensor) or not y.is_floating_point() or y.shape[:1] != (len(x),):
            raise TypeError(
                f"the driven module must return a floating tensor with a row for each input, "
                f"got {type(y).__name__} {tuple(getattr(y, 'shape', ()))} for {len(x)} inputs"
            )
        checks.finite("outputs", y)
        return y.flatten(1)

    def rows(self, n: int) -> list[int]:
        """Sizes of the batches in which n samples go through the layer."""
        most = max(1, _CELLS_AT_ONCE // self.width)
        return [min(most, n - start) for start in range(0, n, most)]


def _module_and_input(
    model: nn.Module, input_shape: Sequence[int] | int, layer: str | None
) -> tuple[nn.Module, Tensor]:
    """The module to drive, and what one sample of zeros to the model gives it."""
    module, taken = model, list[Any]()
    checks.python_module("model", model)
    if layer is not None:
        modules = resolve_modules(model, layer, argument="layer")
        if len(modules) > 1:
            raise ValueError(f"layer={layer!r} must name one module, got {list(modules)}")
        (module,) = modules.values()
    with alone(modules_of(model)), _noting(module, taken):
        run_once(model, input_shape)
    if len(taken) != 1:
        raise ValueError(f"layer={layer!r} must be called once by the model, got {len(taken)}")
    (args,) = taken
    x = args[0] if len(args) == 1 else None
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.shape[:1] != (1,):
        raise ValueError(
            f"layer={layer!r} must take one floating tensor with a row for each sample"
        )
    return module, x


@contextmanager
def _noting(module: nn.Module, taken: list[Any]) -> Iterator[None]:
    """What a module is called with, all of it."""
    hook = module.register_forward_pre_hook(lambda module, args: taken.append(args))
    try:
        yield
    finally:
        hook.remove()


def _limits(argument: str, limits: Limits) -> Limits:
    if not isinstance(limits, tuple) or len(limits) != 2:
        raise TypeError(f"{argument} must be (lowest, highest), got {limits!r}")
    low, high = (checks.finite_number(argument, limit) for limit in limits)
    if low >= high:
        raise ValueError(f"{argument} must have lowest < highest, got {limits!r}")
    return low, high
