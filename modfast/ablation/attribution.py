"""What is every unit of a network for? One backward pass estimates what ablating each would do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from modfast import checks
from modfast.ablation.arguments import Metric, options_of
from modfast.ablation.estimates import Asked, estimate
from modfast.ablation.objective import read_objective
from modfast.ablation.result import UnitScores
from modfast.ablation.values import Positions, Value, read_source
from modfast.network.inputs import Inputs, Targets
from modfast.network.logits import Output
from modfast.network.run import require_differentiable
from modfast.network.sites import resolve_sites
from modfast.network.units import Units as UnitGroups


def attribute_units(
    model: nn.Module,
    inputs: Inputs,
    sites: str | Sequence[str],
    *,
    corrupted: Inputs | None = None,
    value: Value = 0.0,
    metric: Metric = "kl",
    targets: Targets = None,
    steps: int = 1,
    positions: Positions = None,
    groups: UnitGroups | Mapping[str, UnitGroups | None] | None = None,
    draws: int = 1,
    seed: int = 0,
    output: Output = None,
    dim: int | None = None,
) -> UnitScores:
    """An estimate of what `ablate_units` finds, for every unit of all sites at once.

    Attribution patching: the metric's gradient at the activations a, times their change a' - a,
    summed over samples and positions, from one run and one backward pass. Where a site holds
    queries or keys (they reach attention's softmax through no layer with weights), attention is
    done again for each of its units and only what follows is linearized (AtP*).

    "kl" has gradient zero at the unchanged run. Its estimate is of second order, half of the
    variance of the change of log p: 1/2 (the gradient of v · log p, times the change)^2 for each
    sample, where v is random in each row of logits, of mean 0 and variance diag(p) - ppᵀ; in the
    mean this is 1/2 δᵀFδ with Fisher's F. Its relative variance is 2 / (samples · draws) at most;
    where samples have logits at several positions, it is nearer to 2 / (positions · draws), as
    what positions do to each other's logits is left out as far as it is lost in that noise.

    With `steps` above 1 the gradient is the mean over runs in which a whole site is part of the
    way, a + (i - 1/2) / steps (a' - a): integrated gradients, site by site, whose sum over a site's
    units tends to what changing all of them does.

    Args:
        model: as in `ablate_units`; gradients must reach the sites.
        inputs: as in `ablate_units`.
        sites: names of places, or patterns of modules.
        corrupted: as in `ablate_units`.
        value: as in `ablate_units`, but for `"optimal"`.
        metric: "kl" for KL(q | p), "loss" (with targets), "entropy" for H(p) - H(q), or a function
            as in `ablate_units`, that gradients go through.
        targets: as in `ablate_units`.
        steps: of the way to the new values.
        positions: as in `ablate_units`; `"each"` gives scores for each unit and position.
        groups: groups of units that are changed together, such as `modfast.heads` gives, for all
            sites or by site (None for a site's single units).
        draws: with "kl", how often v is drawn, each of which takes a backward pass.
        seed: of `"resample"` and of the draws.
        output: picks the logits out of what the model returns.
        dim: the dimension of the units, where it is another or not known.

    Returns:
        The scores, ablated minus original and summed over the samples, float64 `[units]` by site,
        or `[units, positions]`.

    Raises:
        TypeError: arguments of a wrong type, a site or model without a floating tensor as output.
        ValueError: as `ablate_units`; a site or metric that gradients do not reach.

    Source: Nanda, "Attribution Patching", 2023; Kramár et al., "AtP*", 2024; of second order:
        Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", 2018.

    Example:
        >>> import torch, modfast
        >>> model = modfast.models.MLP([8, 6, 6, 3])
        >>> x, y = torch.randn(20, 8), torch.arange(20) % 3
        >>> found = modfast.attribute_units(model, x, ["act1", "act2"], metric="loss", targets=y)
        >>> {site: tuple(scores.shape) for site, scores in found.scores.items()}
        {'act1': (6,), 'act2': (6,)}
    """
    options = replace(options_of(output, dim, False, None, False, None), argument="sites")
    objective = read_objective(metric, draws, seed)
    steps = checks.count("steps", steps)
    places = resolve_sites(model, sites)
    checks.module("model", model)
    require_differentiable(model)
    source = read_source(model, inputs, places, value, corrupted, dim, seed, "sites")
    if source.kind == "optimal":
        raise ValueError("value must be other than 'optimal', whose constants sweeps look for")
    asked = Asked(places, source, corrupted, positions, groups, objective, steps)
    totals, n_samples, fixed = estimate(model, inputs, targets, asked, options)
    source.check_rows(n_samples)
    scores = {name: total.cpu() for name, total in totals.items()}
    return UnitScores(
        scores,
        objective.name,
        n_samples,
        steps,
        "unit" if groups is None else "group",
        tuple(fixed),
    )
