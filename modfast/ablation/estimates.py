"""Estimates of what changing each unit would do, from gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from modfast import checks
from modfast.ablation.arguments import read_masks
from modfast.ablation.changes import AtEach, Changes, Groups, Units
from modfast.ablation.objective import Objective
from modfast.ablation.softmax import Attention, correction
from modfast.ablation.sweep import Options, starts
from modfast.ablation.values import (
    At,
    Positions,
    Source,
    check_samples,
    each_position,
    read_positions,
    seen_at,
    with_partners,
)
from modfast.network.dims import NotingUnits, unit_dim
from modfast.network.inputs import Batch, Inputs, Targets
from modfast.network.interrupts import under
from modfast.network.logits import Rows, log_softmax, pick, read_rows
from modfast.network.names import unwrapped
from modfast.network.resume import Start, begin, equal_to_rounding
from modfast.network.run import Run, running
from modfast.network.sites import Site
from modfast.network.visits import Visit, at_sites, check_features, checked
from modfast.precision import full_precision


@dataclass(frozen=True)
class Asked:
    """What is to be estimated."""

    sites: Sequence[Site]
    source: Source
    corrupted: Inputs | None
    positions: Positions
    groups: Any
    objective: Objective
    steps: int = 1

    def mask(self, at: At) -> Tensor | None:
        """The groups `[g, d]` of a site."""
        groups = self.groups
        if groups is None:
            return None
        if isinstance(groups, Mapping) and any(isinstance(key, str) for key in groups):
            if at.name not in groups:
                raise ValueError(f"groups must have those of each site, got none for {at.name!r}")
            groups = groups[at.name]
            if groups is None:
                return None
        return read_masks("groups", groups, at.features.shape[-1], at.features.device)

    def changes(self, at: At, value: Tensor, where: Tensor | None) -> Changes:
        """The same as changes of the site, each by itself."""
        mask, d = self.mask(at), at.features.shape[-1]
        merged = value if where is None else torch.where(where, value, at.features)
        found: Changes = (
            Units(torch.arange(d, device=merged.device), merged, in_order=True)
            if mask is None
            else Groups(mask, merged)
        )
        return AtEach(found, *each_position(at)) if isinstance(self.positions, str) else found

    def placed(self, at: At, parts: Tensor) -> Tensor:
        """Parts `[n, ..., d]` where changes are made, and 0 elsewhere."""
        where = read_positions(self.positions, at)
        return parts if where is None else parts * where

    def by_sample(self, at: At, parts: Tensor) -> Tensor:
        """`[n, a]` or `[n, a, positions]` of each unit's part at each position, `[n, ..., d]`."""
        mask, parts = self.mask(at), self.placed(at, parts)
        if isinstance(self.positions, str):
            each_position(at)
            found = parts.flatten(1, -2).movedim(1, -1).double()
            return found if mask is None else torch.einsum("ndp,gd->ngp", found, mask.double())
        found = (
            parts.flatten(1, -2).sum(1, dtype=torch.float64) if parts.dim() > 2 else parts.double()
        )
        return found if mask is None else found @ mask.double().T

    def adds_up(self, at: At) -> bool:
        """Whether scores are sums over positions."""
        return at.features.dim() > 2 and not isinstance(self.positions, str)

    def squares(self, at: At, parts: Tensor) -> Tensor:
        """As `by_sample`, the sum over positions of each one's square."""
        mask, parts = self.mask(at), self.placed(at, parts)
        if mask is not None:
            parts = parts @ mask.to(parts).T
        return parts.square().flatten(1, -2).sum(1, dtype=torch.float64)


@under(torch.no_grad)
def estimate(
    model: nn.Module, inputs: Inputs, targets: Targets, asked: Asked, options: Options
) -> tuple[dict[str, Tensor], int, list[str]]:
    """Scores summed over the samples by site, how many these are, and the corrected sites."""
    batches = _integrated if asked.steps > 1 else _at_once
    totals: dict[str, Tensor] = {}
    corrected: dict[str, None] = {}
    n = 0
    for found, batch, fixed in batches(model, inputs, targets, asked, options):
        n += len(batch)
        corrected |= dict.fromkeys(fixed)
        for name, scores in found.items():
            if name in totals and totals[name].shape != scores.shape:
                raise ValueError(f"positions='each' needs as many at {name!r} in each batch")
            totals[name] = totals[name] + scores if name in totals else scores
    for name, total in totals.items():
        checks.finite(f"the scores of {name!r}", total)
    return totals, n, list(corrected)


