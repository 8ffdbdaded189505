"""Pruning one layer: the quickest way of trying weights that does what the model itself does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from modfast.network.inputs import Batch, tensors_in
from modfast.network.logits import Output, Rows, pick, read_rows
from modfast.network.resume import Start, begin, equal_to_rounding
from modfast.network.run import Run
from modfast.network.sites import Site
from modfast.network.state import place_of
from modfast.network.visits import Visit, at_sites
from modfast.network.weights import has_weight, input_first
from modfast.ops.pruning import PRUNING_DTYPES

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.ConvTranspose1d: functional.conv_transpose1d,
    nn.ConvTranspose2d: functional.conv_transpose2d,
    nn.ConvTranspose3d: functional.conv_transpose3d,
}


class LiveWeight:
    """A parameter that is written to, in the model itself, and its values at first.

    These are put back at the end of a `with` block.
    """

    def __init__(self, parameter: Tensor) -> None:
        # Without its count of versions: a graph that is still to be gone back through stays valid.
        self.values = parameter.data
        self.whole = self.values.clone(memory_format=torch.preserve_format)
        self.inference = parameter.is_inference()

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self.put()

    def put(self, values: Tensor | None = None, at: tuple[int, ...] | None = None) -> None:
        """Writes all values, or one of them; by default the first ones."""
        values = self.whole if values is None else values
        place = self.values if at is None else self.values[at]
        if self.inference:
            with torch.inference_mode():
                place.copy_(values)
        else:
            place.copy_(values)


@dataclass(frozen=True)
class Place:
    """A layer of a run whose weight acts through the layer's output alone, which is known of it."""

    module: nn.Module
    input: Tensor
    start: Start

    def network(self, weight: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]] | None:
        """Inputs, weights and biases for `modfast.ops.prune_layer`; None where it cannot be."""
        tape, chain, rows = self.start.tape, self.start.chain, self.start.rows
        x, bias = rows.of(self.input), self.module.bias
        assert tape is not None
        assert bias is None or isinstance(bias, Tensor)
        weights: list[Tensor] = [weight]
        biases: list[Tensor | None] = [bias]
        if chain is not None and set(chain.activations) == {"relu"}:
            # Copies, as these may be pruned too, for other samples otherwise.
            weights += [each.clone() for each in chain.weights]
            biases += [None if each is None else each.clone() for each in chain.biases]
        elif tape.calls or tape.out_slot != tape.site_slot:
            return None
        plain = weight.dim() == 2 and not input_first(self.module) and len(x) == len(rows.logits)
        if not plain or any(t.dtype != x.dtype for t in weights) or x.dtype not in PRUNING_DTYPES:
            return None
        found = [
            w.new_zeros(len(w)) if b is None else b.detach()
            for w, b in zip(weights, biases, strict=True)
        ]
        return x, weights, found


def find_place(
    run: Run,
    model: nn.Module,
    name: str,
    weight: LiveWeight,
    batch: Batch,
    output: Output,
) -> Place | str:
    """Proves that a layer's weight acts through its output alone; or why that cannot be said.

    In a run of the model the layer's output must be what its class computes from its input and
    weight, and no other call may take the weight.
    """
    module = model.get_submodule(name)
    if not _is_plain(module):
        return f"{name!r} has hooks, or another forward pass than its class"
    seen: list[Tensor] = []
    enter = Visit(Site(f"{name}:input", name, of_input=True), seen.append, "layers")
    try:
        uses, site = _Uses(weight.values), Site(name, name)
        with at_sites(model, [enter]):
            start = begin(run, model, site, batch, output=output, argument="layers", around=uses)
    except (TypeError, ValueError) as error:
        return str(error)  # called several times, or not at all; what is wrong shows again
    if start.tape is None:
        return f"what follows {name!r} cannot be done again"
    if start.site.dtype not in (torch.float32, torch.float64):
        return f"{name!r} gives {start.site.dtype}, which rounds too much"
    x = seen[0].detach()
    if not equal_to_rounding(output_of(module, x, weight.values), start.site):
        return f"{name!r} gives another output than its class"
    # One call took the weight, the layer's own; else a run with many other weights must prove it.
    if uses.n != 1 and not _acts_by_output(run, weight, batch, output, module, x, start):
        return f"the weight of {name!r} acts otherwise than by its output"
    return Place(module, x, start)


def _acts_by_output(
    run: Run,
    weight: LiveWeight,
    batch: Batch,
    output: Output,
    module: nn.Module,
    x: Tensor,
    start: Start,
) -> bool:
    """Whether, with every other weight at zero, the model goes on as from the output they give."""
    kept = torch.arange(weight.whole.numel(), device=x.device).view(weight.whole.shape) % 2
    thinned = weight.whole * kept
    with weight:
        weight.put(thinned)
        logits = run(batch, lambda result: run.own(pick(result, output, batch)))
    return equal_to_rounding(start.resume(output_of(module, x, thinned)), logits)


