"""What the functions that ablate are asked for, read in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypedDict

import torch
from torch import Tensor, nn

from modfast import checks
from modfast._renamed import warn_renamed
from modfast.ablation.result import MEASURES
from modfast.ablation.sweep import Options
from modfast.ablation.values import Positions
from modfast.metrics import Function, read_functions
from modfast.network.inputs import Inputs
from modfast.network.logits import Output, check_output
from modfast.network.resume import BACKENDS
from modfast.network.sites import Site, parse_site, resolve_sites
from modfast.network.units import Units as UnitGroups
from modfast.network.units import read_groups

Metric: TypeAlias = str | Function | Mapping[str, Function] | None


class AblationOptions(TypedDict, total=False):
    """The keyword arguments of the functions that ablate."""

    corrupted: Inputs | None
    positions: Positions
    metric: Metric
    seed: int
    output: Output
    dim: int | None
    per_sample: bool
    max_memory: int | None
    progress: bool
    backend: str | None


MEASURED = ("kl", "entropy", "loss", "accuracy")
"""What every ablation is measured by, the last two with targets."""


def read_sites(
    model: nn.Module, site: Any, what: Any, argument: str
) -> tuple[list[Site], dict[str, Any]]:
    """The places that a caller names, and what of each: a mapping has it by site.

    Raises:
        TypeError: other names than strings.
        ValueError: an unknown site, none, or both a mapping and `argument`.
    """
    if isinstance(site, str):
        return [parse_site(model, site)], {site: what}
    if isinstance(site, Mapping):
        if what is not None:
            raise ValueError(f"{argument} must be left out where site is a mapping that has them")
        if not site:
            raise ValueError("site must name at least one place, got an empty mapping")
        return [parse_site(model, name) for name in site], dict(site)
    if not isinstance(site, Sequence):
        raise TypeError(f"site must be a name, names or a mapping, got {checks.shown(site)}")
    places = resolve_sites(model, site, "site")
    return places, {place.name: what for place in places}


def options_of(
    output: Output,
    dim: int | None,
    per_sample: bool,
    max_memory: int | None,
    progress: bool,
    backend: str | None,
    metric: Metric = None,
) -> Options:
    """Checked options.

    Raises:
        TypeError, ValueError: one of another kind, or out of range.
    """
    check_output(output)
    dim = None if dim is None else checks.integer("dim", dim)
    memory = None if max_memory is None else checks.count("max_memory", max_memory)
    if isinstance(backend, str) and backend in _OLD_BACKENDS:
        new = _OLD_BACKENDS[backend]
        warn_renamed(f"backend={backend!r}", f"backend={new!r}", stacklevel=3)
        backend = new
    checks.choice("backend", backend, (None, *BACKENDS))
    metrics = {}
    if isinstance(metric, str):
        checks.choice("metric", metric, MEASURED)
    elif metric is not None:
        metrics = read_functions(metric)
        if taken := [name for name in metrics if name in MEASURES]:
            raise ValueError(
                f"metric must have another name than {taken[0]!r}, which every result has a value "
                "of; a mapping {name: function} gives one"
            )
    per_sample = checks.flag("per_sample", per_sample)
    return Options(output, dim, per_sample, memory, progress, backend, metrics)


_OLD_BACKENDS = {"split": "replay", "hooks": "model"}


def read_units(argument: str, units: Sequence[int] | Tensor, d: int) -> Tensor:
    """Units in the order given, perhaps some of them twice.

    Raises:
        TypeError, ValueError: no integers, none, some out of range.
    """
    index = checks.integers(argument, units)
    if index.dim() != 1:
        raise TypeError(f"{argument} must be a list of integers, got {units!r}")
    if index.numel() == 0:
        raise ValueError(f"{argument} must not be empty")
    outside = index[(index < 0) | (index >= d)]
    if len(outside):
        raise ValueError(f"{argument} must be from 0 to {d - 1}, got {outside[0].item()}")
    return index.long()


def read_masks(argument: str, groups: UnitGroups, d: int, device: torch.device) -> Tensor:
    """Which units are in each group, bool `[a, d]`.

    Raises:
        TypeError, ValueError: as `modfast.network.units.read_groups`.
    """
    found = read_groups(argument, groups, d)
    mask = torch.zeros(len(found), d, dtype=torch.bool, device="cpu")
    for row, group in zip(mask, found, strict=True):
        row[group.cpu()] = True
    return mask.to(device)


def read_directions(site: str, directions: Tensor, activations: Tensor) -> Tensor:
    """Directions of unit length `[a, d]`.

    Raises:
        TypeError, ValueError: no floating tensor, of another width, empty, not finite, zero.
    """
    checks.floating("directions", directions)
    if directions.dim() != 2 or directions.shape[1] != activations.shape[-1]:
        raise ValueError(
            f"directions must have shape [a, {activations.shape[-1]}], the width of "
            f"{site!r}, got {tuple(directions.shape)}"
        )
    if len(directions) == 0:
        raise ValueError("directions must not be empty")
    # In the wider dtype, where no entry is too large or small that was not so before.
    dtype = torch.promote_types(directions.dtype, activations.dtype)
    vectors = directions.detach().to(activations.device, dtype)
    return _unit_length(vectors).to(activations)


def _unit_length(vectors: Tensor) -> Tensor:
    lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    low, high = (length.item() for length in lengths.aminmax())
    if low < 1e-3 or not high < 1e3:  # also where any is NaN
        checks.finite("directions", vectors)
        # By the largest entry first, so that no square under- or overflows.
        vectors = vectors / vectors.abs().amax(1, keepdim=True)
        lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        if not lengths.isfinite().all():
            zero = (~lengths[:, 0].isfinite()).nonzero()[0].item()
            raise ValueError(f"directions must not be zero, got zeros in row {zero}")
    found: Tensor = vectors / lengths
    return found
