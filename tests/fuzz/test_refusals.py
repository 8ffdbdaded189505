"""Calls that once ended in an internal error, or not at all: each names the argument now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from fuzz import calls, judge, odd_models, valid, valid_models, valid_ops  # noqa: F401  (they fill the table)
from fuzz.mutations import LAYOUTS
from torch import nn

import modfast


def _without_width() -> nn.Module:
    return odd_models.ODD["a width of zero"]()


def _wrong_state() -> Any:
    histogram = valid.histogram()
    state = histogram.state_dict()
    state["counts"][0, 0] = -1
    return histogram.load_state_dict(state)


def _data(*shape: int) -> dict[str, Any]:
    return {"inputs": torch.randn(8, 5), "targets": torch.zeros(shape, dtype=torch.int64)}


PAIR = torch.linspace(-1, 1, 40).reshape(8, 5), torch.arange(8) % 3
LINE = torch.linspace(0, 1, 8)[:, None]
CASES: dict[str, tuple[str, Callable[[], Any]]] = {
    "a width of zero, effective information": (
        "model|inputs|input_shape|layer|weight|fc1",
        lambda: modfast.effective_information(_without_width(), 5),
    ),
    "a width of zero, edges": (
        "model|clean|fc1",
        lambda: modfast.attribute_edges(
            _without_width(), torch.randn(4, 5), torch.randn(4, 5), torch.zeros(4).long()
        ),
    ),
    "fit on a list of numbers": ("train", lambda: modfast.fit(valid_models.net(), [99], 1)),
    "per_sample is a string": (
        "per_sample",
        lambda: modfast.ablate_units(valid_models.net(), torch.randn(8, 5), "act2", per_sample="a"),
    ),
    "layers of numbers": (
        "layers",
        lambda: modfast.Modularity(valid_models.net().named_parameters(), layers=[0]),
    ),
    "a task that there is not": (
        "a",
        lambda: modfast.TaskComparison((valid.distinct(),), torch.rand(1, 5)).similarity(9, 0),
    ),
    "uint64 labels above int64": (
        "rows",
        lambda: modfast.Clusters(torch.tensor([2**63], dtype=torch.uint64), [0]),
    ),
    "2**64 outputs": ("n_out", lambda: modfast.Clusters.equal(2**64, 4, 2)),
    "10**1000 inputs": ("n_in", lambda: modfast.Clusters.equal(4, 10**1000, 2)),
    "no device": ("device", lambda: valid.clusters().to("mean")),
    "several networks": ("index", lambda: valid_models.study().model([0, 1])),  # type: ignore[arg-type]
    "negative counts": ("state", _wrong_state),
    "a seed where it is not used": (
        "seed",
        lambda: modfast.mutual_information(LINE, LINE, 4, seed="abc"),  # type: ignore[arg-type]
    ),
    "targets of too many dimensions": (
        "targets",
        lambda: modfast.ablate_units(
            valid_models.net(), torch.randn(8, 5), "act2", targets=torch.zeros(1, 1, 1, 8).long()
        ),
    ),
    "a matrix of 8 GiB": (
        "input_shape|max_memory",
        lambda: modfast.connectivity_matrix(nn.AvgPool1d(2), (1, 2**31)),
    ),
    "beyond float32": (
        "fixed",
        lambda: modfast.data.physics_grids(2, fixed=1e308),
    ),
    "an optimizer's maker that makes none": (
        "optimizer",
        lambda: modfast.fit(valid_models.net(), PAIR, 1, optimizer=lambda _: None),  # type: ignore[arg-type,return-value]
    ),
    "a regularizer without a term": (
        "regularizer",
        lambda: modfast.fit(valid_models.net(), PAIR, 1, regularizer=lambda: None),  # type: ignore[arg-type,return-value]
    ),
    "complex targets": (
        "train",
        lambda: modfast.fit(valid_models.net(), (PAIR[0], torch.ones(8) * 1j), 1),
    ),
    "nested targets": (
        "train",
        lambda: modfast.fit(valid_models.net(), (PAIR[0], LAYOUTS["nested"](torch.eye(8))), 1),
    ),
    "an array of words": (
        "y",
        lambda: modfast.gaussian_mutual_information(PAIR[0], np.array(["a"])),  # type: ignore[arg-type]
    ),
    "an array in place of a choice": (
        "pairing",
        lambda: modfast.joint_entropy(LINE, LINE, pairing=np.array([1, 2])),  # type: ignore[arg-type]
    ),
    "an array in place of an estimator": (
        "estimator",
        lambda: modfast.total_correlation(PAIR[0], [0, 1, 2, 3, 4], np.array([1, 2])),  # type: ignore[arg-type]
    ),
    "an array in place of a metric": (
        "metric",
        lambda: modfast.attribute_edges(
            valid_models.net(),
            PAIR[0],
            PAIR[0].flip(0),
            PAIR[1],
            metric=np.array([1, 2]),  # type: ignore[arg-type]
        ),
    ),
    "one seed in a tensor": (
        "seeds",
        lambda: modfast.calibrate(samples=[20], dims=[1], seeds=torch.tensor(2)),  # type: ignore[arg-type]
    ),
    "sparse samples": (
        "data",
        lambda: modfast.max_activating(valid_models.net(), PAIR[0].to_sparse_csr(), "act1", 2),
    ),
    "a scripted model": (
        "model",
        lambda: modfast.sensitivity(torch.jit.script(nn.Linear(2, 2)), 2),
    ),
    "a number of tasks": (
        "tasks",
        lambda: modfast.compare_tasks(valid_models.net(), [PAIR[0]] * 2, "act1", tasks=2),  # type: ignore[arg-type]
    ),
    "a number in place of activations": (
        "activations_by_task",
        lambda: modfast.variance_explained(torch.eye(2), torch.tensor(2.0)),
    ),
    "samples of nothing": ("inputs", lambda: valid.top().plot([[], [], [], []])),
    "many clusters of few units": (
        "keep",
        lambda: modfast.search_space_reduction(
            valid_models.net(),
            modfast.Clusters([0] * 6, [0] * 5, 2**31),
            2**31 + 1,
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_argument_is_named(name: str) -> None:
    pattern, call = CASES[name]
    with judge.limits(), pytest.raises((ValueError, TypeError), match=rf"\b({pattern})\b"):
        call()


def test_a_connectivity_matrix_takes_no_memory_first() -> None:
    with judge.limits(), pytest.raises(ValueError, match="input_shape|max_memory"):
        modfast.connectivity_matrix(nn.Linear(2, 2), 2**31)


SHAPE_ALONE = {
    *("models.MLP.forward", "clusters.is_sharded", "clusters.equal_clusters"),
    *("clusters.fit_labels", "information.Binning.bounds_for"),
}
NAMES = [
    (name, argument)
    for name, build in calls.BUILDERS.items()
    for argument, value in build().arguments.items()
    if isinstance(value, torch.Tensor) and argument != "self" and argument[0] != "*"
    if name not in SHAPE_ALONE
]
ODD_LAYOUTS = ("sparse COO", "sparse CSR", "mkldnn", "quantized", "nested", "jagged", "meta")


@pytest.mark.parametrize(("name", "argument"), NAMES)
def test_odd_layouts_are_refused(name: str, argument: str) -> None:
    for layout in ODD_LAYOUTS:
        call = calls.BUILDERS[name]()
        try:
            call.arguments[argument] = LAYOUTS[layout](call.arguments[argument])
        except (RuntimeError, NotImplementedError, TypeError, IndexError):
            continue  # no such tensor of this dtype or shape
        assert judge.judge(call, {argument: False}) == "refused", layout


FLAGS = [
    (name, argument)
    for name, build in calls.BUILDERS.items()
    for argument, value in build().arguments.items()
    # What would be shown may be so little that it is not looked at.
    if isinstance(value, bool) and argument != "progress" and argument[0] != "*"
]


@pytest.mark.parametrize(("name", "argument"), FLAGS)
def test_flags_must_be_flags(name: str, argument: str) -> None:
    for wrong in (1, "no", torch.eye(2).to_sparse()):
        call = calls.BUILDERS[name]()
        call.arguments[argument] = wrong
        assert judge.judge(call, {argument: False}) == "refused", wrong