class _Uses(TorchFunctionMode):
    """Counts the calls of torch that take a tensor, or another one in its memory."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.n, self.place = 0, place_of(tensor)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") not in _HARMLESS:
            with torch._C.DisableTorchFunction():
                found = tensors_in((args, kwargs))
                self.n += any(place_of(tensor) == self.place for tensor in found)
        return func(*args, **(kwargs or {}))


# What is asked most, of any tensor, and takes no value of it.
_HARMLESS = frozenset({"dim", "size", "is_floating_point", "numel", "data_ptr", "is_inference"})


def _is_plain(module: nn.Module) -> bool:
    """Whether a layer is what its class says, with a bias or without, and nothing more."""
    known = type(module) in (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)
    known = known or (type(module).__name__ == "Conv1D" and has_weight(module))
    hooks = module._forward_hooks or module._forward_pre_hooks
    return known and not hooks and "forward" not in module.__dict__


def output_of(module: Any, x: Tensor, weight: Tensor, channel: int | None = None) -> Tensor:
    """What a plain layer gives for an input, by another weight; or one channel of that."""
    bias, out = module.bias, int(input_first(module))
    if channel is not None:
        weight = weight.narrow(out, channel, 1)
        bias = None if bias is None else bias[channel : channel + 1]
    if weight.dim() == 2:
        return functional.linear(x, weight.t() if out else weight, bias)
    if not out:
        found: Tensor = module._conv_forward(x, weight, bias)
        return found
    return _TRANSPOSED[type(module)](
        x, weight, bias, module.stride, module.padding, module.output_padding, 1, module.dilation
    )


@dataclass(frozen=True)
class Rule:
    """When a weight goes."""

    threshold: float
    baseline: str
    backends: tuple[str, ...]
    """Those that may be taken."""


class Trials:
    """The loss of a network as single weights of a layer are zeroed and put back.

    With a place, one channel of the layer's output is computed anew, and what follows it is done
    again; else the model itself runs.
    """

    def __init__(
        self,
        run: Run,
        weight: LiveWeight,
        batch: Batch,
        output: Output,
        place: Place | None,
    ) -> None:
        self.weight, self.place = weight, place
        self.rows: Rows | None = None
        self.before: Tensor | None = None
        if place is not None:
            start = place.start
            self.rows, self.site = start.rows, start.site.clone()
            # Channels stand before the positions of a kernel, or last.
            self.dim = self.site.dim() - 1 - (weight.values.dim() - 2)
            self.out = int(input_first(place.module))
            self.logits = lambda: start.resume(self.site)
        else:
            self.logits = lambda: run(batch, lambda result: run.own(pick(result, output, batch)))
            self.read = lambda logits: read_rows(logits, batch)

    def loss(self) -> float:
        """The mean cross-entropy as the weights now are."""
        logits = self.logits()
        self.rows = self.read(logits) if self.rows is None else self.rows
        targets = self.rows.targets
        assert targets is not None
        return float(functional.cross_entropy(self.rows.of(logits).double(), targets))

    def zero(self, at: tuple[int, ...]) -> None:
        """Zeroes one weight."""
        self.weight.put(self.weight.values.new_zeros(()), at)
        if self.place is not None:
            channel = at[self.out]
            found = output_of(self.place.module, self.place.input, self.weight.values, channel)
            self.channel = self.site.select(self.dim, channel)
            self.before = self.channel.clone()
            self.channel.copy_(found.select(self.dim, 0))

    def put_back(self, at: tuple[int, ...], value: Tensor) -> None:
        """Undoes the last `zero`."""
        self.weight.put(value, at)
        if self.before is not None:
            self.channel.copy_(self.before)

    def prune(
        self,
        order: Tensor,
        rule: Rule,
        original: float | None,
        shown: Callable[[Sequence[int]], Any],
    ) -> tuple[Tensor, Tensor]:
        """As `modfast.ops.prune_layer` for one group, and as there the weight is left whole.

        `original`, by default the loss at first, is what baseline="original" means. `shown` wraps
        the loop in a progress bar.
        """
        running = self.loss()
        margins: list[float] = []
        losses = [running]
        original = running if original is None else original
        shape = self.weight.values.shape
        places = np.stack(np.unravel_index(order.cpu().numpy(), shape), 1).tolist()
        with self.weight:
            for place in shown(places if running - running == 0 else []):  # NaN is told later
                at = tuple(place)
                value = self.weight.values[at].clone()
                after = running
                if value != 0:
                    self.zero(at)
                    after = self.loss()
                margins.append(
                    after - (running if rule.baseline == "running" else original) - rule.threshold
                )
                if margins[-1] <= 0.0:
                    running = after
                elif value != 0:
                    self.put_back(at, value)
                losses.append(running)
        return (
            torch.tensor(margins, dtype=torch.float64, device="cpu"),
            torch.tensor(losses, dtype=torch.float64, device="cpu"),
        )
