"""What is put in the place of a site's activations, and at which positions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from modfast import checks
from modfast.network.dims import NotingUnits, unit_dim
from modfast.network.inputs import Batch, Inputs, Targets, is_stream, read_batches
from modfast.network.names import unwrapped
from modfast.network.run import Run, running
from modfast.network.sites import Site
from modfast.network.visits import Visit, at_sites, check_features, checked

Value: TypeAlias = float | str | Tensor | Mapping[str, Any]
Positions: TypeAlias = str | Sequence[int] | Tensor | None

KINDS = ("mean", "positional-mean", "resample", "optimal")


@dataclass(frozen=True)
class At:
    """A site of one batch, with its units last."""

    name: str
    features: Tensor
    """`[n, ..., d]`."""
    dim: int
    """Of its units, in the model's own order."""
    mask: Tensor | None
    """Which positions count, `[n, t]`."""
    first: int
    """The number of the batch's first sample."""

    @property
    def counts(self) -> Tensor | None:
        """The mask, where it is of this site's positions: `[n, t]`."""
        fits = self.mask is not None and self.mask.shape == self.features.shape[:2]
        return self.mask if fits and self.features.dim() > 2 else None

    @property
    def counted(self) -> Tensor:
        """At samples and positions that count: `[n', d]`."""
        counts, x = self.counts, self.features
        return (x if counts is None else x[counts]).flatten(0, -2)


def seen_at(
    run: Run,
    model: nn.Module,
    sites: Sequence[Site],
    batch: Batch,
    dim: int | None = None,
    place: str = "site",
) -> dict[str, At]:
    """What a model has at sites, in one run."""
    found: dict[str, At] = {}
    noting, inner = NotingUnits(), unwrapped(model)

    def see(site: Site, value: Tensor) -> None:
        with torch._C.DisableTorchFunction():
            check_features(value, site, place)
            module = inner.get_submodule(site.module)
            units = unit_dim(value, site, module, noting.dims.of(value), dim)
            mask = batch.mask(decoder="decoder" in site.module)
            features = value.detach().clone().movedim(units, -1)
            found[site.name] = At(site.name, features, units, mask, batch.first)

    visits = [Visit(site, partial(see, site), place) for site in sites]
    with torch.no_grad(), noting, at_sites(model, visits):
        run(batch)
    checked(visits)
    return found


class Source:
    """Where the new values come from.

    `kind` is "given", "patch", "resample" or "optimal"; means are "given" once they are known.
    `values` are numbers or tensors by site.
    """

    def __init__(self, kind: str, values: Mapping[str, Any], seed: int = 0) -> None:
        self.kind, self.values, self.seed = kind, values, seed
        self.n_rows: dict[str, int] = {}
        """Of the sites with a value for each sample: how many there are."""

    def at(self, site: At, corrupted: At | None) -> Tensor:
        """The values at a site of a batch: `[d]`, or `[n, ..., d]`."""
        if self.kind == "given":
            return self._given(self.values[site.name], site)
        found = site if corrupted is None else corrupted
        if found.features.shape != site.features.shape:
            raise ValueError(
                f"corrupted must give {site.name!r} the shape that inputs give it, "
                f"{tuple(site.features.shape)}, got {tuple(found.features.shape)}"
            )
        checks.finite("inputs" if corrupted is None else "corrupted", found.features)
        if self.kind == "patch":
            return found.features.to(site.features)
        n = len(found.features)
        if n < 2:
            raise ValueError("value='resample' takes another sample's: inputs must have two")
        generator = torch.Generator("cpu").manual_seed(self.seed + site.first)
        order = torch.randperm(n, generator=generator, device="cpu")
        taken = torch.empty_like(order)
        taken[order] = order.roll(1)  # all in one round: nobody takes his own
        return found.features[taken.to(found.features.device)].to(site.features)

    def _given(self, value: Any, site: At) -> Tensor:
        d, dtype = site.features.shape[-1], site.features.dtype
        if not isinstance(value, Tensor):
            number = checks.finite_number("value", value)
            if abs(number) > torch.finfo(dtype).max:
                raise ValueError(f"value must be finite in {dtype}, got {number}")
            return site.features.new_full((d,), number)
        checks.dense("value", value)
        value = value.detach()
        shape = list(site.features.movedim(-1, site.dim).shape)
        found: Tensor
        if value.shape in ((), (d,)):
            found = value.to(site.features).expand(d)
        elif list(value.shape) == shape[1:]:
            found = value.to(site.features).movedim(site.dim - 1, -1)[None]
        elif list(value.shape[1:]) == shape[1:] and len(value) >= site.first + shape[0]:
            self.n_rows[site.name] = len(value)
            rows = value[site.first : site.first + shape[0]]
            found = rows.to(site.features).movedim(site.dim, -1)
        else:
            raise ValueError(
                f"value must have shape [] or [{d}], got {list(value.shape)}; or that of "
                f"{site.name!r}, {shape}, with or without its samples"
            )
        checks.finite("value", found)
        return found

    def paired(self, corrupted: Inputs | None) -> Inputs | None:
        """What goes with the inputs batch by batch; not what means were taken of."""
        return corrupted if self.kind in ("patch", "resample") else None

    def check_rows(self, n: int) -> None:
        """Refuses values of more samples than there were.

        Raises:
            ValueError: there are.
        """
        for name, n_rows in self.n_rows.items():
            if n_rows != n:
                raise ValueError(
                    f"value must have one row for each of {n} samples at {name!r}, got {n_rows}"
                )


