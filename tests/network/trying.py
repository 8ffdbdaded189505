"""How functions are tried on the zoo's models: in several situations, and nothing may change."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from network import oracle, zoo
from network.snapshot import Snapshot
from network.zoo_case import same_numbers
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

SITUATIONS = ("plain", "changed", "autocast", "inference", "train")
"""As it is; again after a change of the model; in float32 under autocast; in inference mode, with
inputs made in it; in training mode but for one module."""


def situations(*kinds: str) -> pytest.MarkDecorator:
    """A test in each of some situations; in all but the first it is slow."""
    later = [pytest.param(kind, marks=pytest.mark.slow) for kind in kinds[1:]]
    return pytest.mark.parametrize("kind", [kinds[0], *later])


SLACK = {torch.float64: 1e-9, torch.float32: 2e-4, torch.bfloat16: 5e-2}
"""How far a sum may be from the oracle's, relative to the largest, by the narrowest dtype."""


class Refusal(str):
    """The message of a ValueError or TypeError that names one of the function's arguments."""


@contextmanager
def situation(name: str, kind: str) -> Iterator[zoo.Case]:
    """A case in a situation; the random state is the same each time."""
    case = zoo.build(name, torch.float32 if kind == "autocast" else torch.float64)
    with same_numbers():
        if kind == "inference":
            with torch.inference_mode():
                case.inputs = copy.deepcopy(case.inputs)
                yield case
        elif kind == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                yield case
        else:
            if kind == "train":
                case.model.train()
                next(case.model.children()).eval()
            yield case


