"""Patching, several sites in one run and attribution on every model of the zoo, against hooks."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from network import oracle, trying, zoo
from network.test_zoo import assert_sums, every_model
from network.test_zoo_gradients import NO_GRADIENT
from network.trying import Refusal, Truth, attempt, close, situation, situations, truth, twice
from torch import Tensor

import modfast


def places(known: Truth) -> dict[str, int]:
    """Every place that hooks on modules see, and how wide its last dimension is.

    Inputs and outputs of all modules, each of several calls apart, and the zoo's own sites.
    """
    case = known.new()
    root = getattr(case.model, "_orig_mod", case.model)
    seen: dict[str, list[Any]] = {}
    handles = []
    for name, module in root.named_modules():
        if not name or isinstance(module, torch.jit.ScriptModule):
            continue

        def note(place: str, value: Any) -> None:
            seen.setdefault(place, []).append(value)

        def before(module: Any, args: Any, name: str = name) -> None:
            note(f"{name}:input", args[0] if args else None)

        def after(module: Any, args: Any, output: Any, name: str = name) -> None:
            note(name, output)

        handles.append(module.register_forward_pre_hook(before))
        handles.append(module.register_forward_hook(after))
    known.case = case
    with torch.no_grad():
        oracle.run(case.model, case.inputs, None, case.output)
    for handle in handles:
        handle.remove()
    found = {site: known.site(site).shape[-1] for site in case.sites}
    for place, values in seen.items():
        for i, value in enumerate(values):
            plain = isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1
            if plain and not value.is_sparse and value.numel():
                found[place if len(values) == 1 else f"{place}#{i}"] = value.shape[-1]
    return found


def units_of(known: Truth) -> dict[str, list[int]]:
    return {site: sorted({0, width - 1}) for site, width in places(known).items()}


def look_at_all_places(case: zoo.Case, units: dict[str, list[int]], **more: Any) -> Any:
    asked: dict[str, Any] = {"targets": case.targets, "output": case.output, "dim": -1}
    return attempt(case, modfast.ablate_units, case.inputs, units, **(asked | more))


def changes_of(units: list[int], to: Any = 0.0) -> dict[str, oracle.Change]:
    return {f"last {i}": oracle.units_set([i], -1, to) for i in units}


@situations("plain", "changed", "inference", "train")
@every_model
def test_several_sites_in_one_run(name: str, kind: str) -> None:
    known = truth(name, kind)
    trying.skip_where_the_model_fails(known)
    units = units_of(known)
    with situation(name, kind) as case:
        found = twice(case, kind, partial(look_at_all_places, units=units))
    assert not isinstance(found, Refusal), found
    assert set(found.sites) == set(units)
    slack = 0.1 if known.slack == trying.SLACK[torch.bfloat16] else known.slack
    for site, each in units.items():
        assert_sums(found[site], known.sums(site, changes_of(each)), slack, site)


def energy(logits: Tensor) -> Tensor:
    """One number of any logits."""
    return logits.double().square().mean()


def reversed_rows(inputs: Any) -> Any:
    """The samples in the other order."""
    if isinstance(inputs, dict):
        return {key: reversed_rows(each) for key, each in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(map(reversed_rows, inputs))
    return inputs.flip(0) if isinstance(inputs, Tensor) and inputs.dim() else inputs


def there(known: Truth, site: str) -> Tensor:
    """What a site holds on the samples in the other order."""

    def look(model: Any, inputs: Any) -> Tensor:
        return oracle.activations(model, reversed_rows(inputs), site)

    return known.run((site, "reversed"), look)


def taken(units: list[int], new: Tensor, position: int | None = None) -> oracle.Change:
    """Units of the last dimension, at all positions or one, from another value."""

    def change(value: Tensor) -> Tensor:
        mask = torch.zeros(value.shape[1:-1].numel(), value.shape[-1], dtype=torch.bool)
        mask[slice(None) if position is None else position, units] = True
        return torch.where(mask.reshape(1, *value.shape[1:]), new, value)

    return change


def look_at_patches(case: zoo.Case, units: dict[str, list[int]], **more: Any) -> Any:
    return look_at_all_places(
        case, units, corrupted=reversed_rows(case.inputs), metric=energy, **more
    )


@pytest.mark.slow
@situations("plain", "changed", "inference", "train")
@every_model
def test_patching_from_other_inputs(name: str, kind: str) -> None:
    known = truth(name, kind)
    if not known.case.rows:
        pytest.skip("its inputs have one order")
    units = units_of(known)
    with situation(name, kind) as case:
        found = twice(case, kind, partial(look_at_patches, units=units))
    assert not isinstance(found, Refusal), found
    for site, each in units.items():
        new = there(known, site)
        changes = {f"patched {i}": taken([i], new) for i in each}
        assert_sums(found[site], known.sums(site, changes), known.slack, site)
        after = [
            known.run((site, key), oracle.replaced, site, change, known.case.output)
            for key, change in changes.items()
        ]
        wanted = torch.stack([energy(x) - energy(known.logits) for x in after])
        close(found[site].mean("energy"), wanted, known.slack, f"{site}, metric")


@pytest.mark.slow
@every_model
def test_each_position(name: str) -> None:
    known = truth(name, "plain")
    shapes = {site: known.site(site).shape for site in places(known)}
    units = {site: [shape[-1] - 1] for site, shape in shapes.items() if len(shape) > 2}
    if not units:
        pytest.skip("it has no positions")
    with situation(name, "plain") as case:
        found = look_at_all_places(case, units, value=0.5, positions="each")
    assert not isinstance(found, Refusal), found
    for site, each in units.items():
        n = shapes[site][1:-1].numel()
        assert found[site].positions.tolist() == list(range(n))
        chosen = sorted({0, n // 2, n - 1})
        new = torch.full((), 0.5, dtype=known.site(site).dtype)
        changes = {f"{each} at {p}": taken(each, new, p) for p in chosen}
        expected = known.sums(site, changes)["kl_ablated_original"]
        close(found[site].kl_ablated_original[chosen], expected, known.slack, site)


def slope_at(model: Any, inputs: Any, site: str, output: Any) -> Tensor:
    """The gradient for what is added at a site: of a value that is used elsewhere, too, no more."""
    added: list[Tensor] = []

    def add(value: Tensor) -> Tensor:
        added.append(torch.zeros_like(value, requires_grad=True))
        return value + added[0]

    with torch.enable_grad():
        logits = oracle.run(model, inputs, {site: add}, output)
        (found,) = torch.autograd.grad(
            energy(logits), added[0], allow_unused=True, materialize_grads=True
        )
    return found


def look_at_scores(case: zoo.Case, sites: list[str], **more: Any) -> Any:
    asked: dict[str, Any] = {"output": case.output, "dim": -1, "metric": energy}
    return attempt(case, modfast.attribute_units, case.inputs, sites, **(asked | more))


@situations("plain", "changed", "inference", "train")
@every_model
def test_scores_are_gradients_times_changes(name: str, kind: str) -> None:
    known = truth(name, kind)
    sites = list(places(known))
    with situation(name, kind) as case:
        found = twice(case, kind, partial(look_at_scores, sites=sites))
    if isinstance(found, Refusal):
        assert name in NO_GRADIENT, found
        return
    assert name not in NO_GRADIENT
    assert set(found.scores) == set(sites)
    for site in set(sites) - set(found.corrected):  # the others are more than this
        slope = known.run((site, "slope"), slope_at, site, known.case.output)
        parts = (slope * -known.site(site)).double() * found.n_samples
        close(found.scores[site], parts.flatten(0, -2).sum(0), known.slack, site)


def slope_on_the_way(model: Any, inputs: Any, site: str, output: Any, at: Tensor) -> Tensor:
    """The gradient where a site holds another value."""
    held = at.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = oracle.run(model, inputs, {site: lambda value: held * 1}, output)
        (found,) = torch.autograd.grad(
            energy(logits), held, allow_unused=True, materialize_grads=True
        )
    return found


@pytest.mark.slow
@every_model
def test_steps_are_gradients_on_the_way(name: str) -> None:
    known, steps = truth(name, "plain"), 3
    site = next(iter(known.case.sites))
    with situation(name, "plain") as case:
        found = look_at_scores(case, [site], steps=steps)
    if isinstance(found, Refusal):
        assert name in NO_GRADIENT, found
        return
    value = known.site(site)
    slopes = []
    for i in range(steps):
        at = value * (1 - (i + 0.5) / steps)
        key = (site, "on the way", i)
        slopes.append(known.run(key, slope_on_the_way, site, known.case.output, at).double())
    parts = (sum(slopes) / steps * -value).double() * found.n_samples
    close(found.scores[site], parts.flatten(0, -2).sum(0), known.slack, site)


@pytest.mark.slow
@every_model
def test_optimal_constants_are_no_worse(name: str) -> None:
    known = truth(name, "plain")
    units = {next(iter(known.case.sites)): [0]}
    with situation(name, "plain") as case:
        found = look_at_all_places(case, units, value="optimal")
        others = [look_at_all_places(case, units, value=value) for value in ("mean", 0.0)]
    if isinstance(found, Refusal):
        assert name in NO_GRADIENT, found
        return
    for site in units:
        kl = found[site].kl_original_ablated
        for other in others:
            assert kl <= other[site].kl_original_ablated * (1 + 1e-6) + 1e-9
        constant = found[site].values[0]
        change = {f"optimal {constant}": oracle.units_set([0], -1, constant)}
        close(kl, known.sums(site, change)["kl_original_ablated"], known.slack, site)
