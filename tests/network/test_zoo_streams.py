"""Streams of batches, and the samples that activate units most, on every model of the zoo."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from network import trying, zoo
from network.test_zoo import assert_sums, every_model, every_situation, options
from network.trying import Refusal, Truth, attempt, close, pieces, situation, truth, twice
from torch import Tensor

import modfast


def size_of(case: zoo.Case) -> int:
    """Of batches: the last one is smaller."""
    return 4 if len(case.targets) == 6 else len(case.targets) - 1


@pytest.fixture
def known(name: str) -> Truth:
    found = truth(name, "plain")
    if not found.case.rows:
        pytest.skip("its inputs are one batch")
    return found


@every_model
def test_units_of_a_stream(name: str, known: Truth) -> None:
    size = size_of(known.case)
    for site in list(known.case.sites)[:2]:
        with situation(name, "plain") as case:
            more = options(case, site) | {"targets": None, "units": known.units(site)}
            stream = trying.batches_of(case, size)
            found = attempt(case, modfast.ablate_units, stream, site, **more)
        parts = [piece.without_units(site) for piece in pieces(name, size)]
        expected = {key: sum(part[key] for part in parts) for key in parts[0]}
        weights = [piece.n_counted for piece in pieces(name, size)]
        correct = sum(n * part["accuracy"] for n, part in zip(weights, parts, strict=True))
        expected["accuracy"] = correct / sum(weights)
        assert_sums(found, expected, known.slack, site)


@every_model
def test_capture_of_a_stream(name: str, known: Truth) -> None:
    size = size_of(known.case)
    with situation(name, "plain") as case:
        stream = trying.batches_of(case, size)
        found = attempt(case, modfast.capture, stream, list(case.sites))
    assert not isinstance(found, Refusal), found
    for site, value in found.items():
        parts = [piece.site(site) for piece in pieces(name, size)]
        close(value, torch.cat(parts), 1e-12, site)


def strongest(known: Truth, site: str) -> Tensor:
    """The largest value of each unit in each sample, over the positions that count: `[n, d]`."""
    value = known.site(site).movedim(known.case.sites[site], -1)
    n, d = len(value), value.shape[-1]
    mask = known.mask(site, value.shape[:-1])
    if mask is not None:
        value = value.masked_fill(~mask[..., None], -torch.inf)
    return value.reshape(n, -1, d).amax(1)


def look_at_tops(case: zoo.Case, in_a_stream: bool = False) -> Any:
    data = trying.batches_of(case, size_of(case)) if in_a_stream else (case.inputs, case.targets)
    sites = [site for site in case.sites if site not in case.ask]
    return attempt(case, modfast.max_activating, data, sites, k=2)


def assert_tops(found: Any, case: zoo.Case, values: dict[str, Tensor], slack: float) -> None:
    assert not isinstance(found, Refusal), found
    assert set(found) <= set(values)
    for site in found:
        expected = values[site]
        top = expected.topk(2, dim=0).values.T
        close(found[site].values, top, slack, site)
        picked = expected.T.gather(1, found[site].indices)
        close(picked, top, slack, f"{site}, indices")
        if case.targets.dim() == 1:
            assert torch.equal(found[site].labels, case.targets[found[site].indices])


@every_situation
@every_model
def test_max_activating(name: str, kind: str) -> None:
    known = truth(name, kind)
    trying.skip_where_the_model_fails(known)
    with situation(name, kind) as case:
        found = twice(case, kind, look_at_tops)
    sites = [site for site in known.case.sites if site not in known.case.ask]
    values = {site: strongest(known, site) for site in sites}
    assert_tops(found, known.case, values, 1e-9)


@every_model
def test_max_activating_of_a_stream(name: str, known: Truth) -> None:
    if isinstance(known.case.inputs, tuple):
        pytest.skip("a list of batches is no data")
    with situation(name, "plain") as case:
        found = look_at_tops(case, in_a_stream=True)
    sites = [site for site in known.case.sites if site not in known.case.ask]
    parts = pieces(name, size_of(known.case))
    values = {site: torch.cat([strongest(piece, site) for piece in parts]) for site in sites}
    assert_tops(found, known.case, values, 1e-9)
