"""Every old name works for this release: it gives what the new one does, and warns and says it."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import modfast
from modfast import plots
from modfast._renamed import RENAMED
from modfast.cli import main
from modfast.demo import DEFAULTS
from modfast.models import MLP

torch.manual_seed(0)
MODEL = MLP([8, 6, 6, 3]).double()
X, Y = torch.randn(30, 8).double(), torch.arange(30) % 3
CLUSTERS = modfast.Clusters.equal(6, 6, 2)
GROUPS = [[0, 1, 2], [3, 4, 5]]
SITES = modfast.capture(MODEL, X, ["fc1", "fc2"])
UNITS = {"fc1": [0, 1], "fc2": [2, 3]}


class Adding(nn.Module):
    """Adds and pools by functions, which torch.fx named "add" and "add_1"."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = MODEL.fc1, MODEL.fc3

    def forward(self, x: Tensor) -> Tensor:
        h = torch.add(self.layer(x), 1.0).tanh()
        return self.last(torch.add(h, h))


class Case(NamedTuple):
    """A function, options that do not change, and the old and the new ones."""

    function: Callable[..., Any]
    given: tuple[Any, ...]
    old: dict[str, Any]
    new: dict[str, Any]
    options: dict[str, Any] = {}  # noqa: RUF012


# By what `RENAMED` calls the function, and the old name.
ARGUMENTS: dict[tuple[str, str], Case] = {
    ("ablate_units", "path"): Case(
        modfast.ablate_units, (MODEL, X, "act1"), {"path": "replay"}, {"backend": "replay"}
    ),
    ("ablate_directions", "path"): Case(
        modfast.ablate_directions,
        (MODEL, X, "act1", torch.eye(6).double()),
        {"path": "model"},
        {"backend": "model"},
    ),
    ("ablate_groups", "path"): Case(
        modfast.ablate_groups,
        (MODEL, X, "act1", GROUPS),
        {"path": "replay"},
        {"backend": "replay"},
    ),
    ("max_information_direction", "path"): Case(
        modfast.max_information_direction,
        (MODEL, X, "act1"),
        {"path": "model"},
        {"backend": "model"},
        {"steps": 3, "restarts": 2, "seed": 0},
    ),
    ("discover_circuit", "tau"): Case(
        modfast.discover_circuit, (MODEL, X, X.flip(0)), {"tau": 1e-3}, {"threshold": 1e-3}
    ),
    ("prune_circuit", "against"): Case(
        modfast.prune_circuit, (MODEL, X, Y), {"against": "original"}, {"baseline": "original"}
    ),
    ("prune_circuit", "path"): Case(
        modfast.prune_circuit, (MODEL, X, Y), {"path": "replay"}, {"backend": "replay"}
    ),
    ("effective_circuit_size", "against"): Case(
        modfast.effective_circuit_size,
        (MODEL, X, Y, [1e-3]),
        {"against": "original"},
        {"baseline": "original"},
    ),
    ("effective_circuit_size", "path"): Case(
        modfast.effective_circuit_size,
        (MODEL, X, Y, [1e-3]),
        {"path": "replay"},
        {"backend": "replay"},
    ),
    ("jacobian_mutual_information", "partition"): Case(
        modfast.jacobian_mutual_information,
        (MODEL, X, "fc1"),
        {"partition": GROUPS},
        {"units": GROUPS},
    ),
    ("total_correlation", "partition"): Case(
        modfast.total_correlation, (SITES["fc2"],), {"partition": GROUPS}, {"units": GROUPS}
    ),
    ("modularity_measures", "module"): Case(
        modfast.modularity_measures, (SITES,), {"module": UNITS}, {"units": UNITS}
    ),
    ("ClusterabilityLoss", "weight"): Case(
        lambda *given, **options: modfast.ClusterabilityLoss(*given, **options)(),
        (MODEL, "fc2"),
        {"weight": 3.0},
        {"alpha": 3.0},
    ),
}

PAIRWISE = modfast.pairwise_mutual_information(SITES["fc1"].float(), SITES["fc2"].float())
LOSS = modfast.ClusterabilityLoss(MODEL, "fc2", alpha=4.0)
OPTIMIZER = modfast.Modularity(MODEL.parameters(), n_clusters=2, alpha=5.0)
(GROUP,) = OPTIMIZER.param_groups