def read_source(
    model: nn.Module,
    inputs: Inputs,
    sites: Sequence[Site],
    value: Any,
    corrupted: Inputs | None,
    dim: int | None,
    seed: int,
    place: str = "site",
) -> Source:
    """What `value=` and `corrupted=` say; means are taken here, in a pass over the data.

    Raises:
        TypeError, ValueError: a value of another kind; both a number and corrupted inputs.
    """
    names = [site.name for site in sites]
    if isinstance(value, str):
        checks.choice("value", value, KINDS)
        if value in ("mean", "positional-mean"):
            data = inputs if corrupted is None else corrupted
            if isinstance(data, Iterator) and corrupted is None:
                raise TypeError(
                    f"value={value!r} reads inputs twice, so that they must not be an iterator"
                )
            argument = "inputs" if corrupted is None else "corrupted"
            return Source(
                "given", _means(model, data, sites, dim, value == "mean", argument, place)
            )
        if value == "optimal" and corrupted is not None:
            raise ValueError("corrupted must be None with value='optimal', which looks for values")
        return Source(value, {}, seed)
    if isinstance(value, Mapping):
        missing = [name for name in names if name not in value]
        if missing:
            raise ValueError(f"value must have one for each site, got none for {missing[0]!r}")
        values = {name: value[name] for name in names}
    else:
        values = dict.fromkeys(names, value)
    if corrupted is not None:
        if isinstance(value, (Mapping, Tensor)) or checks.finite_number("value", value) != 0:
            raise ValueError(
                f"value must be left out, or one of {KINDS[:3]}, where corrupted inputs are given, "
                f"got {checks.shown(value)}"
            )
        return Source("patch", {})
    return Source("given", values)


def _means(
    model: nn.Module,
    data: Inputs,
    sites: Sequence[Site],
    dim: int | None,
    over_positions: bool,
    argument: str,
    place: str,
) -> dict[str, Tensor]:
    """Each site's mean over the samples that count, and over positions, or for each of them."""
    totals: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    last: dict[str, At] = {}
    with running(model, argument=argument) as run:
        for batch in read_batches(model, data, argument=argument):
            last = seen_at(run, model, sites, batch, dim, place)
            for name, at in last.items():
                if over_positions:
                    total = at.counted.sum(0, dtype=torch.float64)
                    n = torch.tensor(float(len(at.counted)), device=total.device)
                else:
                    kept = at.counts
                    shape = at.features.shape[:2] if kept is not None else (len(at.features), 1)
                    kept = at.features.new_ones(shape) if kept is None else kept
                    kept = kept.double().reshape(*shape, *[1] * (at.features.dim() - 2))
                    total = (at.features.double() * kept).sum(0)
                    n = kept.sum(0)
                if name in totals and totals[name].shape != total.shape:
                    raise ValueError(
                        f"value='positional-mean' needs as many positions in each batch of "
                        f"{argument}, got {list(total.shape)} after {list(totals[name].shape)}"
                    )
                totals[name] = totals.get(name, 0) + total
                counts[name] = counts.get(name, 0) + n
    found = {}
    for name, at in last.items():
        mean = (totals[name] / counts[name].clamp(min=1)).to(at.features.dtype)
        found[name] = mean if over_positions else mean.movedim(-1, at.dim - 1)
    return found