Batches = Iterator[tuple[dict[str, Tensor], Batch, list[str]]]


def _at_once(
    model: nn.Module, inputs: Inputs, targets: Targets, asked: Asked, options: Options
) -> Batches:
    """Each batch by one run of the model and one backward pass for all sites."""
    with running(model) as run:
        for batch, partner in with_partners(
            model, inputs, targets, asked.source.paired(asked.corrupted)
        ):
            other: dict[str, At] = {}
            if partner is not None:
                other = seen_at(run, model, asked.sites, partner, options.dim, options.argument)
            found = {}
            touched = []
            by_token, each_site = _gradients(run, model, batch, asked, options)
            for site, at, slopes, attended in each_site:
                new = asked.source.at(at, other.get(at.name))
                change = new - at.features
                parts = [slope * change for slope in slopes]
                each = [asked.by_sample(at, part) for part in parts]
                apart = None
                if attended:
                    start = begin(
                        run,
                        model,
                        site,
                        batch,
                        output=options.output,
                        dim=options.dim,
                        argument=options.argument,
                    )
                    if start.tape is not None:
                        touched.append(at.name)
                        where = read_positions(asked.positions, at)
                        more = correction(start, asked.changes(at, new, where), attended)
                        each = [a + b.reshape(a.shape) for a, b in zip(each, more, strict=True)]
                elif by_token and asked.objective.is_squared and asked.adds_up(at):
                    apart = [asked.squares(at, part) for part in parts]
                del parts
                found[at.name] = _scores(each, apart, asked.objective)
            yield found, batch, touched
        check_samples(asked.positions, at, at.first + len(batch))


def _scores(by_sample: list[Tensor], apart: list[Tensor] | None, objective: Objective) -> Tensor:
    """A batch's, of each sample's first-order parts; `apart` are sums of squares by position.

    The square of a sample's sum over positions has the right mean, but is one draw. Where most
    positions change no logits but their own, so has the sum of their squares, as many draws as
    positions. The rest, of logits that several positions change, counts as far as it can be told
    from noise: by a weight for the site that leaves the least squared error (James and Stein).
    """
    if not objective.is_squared:
        return by_sample[0].sum(0)
    whole = torch.stack([each.square() for each in by_sample]).flatten(0, 1)
    n = len(by_sample[0])
    if apart is None or len(whole) < 2:
        return whole.mean(0) * n / 2
    alone = torch.cat(apart)
    rest = whole - alone
    mean = rest.mean(0)
    noise, total = (rest.var(0) / len(rest)).sum(), mean.square().sum()
    weight = (1 - noise / total).clamp(min=0) if total > 0 else 0.0
    return (alone.mean(0) + weight * mean) * n / 2