def assigned(holder: Any, name: str, value: float) -> float:
    """What the term's weight is after it is set by one of its names."""
    if isinstance(holder, nn.Module):
        setattr(holder, name, value)
        return holder.alpha
    holder[name] = value
    return holder["alpha"]


def history(seed: int) -> modfast.History:
    return modfast.fit(MLP([8, 6, 3]), (X.float(), Y), 1, seed=seed, progress=False)


DATA = (X.float(), Y)
SMALL = MLP([8, 6, 3])


def study(*given: Any, **options: Any) -> modfast.TaskStudy:
    data = (X[:, :4].float(), X[:, 4:6].float())
    return modfast.TaskStudy.train(data, (4, 5, 2), 2, 3, *given, **options)


def changed(use: Callable[[Any], Any]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    return lambda: use(PAIRWISE), lambda: use(PAIRWISE.mi)


# The old call, the new one, and what the warning says that the old one is now.
CALLS: dict[str, tuple[Callable[[], Any], Callable[[], Any], str]] = {
    "backend='split'": (
        lambda: modfast.ablate_units(MODEL, X, "act1", backend="split"),
        lambda: modfast.ablate_units(MODEL, X, "act1", backend="replay"),
        "backend='replay'",
    ),
    "backend='hooks'": (
        lambda: modfast.ablate_units(MODEL, X, "act1", backend="hooks"),
        lambda: modfast.ablate_units(MODEL, X, "act1", backend="model"),
        "backend='model'",
    ),
    "backend='split' of directions": (
        lambda: modfast.ablate_directions(MODEL, X, "act1", torch.eye(6), backend="split"),
        lambda: modfast.ablate_directions(MODEL, X, "act1", torch.eye(6), backend="replay"),
        "backend='replay'",
    ),
    "backend='modules'": (
        lambda: modfast.prune_circuit(MODEL, X, Y, backend="modules"),
        lambda: modfast.prune_circuit(MODEL, X, Y, backend="replay"),
        "backend='replay' or 'model'",
    ),
    "order of evaluate_clusters": (
        lambda: modfast.evaluate_clusters(MODEL, "fc2", CLUSTERS, (X, Y)),
        lambda: modfast.evaluate_clusters(MODEL, (X, Y), "fc2", CLUSTERS),
        "evaluate_clusters(model, data, layer, clusters)",
    ),
    "options of fit by position": (
        lambda: modfast.fit(copy.deepcopy(SMALL), DATA, 1, 10, None, None, DATA, 0, False),
        lambda: modfast.fit(copy.deepcopy(SMALL), DATA, 1, 10, test=DATA, seed=0, progress=False),
        "fit(seed=..., progress=...)",
    ),
    "seed of a direction by position": (
        lambda: modfast.max_information_direction(MODEL, X, "act1", 3, 0.01, 2, 5),
        lambda: modfast.max_information_direction(MODEL, X, "act1", 3, 0.01, 2, seed=5),
        "max_information_direction(seed=...)",
    ),
    "seed of a study by position": (
        lambda: study(1e-2, 7, False),
        lambda: study(1e-2, seed=7, progress=False),
        "TaskStudy.train(seed=..., progress=...)",
    ),
    "progress of a study by position": (
        lambda: study(1e-2, seed=7).compare([X[:, :4].float()] * 2, None, False),
        lambda: study(1e-2, seed=7).compare([X[:, :4].float()] * 2, None, progress=False),
        "TaskStudy.compare(progress=...)",
    ),
    "a name of torch.fx": (
        lambda: modfast.ablate_units(Adding(), X, "add"),
        lambda: modfast.ablate_units(Adding(), X, "/add#0"),
        "site='/add#...'",
    ),
    "a second name of torch.fx": (
        lambda: modfast.ablate_units(Adding(), X, "add_1"),
        lambda: modfast.ablate_units(Adding(), X, "/add#1"),
        "site='/add#...'",
    ),
    "pairs as a tensor: method": (*changed(lambda each: each.sum()), "PairwiseInformation.mi"),
    "pairs as a tensor: index": (*changed(lambda each: each[0, 1]), "PairwiseInformation.mi"),
    "pairs as a tensor: operator": (*changed(lambda each: 1 - each), "PairwiseInformation.mi"),
    "pairs as a tensor: torch": (*changed(torch.trace), "PairwiseInformation.mi"),
    "pairs as a tensor: numpy": (
        *changed(lambda each: torch.from_numpy(np.asarray(each))),
        "PairwiseInformation.mi",
    ),
    "ClusterabilityLoss.weight": (
        lambda: LOSS.weight,
        lambda: LOSS.alpha,
        "ClusterabilityLoss.alpha",
    ),
    "ClusterabilityLoss.weight = 3": (
        lambda: assigned(LOSS, "weight", 3.0),
        lambda: assigned(LOSS, "alpha", 3.0),
        "ClusterabilityLoss.alpha",
    ),
    'group["cluster_alpha"]': (
        lambda: GROUP["cluster_alpha"],
        lambda: GROUP["alpha"],
        'group["alpha"]',
    ),
    'group["cluster_alpha"] = 3': (
        lambda: assigned(GROUP, "cluster_alpha", 3.0),
        lambda: assigned(GROUP, "alpha", 3.0),
        'group["alpha"]',
    ),
    "a group's cluster_alpha": (
        lambda: modfast.Modularity(
            [{"params": list(MODEL.parameters()), "cluster_alpha": 7.0}], n_clusters=2
        ).param_groups[0]["alpha"],
        lambda: 7.0,
        'group["alpha"]',
    ),
    "Settings.weight": (
        lambda: DEFAULTS["digits"].weight,
        lambda: DEFAULTS["digits"].alpha,
        "Settings.alpha",
    ),
}


@pytest.mark.parametrize(("name", "old"), ARGUMENTS, ids=str)
def test_old_arguments(name: str, old: str) -> None:
    case = ARGUMENTS[name, old]
    new = RENAMED[name][old]
    assert (list(case.old), list(case.new)) == ([old], [new])
    check(
        lambda: case.function(*case.given, **case.options, **case.old),
        lambda: case.function(*case.given, **case.options, **case.new),
        f"{name}({new}=...)",
    )
    with pytest.raises(TypeError, match=f"{name} got both {new} and {old}, its old name"):
        case.function(*case.given, **case.options, **case.old, **case.new)


def test_every_old_argument_has_a_call() -> None:
    public = {name: olds for name, olds in RENAMED.items() if hasattr(modfast, name.split(".")[0])}
    assert {(name, old) for name, olds in public.items() for old in olds} == ARGUMENTS.keys()


@pytest.mark.parametrize("name", CALLS)
def test_old_ways(name: str) -> None:
    check(*CALLS[name])


def test_figures_of_results() -> None:
    pytest.importorskip("plotly")
    one, two = history(0), history(1)
    check(lambda: plots.history(one), lambda: one.plot(), "result.plot()")
    several = {"a": one, "b": two}
    check(
        lambda: plots.history(several),
        lambda: modfast.History.overlay(several),
        "History.overlay(results)",
    )
    weight = MODEL.fc2.weight.detach()
    check(
        lambda: plots.weight_matrix(weight, CLUSTERS),
        lambda: plots.weight_matrix(weight, CLUSTERS.rows, CLUSTERS.cols),
        "plots.weight_matrix(weight, clusters.rows, clusters.cols)",
    )


def test_weight_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    errors = []
    for name in ("--weight", "--alpha"):
        assert main(["demo", name, "-1"]) == 2
        errors.append(capsys.readouterr().err.splitlines())
    old, new = errors
    assert old == ["modfast: --weight is now --alpha", *new]


def check(old: Callable[[], Any], new: Callable[[], Any], says: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"is now {re.escape(says)}$"):
        found = old()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wanted = new()
    assert_same(found, wanted)


def assert_same(found: Any, wanted: Any) -> None:
    assert type(found) is type(wanted)
    ours, theirs = list(parts(found)), list(parts(wanted))
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        if isinstance(a, Tensor):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        else:
            assert a == b


def parts(value: Any) -> Iterator[Any]:
    """The tensors and plain values in a result."""
    if is_dataclass(value):
        for field in fields(value):
            yield from parts(getattr(value, field.name))
    elif hasattr(value, "items"):
        for key, each in value.items():
            yield key
            yield from parts(each)
    else:
        yield value