def attempt(case: zoo.Case, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a function gives, or its refusal; either way nothing is changed."""
    given = case.inputs, case.targets, args, kwargs
    before = case.seen or Snapshot(case.model), Snapshot(None, given)
    found: Any
    try:
        found = function(case.model, *args, **kwargs)
    except (ValueError, TypeError) as error:
        names = "|".join(inspect.signature(function).parameters)
        if re.search(rf"\b({names})\b", str(error)) is None:
            raise
        found = Refusal(error)
    case.seen = Snapshot(case.model)
    changes = before[0].until(case.seen) + before[1].changes(None, given)
    assert changes == [], changes
    return found


def twice(case: zoo.Case, kind: str, look: Callable[[zoo.Case], Any]) -> Any:
    """What is found in a situation: after a change of the model, once it was looked at before."""
    found = look(case)
    if kind != "changed":
        return found
    case.change(case)
    case.seen = None
    return look(case)


def close(found: Tensor, expected: Tensor, slack: float, what: str = "") -> None:
    """Asserts that two tensors agree, relative to the largest entry."""
    assert found.shape == expected.shape, f"{what}: {found.shape} for {expected.shape}"
    found, expected = found.detach().double(), expected.detach().double()
    allowed = slack * (expected.abs().amax() + 1e-3)
    assert bool(((found - expected).abs() <= allowed).all()), f"{what}: {found} for {expected}"


class Truth:
    """What plain hooks say of a model in a situation; each run is made once."""

    def __init__(self, name: str, kind: str, rows: slice | None = None) -> None:
        self.name, self.kind, self.rows = name, kind, rows
        self.kept: dict[Any, Any] = {}
        self.case = self.new()

    def new(self) -> zoo.Case:
        """The case, or some of its samples."""
        with situation(self.name, self.kind) as case:
            if self.kind == "changed":
                case.change(case)
        if self.rows is not None:
            case.inputs = rows_of(case.inputs, self.rows)
            case.targets = case.targets[self.rows]
        return case

    def run(self, key: Any, function: Callable[..., Tensor], *args: Any) -> Tensor:
        if key not in self.kept:
            if self.case.grows:
                self.case = self.new()
            autocast = torch.autocast("cpu", torch.bfloat16, enabled=self.kind == "autocast")
            with same_numbers(), torch.no_grad(), autocast:
                found = function(self.case.model, self.case.inputs, *args)
            self.kept[key] = found.detach().clone()
        return self.kept[key]

    @property
    def logits(self) -> Tensor:
        return self.run("logits", oracle.run, None, self.case.output)

    def site(self, site: str) -> Tensor:
        """Its value."""
        return self.run(site, oracle.activations, site)

    @property
    def n_counted(self) -> int:
        """How many positions of the logits count."""
        return int(oracle.counted(self.case.inputs, self.logits, self.case.targets).sum())

    def width(self, site: str) -> int:
        """How many units it has."""
        return self.site(site).shape[self.case.sites[site]]

    def units(self, site: str) -> list[int]:
        """Some of them, where there are many."""
        d = self.width(site)
        return list(range(d)) if d <= 4 else [0, 1, d // 2, d - 1]

    def counted(self, site: str) -> Tensor:
        """Its values at samples and positions that count: `[n, d]`."""
        value = self.site(site).movedim(self.case.sites[site], -1)
        mask = self.mask(site, value.shape[:-1])
        return value.flatten(0, -2) if mask is None else value[mask]

    def mask(self, site: str, shape: torch.Size) -> Tensor | None:
        """Which positions of a site of such a shape count, if not all do."""
        inputs = self.case.inputs
        mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
        return (
            mask.bool()
            if mask is not None and mask.shape == shape and "decoder" not in site
            else None
        )

    def sums(self, site: str, changes: Mapping[str, oracle.Change]) -> dict[str, Tensor]:
        """What each change of a site does, `[a]` by measure. Names stand for changes."""
        case, each = self.case, []
        for name, change in changes.items():
            after = self.run((site, name), oracle.replaced, site, change, case.output)
            each.append(oracle.sums(case.inputs, self.logits, after, case.targets))
        return {name: torch.stack([found[name] for found in each]) for name in each[0]}

    def without_units(self, site: str) -> dict[str, Tensor]:
        """What some units do when they are set to 0."""
        dim = self.case.sites[site]
        changes = {f"unit {i}": oracle.units_set([i], dim) for i in self.units(site)}
        return self.sums(site, changes)

    @property
    def slack(self) -> float:
        """How far the package's sums may be from these."""
        if self.kind == "autocast":
            return 0.2  # the values themselves are no surer
        return max(SLACK[self.logits.dtype], SLACK[self.case.dtype])


def skip_where_the_model_fails(known: Truth) -> None:
    """Under autocast some models cannot run at all."""
    try:
        known.logits  # noqa: B018
    except (RuntimeError, TypeError) as error:
        assert known.kind == "autocast"
        pytest.skip(f"the model itself does not run under autocast: {error}")


@cache
def _truth(name: str, kind: str) -> Truth:
    return Truth(name, kind)


def truth(name: str, kind: str) -> Truth:
    """Neither inference nor training mode changes what is true."""
    return _truth(name, "plain" if kind in ("inference", "train") else kind)


def rows_of(inputs: Any, rows: slice) -> Any:
    """Some samples of a batch."""
    if isinstance(inputs, Mapping):
        return {key: rows_of(each, rows) for key, each in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(rows_of(each, rows) for each in inputs)
    return inputs[rows] if isinstance(inputs, Tensor) else inputs


class _Samples(Dataset[Any]):
    def __init__(self, case: zoo.Case) -> None:
        self.case = case

    def __len__(self) -> int:
        return len(self.case.targets)

    def __getitem__(self, i: int) -> Any:
        inputs = rows_of(self.case.inputs, slice(i, i + 1))
        first = {k: v[0] for k, v in inputs.items()} if isinstance(inputs, dict) else inputs[0]
        return first, self.case.targets[i]


def batches_of(case: zoo.Case, size: int) -> Any:
    """The case's samples as a stream of pairs: a DataLoader, or a list where there are tuples."""
    if not isinstance(case.inputs, tuple):
        # Without a generator of its own a DataLoader draws from the global one.
        return DataLoader(_Samples(case), batch_size=size, generator=torch.Generator())
    cuts = [slice(i, i + size) for i in range(0, len(case.targets), size)]
    return [(rows_of(case.inputs, rows), case.targets[rows]) for rows in cuts]


@cache
def pieces(name: str, size: int) -> list[Truth]:
    """What hooks say of each batch of such a stream."""
    found = []
    for start in range(0, len(truth(name, "plain").case.targets), size):
        found.append(Truth(name, "plain", slice(start, start + size)))
    return found


def is_refused(found: Any, name: str, names: Collection[str], kind: str = "") -> bool:
    """Whether a function refused a model; just those named may be, before they are changed."""
    if kind == "changed" and not isinstance(found, Refusal):
        return False
    if isinstance(found, Refusal):
        assert name in names, found
    else:
        assert name not in names, "is not refused"
    return isinstance(found, Refusal)