def _gradients(
    run: Run, model: nn.Module, batch: Batch, asked: Asked, options: Options
) -> tuple[bool, list[tuple[Site, At, list[Tensor], list[Tensor]]]]:
    """What is at each site, gradients there, and those of the attention that it is part of.

    And whether samples have several rows of logits.
    """
    values: dict[str, Tensor] = {}
    dims: dict[str, int] = {}
    attention, noting, inner = Attention(), NotingUnits(), unwrapped(model)

    def take(site: Site, value: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            check_features(value, site, options.argument)
            module = inner.get_submodule(site.module)
            known = noting.dims.of(value)
            dims[site.name] = unit_dim(value, site, module, known, options.dim)
            if not value.requires_grad:
                value = value.detach().requires_grad_()
            # An alias, as the value may be used elsewhere; a copy, as what follows may write to it.
            values[site.name] = value.view_as(value)
            taken = values[site.name].clone()
        attention.note(site.name, taken)
        return taken

    visits = [Visit(site, partial(take, site), options.argument) for site in asked.sites]
    slopes: dict[str, list[Tensor]] = {}
    inside: dict[str, list[Tensor]] = {}

    def read(output: Any) -> tuple[Tensor, list[str]]:
        """Before what the model has written to its own tensors is put back."""
        kept = [visit.site.name for visit in checked(visits)]
        logits = pick(output, options.output, batch)
        checks.finite("the model's logits", logits.detach())
        attention.over()
        rows = read_rows(logits, batch)
        totals = asked.objective.values(logits, rows, batch)
        wanted = [values[name] for name in kept]
        attended = {name: attention.outputs[name] for name in kept if name in attention.outputs}
        missed: list[str] = []
        for i, total in enumerate(totals):
            found: Sequence[Tensor | None] = [None] * (len(wanted) + len(attended))
            if total.requires_grad:
                found = torch.autograd.grad(
                    total,
                    [*wanted, *attended.values()],
                    retain_graph=i + 1 < len(totals),
                    allow_unused=True,
                )
            if all(slope is None for slope in found):
                raise ValueError("metric must depend on sites through autograd, got no gradient")
            missed = [name for name, slope in zip(kept, found, strict=False) if slope is None]
            for name, slope in zip(kept, found, strict=False):
                slope = torch.zeros_like(values[name]) if slope is None else slope
                slopes.setdefault(name, []).append(slope)
            for name, slope in zip(attended, found[len(wanted) :], strict=True):
                slope = torch.zeros_like(attended[name]) if slope is None else slope
                inside.setdefault(name, []).append(slope)
        return run.own(logits.detach()), missed

    with torch.enable_grad(), noting, attention, at_sites(model, visits):
        logits, missed = run(batch, read)
    sites = [site for site in asked.sites if site.name in slopes]
    for site in sites:
        if site.name in missed:
            _require_none(run, model, site, batch, options, logits)
    every = []
    for site in sites:
        units = dims[site.name]
        features = values[site.name].detach().movedim(units, -1)
        mask = batch.mask(decoder="decoder" in site.module)
        at = At(site.name, features, units, mask, batch.first)
        moved = [slope.movedim(units, -1) for slope in slopes[site.name]]
        every.append((site, at, moved, inside.get(site.name, [])))
    return logits[..., 0].numel() > len(batch), every


def _require_none(
    run: Run, model: nn.Module, site: Site, batch: Batch, options: Options, logits: Tensor
) -> None:
    """Refuses a site that gradients do not reach though the logits depend on it.

    Raises:
        ValueError: other values there give other logits.
    """
    moved = Visit(site, lambda value: value + (0.1 + value.abs().mean()))
    with at_sites(model, [moved]):
        found = run(batch, lambda x: run.own(pick(x, options.output, batch)), random=run.random)
    if not equal_to_rounding(found, logits):
        raise ValueError(
            f"{options.argument}={site.name!r}: must be reached by gradients, got none, though the "
            "logits depend on what is there"
        )


def _integrated(
    model: nn.Module, inputs: Inputs, targets: Targets, asked: Asked, options: Options
) -> Batches:
    """Each batch by runs from each site on, on the way to the new values."""
    objective, steps = asked.objective, asked.steps
    # Recorded with gradients on, or a call with a gradient of its own would go unnoticed.
    graph = torch.enable_grad()
    paired = asked.source.paired(asked.corrupted)
    with starts(model, inputs, asked.sites, targets, options, paired, graph) as every:
        for batch, each, other in every:
            found = {}
            for name, start in each.items():
                at = At(name, start.features, start.dim, start.mask, batch.first)
                new = asked.source.at(at, other.get(name))
                change = (new - at.features).movedim(-1, start.dim)
                log_p = log_softmax(start.rows.logits).double()
                total = torch.zeros_like(start.site)
                for i in range(steps):
                    point = (start.site + (i + 0.5) / steps * change).detach().requires_grad_()

                    def slope_of(
                        logits: Tensor,
                        start: Start = start,
                        point: Tensor = point,
                        log_p: Tensor = log_p,
                        batch: Batch = batch,
                    ) -> Tensor | None:
                        with full_precision():
                            rows = Rows(start.rows.of(logits), start.rows.kept, start.rows.targets)
                            kl = log_p if objective.is_squared else None
                            value = objective.value(logits, rows, batch, kl)
                        if not value.requires_grad:
                            return None
                        return torch.autograd.grad(value, point, allow_unused=True)[0]

                    with torch.enable_grad():
                        slope = start.through(point, slope_of)
                    if slope is None:
                        raise ValueError(
                            f"metric must depend on {name!r} through autograd, got no gradient"
                        )
                    total += slope / steps
                parts = (total * change).movedim(start.dim, -1)
                found[name] = asked.by_sample(at, parts).sum(0)
            yield found, batch, []
        check_samples(asked.positions, at, at.first + len(batch))
