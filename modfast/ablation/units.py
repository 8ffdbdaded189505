"""What breaks when a unit, a direction or a group of units is removed or replaced?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import torch
from torch import Tensor, nn

from modfast import checks
from modfast._renamed import renamed
from modfast.ablation.arguments import (
    Metric,
    options_of,
    read_directions,
    read_masks,
    read_sites,
    read_units,
)
from modfast.ablation.changes import Changes, Directions, Groups, Units
from modfast.ablation.result import AblationResult, SiteAblations
from modfast.ablation.screening import screened
from modfast.ablation.sweep import Plan, sweep
from modfast.ablation.values import At, Positions, Value, read_source
from modfast.network.inputs import Inputs, Targets, is_stream
from modfast.network.logits import Output
from modfast.network.units import Units as UnitGroups

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from modfast.ablation.arguments import AblationOptions

Sites: TypeAlias = list[str] | tuple[str, ...] | Mapping[str, Any]


@overload
def ablate_units(
    model: nn.Module,
    inputs: Inputs,
    site: str,
    units: Sequence[int] | Tensor | None = ...,
    value: Value = ...,
    targets: Targets = ...,
    *,
    screen: int | None = ...,
    **options: Unpack[AblationOptions],
) -> AblationResult: ...
@overload
def ablate_units(
    model: nn.Module,
    inputs: Inputs,
    site: Sites,
    units: Sequence[int] | Tensor | None = ...,
    value: Value = ...,
    targets: Targets = ...,
    *,
    screen: int | None = ...,
    **options: Unpack[AblationOptions],
) -> SiteAblations: ...
@renamed(path="backend")
def ablate_units(
    model: nn.Module,
    inputs: Inputs,
    site: str | Sites,
    units: Sequence[int] | Tensor | None = None,
    value: Value = 0.0,
    targets: Targets = None,
    *,
    corrupted: Inputs | None = None,
    positions: Positions = None,
    metric: Metric = None,
    screen: int | None = None,
    seed: int = 0,
    output: Output = None,
    dim: int | None = None,
    per_sample: bool = False,
    max_memory: int | None = None,
    progress: bool = True,
    backend: str | None = None,
) -> AblationResult | SiteAblations:
    """What each unit of a site does: puts something else in its place, one at a time.

    With p the class probabilities of the whole network on a sample and q those of the ablated one,
    each ablation gets, in nats and summed over the samples, H(p) - H(q), KL(q | p) and KL(p | q),
    with targets the loss and the accuracies, and with `metric` its change. What comes before the
    site runs once, for all sites together.

    Args:
        model: any module that returns logits `[n, ..., c]`. It runs in eval mode, without
            gradients, and is left as it was.
        inputs: its input, a tuple of positional inputs or a mapping of keyword inputs, on its
            device; or a DataLoader of such, or of pairs (input, targets), which is streamed.
        site: a place by name: a module's output, its input (`"fc2:input"`), an item of an output
            (`"attn[0]"`), one of several calls (`"relu#1"`), or a torch function called in a
            module's forward (`"layer1/add#0"`). The units are the last dimension of what is there
            `[n, ..., d]`; of convolutions, their pools and norms dimension 1, the channels. Several
            names or patterns of modules, or a mapping of names to units, give a `SiteAblations`.
        units: their indices, all by default.
        value: what is put in a unit's place.

            * a number, or a tensor `[d]` with one for each unit;
            * a tensor with a value for each position, or of the site's own shape with one for each
              sample too: activations of other inputs, as `modfast.capture` gives them;
            * `"mean"`, each unit's mean over the samples and positions that count, or
              `"positional-mean"`, over the samples, for each position (a DataLoader is then read
              twice);
            * `"resample"`: each sample takes the activations of another of its batch;
            * `"optimal"`: the constant that gives the least KL(p | q) (of inputs in one batch).

            A mapping has one for each site.
        targets: int64 classes, one for each row of logits; -100 for rows that count nowhere.
        corrupted: inputs that go with `inputs`, sample by sample: what the model has there is put
            in place (activation patching). Means and `"resample"` are then of these.
        positions: where it is put: indices of positions (tokens, or pixels row by row; negative
            ones count from the end), a bool mask of them or of samples and positions `[n, t]`, or
            `"each"`, an ablation for every unit and position. At all by default.
        metric: a function `(logits, batch) -> [n]`, or of logits alone, or one that gives one
            number, such as `modfast.metrics.logit_difference(a, b)`; or a mapping of names to
            such. The result keeps ablated minus original. The names "kl", "entropy", "loss" and
            "accuracy" say what every result has; with `screen` they say what is screened by.
        screen: ablates only the k units of each site that `attribute_units` puts first, and k
            drawn at random from the others, which tell what may be missed: `result.screening`.
        seed: of `"resample"` and of what `screen` draws.
        output: picks the logits out of what the model returns.
        dim: the dimension of the units, where the above is wrong.
        per_sample: keep the sums' samples apart.
        max_memory: bytes that the ablations may take at a time, 256 MiB by default; one ablation
            of one batch is the least.
        progress: show a progress bar on long sweeps, where standard error is a terminal.
        backend: how the network is resumed from the site: `"fused"` (linear layers, and activations
            between them, up to the logits), `"vmap"` and `"replay"` (what the run did from the site
            on is done again, for many ablations at once or one by one), `"model"` (the model itself
            runs again, with a hook), which give the same numbers; by default the first that is
            shown to give the model's own logits.

    Raises:
        TypeError: arguments of a wrong type, a site or model without a floating tensor as output.
        ValueError: an unknown site (the nearest are listed), one that is not reached or called
            several times, a unit or position out of range, values that do not fit, inputs, values
            or logits that are not finite, targets out of range.

    Source: N0, which clones the network and runs it whole for each unit, adds 1e-8 to each
    probability under the logarithm, and sums KL(q | p). Patching: Wang et al., "Interpretability in
    the Wild", 2023. Optimal ablation: Li and Janson, 2024.

    Example:
        >>> import torch, modfast
        >>> model = modfast.models.MLP([8, 6, 6, 3])
        >>> x, other = torch.randn(20, 8), torch.randn(20, 8)
        >>> modfast.ablate_units(model, x, "act2").kl_ablated_original.shape
        torch.Size([6])
        >>> difference = modfast.metrics.logit_difference(0, 1)
        >>> patched = modfast.ablate_units(model, x, "act2", corrupted=other, metric=difference)
        >>> patched.mean("logit_difference").shape
        torch.Size([6])
    """
    options = options_of(output, dim, per_sample, max_memory, progress, backend, metric)
    sites, each = read_sites(model, site, units, "units")
    seed = checks.seed("seed", seed)

    def make(at: At, value: Tensor | None, where: Tensor | None) -> Changes:
        assert value is not None
        values, device = _merged(at, value, where), at.features.device
        chosen, d = each[at.name], at.features.shape[-1]
        if chosen is None:
            return Units(torch.arange(d, device=device), values, in_order=True)
        return Units(read_units("units", chosen, d).to(device), values)

    k = None if screen is None else checks.count("screen", screen)
    source = read_source(model, inputs, sites, value, corrupted, dim, seed)
    _check_optimal(source.kind, inputs, positions)
    plan = Plan(sites, make, source, positions, corrupted)
    if k is None:
        results = sweep(model, inputs, plan, targets, options)
    else:
        found = screened(model, inputs, plan, each, k, metric, targets, seed, options)
        each = found.units
        results = found.told(sweep(model, inputs, plan, targets, options))
    return results[site] if isinstance(site, str) else SiteAblations(results)


@overload
def ablate_directions(
    model: nn.Module,
    inputs: Inputs,
    site: str,
    directions: Tensor | None = ...,
    targets: Targets = ...,
    *,
    value: Value = ...,
    **options: Unpack[AblationOptions],
) -> AblationResult: ...
@overload
def ablate_directions(
    model: nn.Module,
    inputs: Inputs,
    site: Sites,
    directions: Tensor | None = ...,
    targets: Targets = ...,
    *,
    value: Value = ...,
    **options: Unpack[AblationOptions],
) -> SiteAblations: ...
@renamed(path="backend")
def ablate_directions(
    model: nn.Module,
    inputs: Inputs,
    site: str | Sites,
    directions: Tensor | None = None,
    targets: Targets = None,
    *,
    value: Value = 0.0,
    corrupted: Inputs | None = None,
    positions: Positions = None,
    metric: Metric = None,
    seed: int = 0,
    output: Output = None,
    dim: int | None = None,
    per_sample: bool = False,
    max_memory: int | None = None,
    progress: bool = True,
    backend: str | None = None,
) -> AblationResult | SiteAblations:
    """What each direction of a site's activations does: turns a into a - (a·v) v, one at a time.

    `directions` stand one a row, `[a, d]`, and each is divided by its length first. With `value`,
    a becomes a - (a·v - c) v: c is a number, or c = a'·v with a' activations as in
    `ablate_units`; `"optimal"` is the best c. The other arguments, the result and the errors are
    those of `ablate_units`; besides,

    Raises:
        TypeError: directions that are no floating tensor.
        ValueError: directions of another width than the site, not finite, or zero.

    Source: N0, its ablation of random directions.

    Example:
        >>> import torch, modfast
        >>> model = modfast.models.MLP([8, 6, 6, 3])
        >>> x, eye = torch.randn(20, 8), torch.eye(6)
        >>> directions = modfast.ablate_directions(model, x, "act2", eye)
        >>> units = modfast.ablate_units(model, x, "act2")
        >>> torch.allclose(directions.kl_ablated_original, units.kl_ablated_original)
        True
    """
    options = options_of(output, dim, per_sample, max_memory, progress, backend, metric)
    sites, each = read_sites(model, site, directions, "directions")
    for vectors in each.values():
        checks.floating("directions", vectors)
    seed = checks.seed("seed", seed)
    length = 0.0
    if is_number := not isinstance(value, (str, Tensor, Mapping)) and corrupted is None:
        length = checks.finite_number("value", value)

    def make(at: At, value: Tensor | None, where: Tensor | None) -> Changes:
        vectors = read_directions(at.name, each[at.name], at.features)
        return Directions(vectors, value, length, where)

    source = None
    if not is_number:
        source = read_source(model, inputs, sites, value, corrupted, dim, seed)
        _check_optimal(source.kind, inputs, positions)
    plan = Plan(sites, make, source, positions, corrupted)
    results = sweep(model, inputs, plan, targets, options)
    return results[site] if isinstance(site, str) else SiteAblations(results)


@overload
def ablate_groups(
    model: nn.Module,
    inputs: Inputs,
    site: str,
    units: UnitGroups | None = ...,
    keep: bool = ...,
    value: Value = ...,
    targets: Targets = ...,
    *,
    groups: UnitGroups | None = ...,
    **options: Unpack[AblationOptions],
) -> AblationResult: ...
@overload
def ablate_groups(
    model: nn.Module,
    inputs: Inputs,
    site: Sites,
    units: UnitGroups | None = ...,
    keep: bool = ...,
    value: Value = ...,
    targets: Targets = ...,
    *,
    groups: UnitGroups | None = ...,
    **options: Unpack[AblationOptions],
) -> SiteAblations: ...
@renamed(path="backend")
def ablate_groups(
    model: nn.Module,
    inputs: Inputs,
    site: str | Sites,
    units: UnitGroups | None = None,
    keep: bool = False,
    value: Value = 0.0,
    targets: Targets = None,
    *,
    groups: UnitGroups | None = None,
    corrupted: Inputs | None = None,
    positions: Positions = None,
    metric: Metric = None,
    seed: int = 0,
    output: Output = None,
    dim: int | None = None,
    per_sample: bool = False,
    max_memory: int | None = None,
    progress: bool = True,
    backend: str | None = None,
) -> AblationResult | SiteAblations:
    """What each group of a site's units does: puts something else in its place, one at a time.

    `units` (or `groups`, the same) are the groups: lists of unit indices, a boolean matrix
    `[a, d]`, labels `[d]` (-1 for "in no group"), a mapping of labels to indices, or `Clusters`,
    whose rows count. `heads` gives those of attention, at the input of its output projection; for
    several sites they may be those of each. With `keep` all other units are set instead, so that
    the group is left alone. The other arguments, the result and the errors are those of
    `ablate_units`; `backend="fused"` is for single units.

    Source: N1, its clusters switched on and off, by activations instead of weights.

    Example:
        >>> import torch, modfast
        >>> model = modfast.models.MLP([8, 6, 6, 3])
        >>> result = modfast.ablate_groups(model, torch.randn(20, 8), "act2", [[0, 1, 2], [3, 4]])
        >>> result.labels
        ('group 0', 'group 1')
    """
    options = options_of(output, dim, per_sample, max_memory, progress, backend, metric)
    if units is not None and groups is not None:
        raise ValueError("units and groups are the same: groups must be left out where units are")
    what = units if groups is None else groups
    if what is None and not isinstance(site, Mapping):
        raise TypeError("units must be groups of units, got None")
    sites, each = read_sites(model, site, what, "units")
    checks.flag("keep", keep)
    seed = checks.seed("seed", seed)

    def make(at: At, value: Tensor | None, where: Tensor | None) -> Changes:
        assert value is not None
        mask = read_masks("units", each[at.name], at.features.shape[-1], at.features.device)
        return Groups(~mask if keep else mask, _merged(at, value, where))

    source = read_source(model, inputs, sites, value, corrupted, dim, seed)
    _check_optimal(source.kind, inputs, positions)
    plan = Plan(sites, make, source, positions, corrupted)
    results = sweep(model, inputs, plan, targets, options)
    return results[site] if isinstance(site, str) else SiteAblations(results)


def _merged(at: At, value: Tensor, where: Tensor | None) -> Tensor:
    """New values, with the old ones where none are put."""
    return value if where is None else torch.where(where, value, at.features)


def _check_optimal(kind: str, inputs: Inputs, positions: Positions) -> None:
    if kind == "optimal" and is_stream(inputs):
        raise ValueError("value='optimal' needs inputs in one batch, got a stream")
    if kind == "optimal" and isinstance(positions, str):
        raise ValueError(
            f"positions must be indices or a mask with value='optimal', got {positions!r}"
        )
