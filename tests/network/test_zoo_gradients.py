"""Gradients with respect to sites, on every model of the zoo."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from network import oracle, trying, zoo
from network.test_zoo import every_model
from network.trying import Refusal, Truth, attempt, close, situation, situations, truth, twice
from torch import Tensor

import modfast
from modfast import compare_tasks, jacobian_mutual_information, task_gradients

some_situations = situations("plain", "changed", "inference")

NO_GRADIENT = {"numpy"}
"""Models through which no gradient flows."""


NO_TRANSFORM = {
    *("a branch on values", "item()", "numpy", "dropout by a flag", "a log of what was seen"),
    *("LSTM", "GRU, two layers, both ways", "an LSTM cell in a loop", "a Function of autograd"),
    *("rows of a buffer written one by one", "weights written to through .data"),
    *("a generator of one's own", "a value in words", "many tensors written to at once"),
    *("gradients inside", "Python's and numpy's random numbers"),
}
"""Models that torch.func may not differentiate."""
CONSTANT = {"mappings as outputs"}
"""Models of which the first site has units that are 0."""


def scores_of(known: Truth) -> Any:
    """What picks `[n, outputs]`: the last token's, where there are logits of tokens."""
    return modfast.last_token if known.logits.dim() == 3 else known.case.output


def plainly(known: Truth) -> Any:
    """The same without modfast."""
    case = known.case
    if known.logits.dim() != 3:
        return case.output
    kept = oracle.counted(case.inputs, known.logits)
    last = (kept * torch.arange(1, kept.shape[1] + 1)).argmax(1)
    return lambda found: oracle.logits_of(found, case.output)[torch.arange(len(last)), last]


def gradient(known: Truth, site: str, task: int) -> Tensor:
    """`[n, features]`."""

    def of(model: Any, inputs: Any) -> Tensor:
        return oracle.gradients(
            model, inputs, site, plainly(known), lambda logits: logits[:, task].sum()
        )

    return known.run((site, "gradient", task), of).flatten(1)


def look_at_tasks(case: zoo.Case, output: Any) -> Any:
    sites = list(case.sites)
    return attempt(case, task_gradients, case.inputs, sites, [0, 2], output=output)


@some_situations
@every_model
def test_task_gradients(name: str, kind: str) -> None:
    known = truth(name, kind)
    with situation(name, kind) as case:
        found = twice(case, kind, partial(look_at_tasks, output=scores_of(known)))
    if isinstance(found, Refusal):
        assert name in NO_GRADIENT, found
        return
    assert name not in NO_GRADIENT
    for site, each in found.items():
        expected = torch.stack([gradient(known, site, task) for task in (0, 2)])
        close(each.gradients, expected, known.slack, f"{site}, gradients")
        close(each.activations, known.site(site).flatten(1), 1e-12, f"{site}, activations")


def look_at_two_tasks(case: zoo.Case, site: str, output: Any, rows: list[slice]) -> Any:
    halves = [trying.rows_of(case.inputs, each) for each in rows]
    return attempt(case, compare_tasks, halves, [site], output=output)


@situations("plain", "changed", "inference", "train")
@every_model
def test_compare_tasks(name: str, kind: str) -> None:
    known = truth(name, kind)
    together = name in ("a branch on values", "item()") or known.case.random or known.case.grows
    if together or not known.case.rows:
        pytest.skip("its samples are no samples of two batches")
    site, n = next(iter(known.case.sites)), len(known.case.targets)
    rows = [slice((n + 1) // 2), slice(n // 2, None)]
    with situation(name, kind) as case:
        look = partial(look_at_two_tasks, site=site, output=scores_of(known), rows=rows)
        found = twice(case, kind, look)
    if isinstance(found, Refusal):
        assert name in NO_GRADIENT, found
        return
    a, b = (gradient(known, site, task)[each].mean(0) for task, each in enumerate(rows))
    expected = torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0)
    assert abs(float(found[site].cosine[0, 1] - expected)) <= max(known.slack, 1e-6)


def look_at_jacobians(case: zoo.Case, site: str) -> Any:
    return attempt(case, jacobian_mutual_information, case.inputs, site, [[0], [1]])


@some_situations
@every_model
def test_jacobian_mutual_information(name: str, kind: str) -> None:
    if name in CONSTANT:
        pytest.skip("some of its units have no information")
    known = truth(name, kind)
    site = next(iter(known.case.sites))
    with situation(name, kind) as case:
        found = twice(case, kind, partial(look_at_jacobians, site=site))
    inputs = known.case.inputs
    if isinstance(found, Refusal):
        real = isinstance(inputs, Tensor) and inputs.is_floating_point()
        assert not real or name in NO_TRANSFORM, found
        return
    rows = [jacobian_row(known, site, unit) for unit in (0, 1)]
    a, b = rows
    correlation = (a * b).sum(1) ** 2 / (a.square().sum(1) * b.square().sum(1))
    expected = (-0.5 * torch.log1p(-correlation)).mean()
    assert abs(float(found[0, 1] - expected)) <= max(known.slack, 1e-8) * (1 + float(expected))


def jacobian_row(known: Truth, site: str, unit: int) -> Tensor:
    """The derivatives of one of a site's values with respect to each sample's own inputs."""
    seen: list[Tensor] = []

    def look(value: Tensor) -> Tensor:
        seen.append(value)
        return value.clone()

    x = known.case.inputs.clone().requires_grad_()
    with torch.enable_grad():
        oracle.run(known.case.model, x, {site: look}, lambda found: found, copies=False)
        (found,) = torch.autograd.grad(seen[0].flatten(1)[:, unit].sum(), x)
    return found.flatten(1).double()
