"""Functions that look at sites, on every model of the zoo: what plain hooks say, or a refusal."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from network import oracle, trying, zoo
from network.trying import (
    SITUATIONS,
    SLACK,
    Refusal,
    attempt,
    close,
    situation,
    situations,
    truth,
    twice,
)
from torch import Tensor

import modfast
from modfast import ablate_directions, ablate_groups, ablate_units, max_information_direction

BACKENDS = ("fused", "vmap", "replay", "model")

every_model = pytest.mark.parametrize("name", zoo.NAMES)
every_situation = situations(*SITUATIONS)


def options(case: zoo.Case, site: str) -> dict[str, Any]:
    found = {"targets": case.targets, "output": case.output}
    return found | ({"dim": case.sites[site]} if site in case.ask else {})


def assert_sums(result: Any, expected: dict[str, Tensor], slack: float, what: str) -> None:
    assert not isinstance(result, Refusal), f"{what}: {result}"
    what = f"{what} by {result.backend}"
    for measure in oracle.MEASURES:
        close(getattr(result, measure), expected[measure], slack, f"{what}, {measure}")
    close(result.loss, expected["loss"], slack, f"{what}, loss")
    if slack < 1e-3:  # else logits that are nearly equal may fall either way
        close(result.accuracy, expected["accuracy"], 1e-9, f"{what}, accuracy")


def look_at_all(case: zoo.Case) -> Any:
    return attempt(case, modfast.capture, case.inputs, list(case.sites))


@every_situation
@every_model
def test_capture(name: str, kind: str) -> None:
    known = truth(name, kind)
    trying.skip_where_the_model_fails(known)
    with situation(name, kind) as case:
        found = twice(case, kind, look_at_all)
    assert not isinstance(found, Refusal), found
    assert set(found) == set(case.sites)
    for site, value in found.items():
        assert value.dtype == known.site(site).dtype, site
        close(value, known.site(site), 1e-12, site)


def look_at_units(case: zoo.Case, units: dict[str, list[int]], **more: Any) -> dict[str, Any]:
    return {
        site: attempt(
            case, ablate_units, case.inputs, site, units=each, **(options(case, site) | more)
        )
        for site, each in units.items()
    }


@every_situation
@every_model
def test_units(name: str, kind: str) -> None:
    known = truth(name, kind)
    trying.skip_where_the_model_fails(known)
    units = {site: known.units(site) for site in known.case.sites}
    with situation(name, kind) as case:
        results = twice(case, kind, partial(look_at_units, units=units))
    for site, found in results.items():
        assert_sums(found, known.without_units(site), known.slack, site)


@every_model
def test_units_where_no_dimension_is_given(name: str) -> None:
    """The right one, or a question."""
    known = truth(name, "plain")
    units = {site: known.units(site) for site in known.case.ask}
    with situation(name, "plain") as case:
        results = look_at_units(case, units, dim=None)
    for site, found in results.items():
        if isinstance(found, Refusal):
            assert "dim" in found
        else:
            assert_sums(found, known.without_units(site), known.slack, site)


@pytest.mark.parametrize("backend", BACKENDS)
@every_model
def test_units_by_every_backend(name: str, backend: str) -> None:
    known = truth(name, "plain")
    units = {site: known.units(site) for site in known.case.sites}
    with situation(name, "plain") as case:
        results = look_at_units(case, units, backend=backend)
    for site, found in results.items():
        if isinstance(found, Refusal) and backend != "model":
            assert "backend" in found
            continue
        slack = SLACK[torch.float64] if backend == "model" else known.slack
        slack = max(slack, 1e-5 if known.logits.dtype != torch.float64 else 0.0)
        assert_sums(found, known.without_units(site), slack, site)
        assert found.backend == backend


@dataclass
class Asked:
    """What is to be ablated at a site."""

    rows: Tensor
    groups: list[list[int]]
    values: Tensor

    @classmethod
    def of(cls, d: int) -> Asked:
        rows = torch.stack([torch.ones(d), torch.arange(d).sin() - 0.3]).double()
        return cls(rows, [[0, d - 1], [1]], torch.linspace(-1, 1, d).double())


def look_at_groups(case: zoo.Case, wanted: dict[str, Asked]) -> dict[str, dict[str, Any]]:
    found = {}
    for site, asked in wanted.items():
        more = options(case, site)
        groups = partial(attempt, case, ablate_groups, case.inputs, site, asked.groups, **more)
        found[site] = {
            "directions": attempt(case, ablate_directions, case.inputs, site, asked.rows, **more),
            "groups": groups(),
            "keep": groups(keep=True),
            "values": groups(value=asked.values),
            "mean": groups(value="mean"),
        }
    return found


@situations("plain", "changed")
@every_model
def test_directions_and_groups(name: str, kind: str) -> None:
    known = truth(name, kind)
    sites = list(known.case.sites)[: 2 if kind == "plain" else 1]
    wanted = {site: Asked.of(known.width(site)) for site in sites}
    with situation(name, kind) as case:
        results = twice(case, kind, partial(look_at_groups, wanted=wanted))
    for site, asked in wanted.items():
        dim, d, mean = known.case.sites[site], known.width(site), known.counted(site).mean(0)
        others = [[i for i in range(d) if i not in group] for group in asked.groups]
        changes = {
            "directions": [oracle.without(row, dim) for row in asked.rows],
            "groups": [oracle.units_set(group, dim) for group in asked.groups],
            "keep": [oracle.units_set(group, dim) for group in others],
            "values": [oracle.units_set(g, dim, asked.values[g]) for g in asked.groups],
            "mean": [oracle.units_set(group, dim, mean[group]) for group in asked.groups],
        }
        for what, each in changes.items():
            expected = known.sums(site, {f"{what} {i}": change for i, change in enumerate(each)})
            assert_sums(results[site][what], expected, known.slack, f"{site}, {what}")


def look_for_a_direction(case: zoo.Case, site: str) -> Any:
    more = {"steps": 3, "restarts": 2, "seed": 1, "lr": 0.1}
    found = max_information_direction
    return attempt(case, found, case.inputs, site, output=case.output, **more)


@every_situation
@every_model
def test_a_direction_has_the_divergence_that_hooks_find(name: str, kind: str) -> None:
    known = truth(name, kind)
    trying.skip_where_the_model_fails(known)
    site, dim = next(iter(known.case.sites.items()))
    with situation(name, kind) as case:
        found = twice(case, kind, partial(look_for_a_direction, site=site))
    if isinstance(found, Refusal):
        assert name in ("numpy",), found
        return
    case = known.case
    changes = {f"{v.tolist()}": oracle.without(v, dim) for v in found.directions}
    each = []
    for key, change in changes.items():
        after = known.run((site, key), oracle.replaced, site, change, case.output)
        kept = oracle.counted(case.inputs, known.logits)
        each.append(oracle.terms(known.logits, after)["kl_ablated_original"][kept].sum())
    close(found.kls, torch.stack(each), known.slack, f"{site} by {found.backend}")
    assert found.kl == found.kls.max()
    assert bool((found.kls >= found.history[0] * (1 - 1e-6)).all())
