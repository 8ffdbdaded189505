"""One recorded call of torch, with places for the values that depend on a site."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

_ATTRIBUTE = re.compile(r"attribute '([^']+)'")


# They tell a value's shape or kind alone, and give no tensor.
SHAPES = frozenset(
    "size dim ndimension numel nelement stride is_contiguous element_size storage_offset "
    "is_floating_point is_complex is_signed get_device __len__ is_same_size is_inference "
    "is_pinned is_neg is_conj __hash__ result_type _is_view "
    "has_names retain_grad dim_order is_shared can_cast is_distributed is_tensor is_storage "
    "_is_zerotensor data_ptr".split()
)
ATTRIBUTES = frozenset(
    "shape dtype device ndim layout requires_grad is_cuda is_leaf grad_fn is_cpu is_nested "
    "is_sparse "
    "is_quantized is_meta is_mkldnn is_mps is_xpu is_xla names _version grad itemsize nbytes name "
    "output_nr _backward_hooks is_sparse_csr is_vulkan is_ort is_hpu is_ipu is_maia is_mtia "
    "retains_grad _base _grad".split()
)
# The shape of what they return is a value's, which Python then sees.
DYNAMIC = frozenset(
    "nonzero argwhere unique unique_consecutive masked_select bincount _unique2 unique_dim "
    "_return_output _return_inverse _consecutive_return_output".split()
)
RANDOM = frozenset(
    "bernoulli multinomial rand_like randn_like randint_like normal poisson rrelu "
    "bernoulli_ normal_ uniform_ exponential_ random_ cauchy_ geometric_ log_normal_ "
    "gumbel_softmax fractional_max_pool2d fractional_max_pool3d".split()
)
DROPOUTS = frozenset(
    "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout feature_dropout "
    "dropout_ alpha_dropout_ feature_dropout_".split()
)


@dataclass(frozen=True)
class Slot:
    """Stands for a value that depends on the site."""

    number: int


@dataclass(eq=False)
class Call:
    """One call of torch on values that depend on the site."""

    func: Callable[..., Any]
    name: str
    args: Any
    """With a `Slot` for each such value."""
    kwargs: Any
    outs: Any
    """The slots of what it returned; None where that is no tensor."""
    places: list[tuple[int, int]] | None
    """Where slots stand among `args`, if nowhere else."""
    cast: tuple[bool, torch.dtype]
    shape: tuple[int, ...] | None
    """Of what it returned, if that is one tensor."""
    writes: bool = False
    last: list[int] = field(default_factory=list)
    """Slots that no later call takes."""

    def slots(self) -> list[int]:
        """What it takes."""
        if self.places is not None:
            return [slot for _, slot in self.places]
        return slots_in((self.args, self.kwargs))


@dataclass(eq=False)
class Mark:
    """A further site that a run reaches."""

    value: torch.Tensor
    """Its value, which the model goes on with."""
    unit_dim: int | None
    slot: int | None = None
    """Its value's; None where that does not depend on the first site."""


def autocast(device_type: str) -> tuple[bool, torch.dtype]:
    """Whether autocast is on, and its dtype."""
    return torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)


_names: dict[Any, str] = {}


def name_of(func: Any) -> str:
    """A function's name; of a tensor's attribute `__get__:T`."""
    known = _names.get(func)
    if known is None:
        known = str(getattr(func, "__name__", func))
        if known in ("__get__", "__set__"):
            attribute = _ATTRIBUTE.search(repr(getattr(func, "__self__", func)))
            known = f"{known}:{attribute[1] if attribute else '?'}"
        _names[func] = known
    return known


def slots_in(value: Any) -> list[int]:
    """All slots in nested containers."""
    if isinstance(value, Slot):
        return [value.number]
    if isinstance(value, (tuple, list)):
        return [slot for item in value for slot in slots_in(item)]
    if isinstance(value, Mapping):
        return [slot for item in value.values() for slot in slots_in(item)]
    return slots_in((value.start, value.stop, value.step)) if isinstance(value, slice) else []


def rebuilt(value: Any, function: Callable[[Any], Any]) -> Any:
    """A container with a function of each item in its place; anything else as it is."""
    if isinstance(value, tuple):
        items = [function(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return [function(item) for item in value]
    if isinstance(value, Mapping):
        return {key: function(item) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*map(function, (value.start, value.stop, value.step)))
    return value


def filled(value: Any, values: list[Any]) -> Any:
    """Arguments with values in the places of their slots."""
    if isinstance(value, Slot):
        return values[value.number]
    return rebuilt(value, lambda item: filled(item, values))


def store(outs: Any, output: Any, values: list[Any]) -> None:
    """Puts what a call returned into its slots."""
    if isinstance(outs, Slot):
        values[outs.number] = output
    elif isinstance(outs, list):
        for slots, item in zip(outs, output, strict=True):
            store(slots, item, values)
    elif isinstance(outs, dict):
        for key, slots in outs.items():
            store(slots, output[key], values)