def read_positions(positions: Any, at: At) -> Tensor | None:
    """At which samples and positions of a site changes are made, bool `[n, ..., 1]`; None for all.

    Raises:
        TypeError, ValueError: no positions there; indices out of range; a mask of another shape.
    """
    if positions is None or isinstance(positions, str):
        if positions is not None:
            checks.choice("positions", positions, (None, "each"))
        return None
    shape = _shape_of_positions(at)
    n = prod(shape)
    try:
        found = torch.as_tensor(positions)
    except (RuntimeError, TypeError, ValueError, OverflowError):
        found = checks.integers("positions", positions)
    checks.dense("positions", found)
    device = at.features.device
    if found.dtype == torch.bool:
        if found.shape == shape:
            mask = found[None]
        elif found.shape[1:] == shape and len(found) >= at.first + len(at.features):
            mask = found[at.first : at.first + len(at.features)]
        else:
            raise ValueError(
                f"positions must be a mask {list(shape)} or [n, ...] of the positions of "
                f"{at.name!r}, got shape {list(found.shape)}"
            )
        return mask.to(device)[..., None]
    index = checks.integers("positions", positions)
    index = index.reshape(-1) if index.dim() == 0 else index
    if index.dim() != 1 or not index.numel():
        raise ValueError(f"positions must be one or more indices, got shape {list(index.shape)}")
    outside = index[(index < -n) | (index >= n)]
    if len(outside):
        raise ValueError(f"positions must be from {-n} to {n - 1}, got {int(outside[0])}")
    mask = torch.zeros(n, dtype=torch.bool, device="cpu")
    mask[index.cpu()] = True
    return mask.reshape(1, *shape, 1).to(device)


def check_samples(positions: Any, at: At, n: int) -> None:
    """Refuses a mask of more samples than there were.

    Raises:
        ValueError: it is one.
    """
    if positions is None or isinstance(positions, str):
        return
    shape = torch.as_tensor(positions).shape
    if len(shape) == at.features.dim() - 1 and shape[0] != n:
        raise ValueError(f"positions must be a mask of {n} samples, got {shape[0]}")


def each_position(at: At) -> tuple[Tensor, int]:
    """The number of each position, `[1, ..., 1]` as the site, and how many there are.

    Raises:
        ValueError: no positions there.
    """
    shape = _shape_of_positions(at)
    n = prod(shape)
    return torch.arange(n, device=at.features.device).reshape(1, *shape, 1), n


def _shape_of_positions(at: At) -> torch.Size:
    if at.features.dim() < 3:
        raise ValueError(
            f"positions must be None at {at.name!r}, which has none: its shape is "
            f"{tuple(at.features.shape)}"
        )
    return at.features.shape[1:-1]


def with_partners(
    model: nn.Module, inputs: Inputs, targets: Targets, corrupted: Inputs | None
) -> Iterator[tuple[Batch, Batch | None]]:
    """The batches of inputs, each with that of the corrupted inputs that go with them.

    Raises:
        TypeError, ValueError: as `read_batches`; another number of corrupted batches.
    """
    batches = read_batches(model, inputs, targets)
    if corrupted is None:
        yield from ((batch, None) for batch in batches)
        return
    if is_stream(inputs) != is_stream(corrupted):
        raise ValueError(
            "corrupted must be a stream of batches where inputs are, and one where not"
        )
    pairs = zip_longest(batches, read_batches(model, corrupted, argument="corrupted"))
    for i, (batch, other) in enumerate(pairs):
        if batch is None or other is None:
            few = "fewer" if other is None else "more"
            raise ValueError(f"corrupted must have as many batches as inputs, {i}, got {few}")
        yield batch, other
