"""Functions of weights and training, on every model of the zoo."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from network import oracle, trying, zoo
from network.snapshot import Snapshot
from network.test_zoo import every_model
from network.trying import Truth, attempt, close, is_refused, situation, situations, truth, twice
from network.zoo_case import same_numbers
from torch import Tensor, nn
from torch.nn import functional as F

import modfast
from modfast import ClusterabilityLoss, Clusters, Modularity

COMPUTED = {
    *("weight_norm, by hooks", "weight_norm", "spectral_norm, by hooks", "spectral_norm"),
    *("a pruned layer", "a parametrized layer"),
}
"""The layer's weight is no parameter."""
FROZEN = {"LoRA by hand", "LoRA by peft"}
REFUSED: dict[str, set[str]] = {
    # Another weight cannot stand in for one that each pass writes to.
    "clusters": {"weights written to through .data"},
    "loss": set(),
    # A tied weight has its first name among the parameters.
    "optimizer": COMPUTED | FROZEN | {"tied layers"},
    "fit": set(),
    # The layers before and after it, as registered, are no neighbors of it.
    "reduction": {"attention that returns a tuple and no weights", "Qwen2", "Mamba"},
}
UNTRAINABLE = {"numpy", "a static output buffer"}
some_situations = situations("plain", "changed", "train")


def blocks(n: int, k: int = 2) -> Tensor:
    return torch.arange(n) * k // n


def weight_of(known: Truth) -> Tensor:
    """The weight that the case's layer computes with, as a part of the graph."""
    case = known.case
    assert case.layer is not None
    with oracle.Weights(case.model, case.layer) as seen, same_numbers():
        oracle.run(case.model, case.inputs, None, lambda found: found)
    return seen.seen[0]


def clusterability(weight: Tensor) -> Tensor:
    """Two equal clusters of consecutive units."""
    squares = (
        weight.double().square().flatten(2).sum(2) if weight.dim() > 2 else weight.double() ** 2
    )
    same = blocks(len(squares))[:, None] == blocks(squares.shape[1])
    return squares[same].sum() / squares.sum()


def score(known: Truth, logits: Tensor, targets: Tensor) -> Tensor:
    """R^2, the mean over outputs; or the accuracy."""
    logits = logits.double()
    if not targets.is_floating_point():
        kept = oracle.counted(known.case.inputs, logits, targets)
        return (logits.argmax(-1) == targets)[kept].double().mean()
    spread = (targets - targets.mean(0)).square().sum(0)
    return (1 - (targets - logits).square().sum(0) / spread).mean()


def real_targets(known: Truth) -> Tensor:
    """Near the model's outputs, so that what little changes shows; classes for tokens."""
    if known.logits.dim() > 2:
        return known.case.targets
    noise = torch.arange(known.logits.numel()).sin().reshape(known.logits.shape)
    return known.logits.double() * 0.9 + noise * known.logits.double().std()


def look_at_clusters(case: zoo.Case, targets: Tensor, shape: tuple[int, int]) -> Any:
    clusters = Clusters(blocks(shape[0]), blocks(shape[1]))
    data = case.inputs, targets
    return attempt(case, modfast.evaluate_clusters, data, case.layer, clusters, output=case.output)


@some_situations
@every_model
def test_evaluate_clusters(name: str, kind: str) -> None:
    known, case = truth(name, kind), truth(name, kind).case
    targets, weight = real_targets(known), weight_of(known)
    first = type(case.model.get_submodule(case.layer)).__name__ == "Conv1D"
    n_in, n_out = weight.shape[:2] if first else reversed(weight.shape[:2])
    with situation(name, kind) as mine:
        look = partial(look_at_clusters, targets=targets, shape=(n_out, n_in))
        found = twice(mine, kind, look)
    if is_refused(found, name, REFUSED["clusters"], kind):
        return

    def without(keep: Callable[[Tensor], Tensor]) -> Tensor:
        rows, cols = (keep(blocks(n)) for n in weight.shape[:2])
        mask = (rows[:, None] & cols).reshape(*weight.shape[:2], *[1] * (weight.dim() - 2))
        other = known.new() if case.grows else case
        masked = oracle.Weights(other.model, other.layer, lambda w: w * mask)
        with same_numbers(), masked:
            return score(known, oracle.run(other.model, other.inputs, None, other.output), targets)

    with torch.no_grad():
        off = torch.stack([without(lambda labels, c=c: labels != c) for c in (0, 1)])
        on = torch.stack([without(lambda labels, c=c: labels == c) for c in (0, 1)])
    slack = max(known.slack, 1e-9)
    close(found.accuracy, score(known, known.logits, targets), slack, "whole")
    close(found.off_accuracy, off, slack, "off")
    close(found.on_accuracy, on, slack, "on")


@some_situations
@every_model
def test_clusterability_loss(name: str, kind: str) -> None:
    known = truth(name, kind)
    if known.case.grows:
        pytest.skip("its weights are others in each pass")
    parameters = dict(known.case.model.named_parameters())
    expected = -3 * clusterability(weight_of(known))
    if expected.requires_grad:  # not of a frozen layer
        gradients = torch.autograd.grad(expected, list(parameters.values()), allow_unused=True)
    with situation(name, kind) as case, torch.inference_mode(False):
        regularizer = attempt(case, ClusterabilityLoss, case.layer, n_clusters=2, alpha=3.0)
        if is_refused(regularizer, name, REFUSED["loss"], kind):
            return
        if kind == "changed":
            regularizer()
            case.change(case)
        before = Snapshot(case.model)
        found = regularizer()
        assert before.changes(case.model) == []
        assert found.requires_grad == expected.requires_grad
        if found.requires_grad:
            found.backward()
    close(found, expected, max(known.slack, 1e-9))
    if not expected.requires_grad:
        return
    for (key, mine), wanted in zip(case.model.named_parameters(), gradients, strict=True):
        if wanted is None or not mine.requires_grad:
            assert mine.grad is None or not mine.grad.any(), key
        else:
            close(mine.grad, wanted, max(known.slack, 1e-9), key)


def classes_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


def step(case: zoo.Case, optimizer: torch.optim.Optimizer, extra: Callable[[], Tensor]) -> None:
    """One step on all samples."""
    found = oracle.call(case.model, copy.deepcopy(case.inputs))
    logits = oracle.logits_of(found, case.output)
    rows = oracle.counted(case.inputs, logits, case.targets).flatten()
    loss = classes_loss(logits.flatten(0, -2)[rows], case.targets.flatten()[rows])
    optimizer.zero_grad()
    (loss + extra()).backward()
    optimizer.step()


def assert_parameters(case: zoo.Case, other: zoo.Case, slack: float) -> None:
    theirs = dict(other.model.named_parameters())
    for key, mine in case.model.named_parameters():
        close(mine, theirs[key], slack, key)


def has_dropout(model: nn.Module) -> bool:
    return any(isinstance(m, nn.Dropout) and m.p > 0 for m in model.modules())


@every_model
def test_modularity_steps(name: str) -> None:
    case, other = zoo.build(name), zoo.build(name)
    if name in UNTRAINABLE or case.random or case.grows:
        pytest.skip("no gradient flows through the model, or each step is another")
    wrapper = "_orig_mod." if hasattr(case.model, "_orig_mod") else ""
    key = f"{wrapper}{case.layer}.weight"
    options = {"lr": 0.1, "n_clusters": 2, "alpha": 3.0, "layers": [key]}
    try:
        optimizer: Any = Modularity(case.model.named_parameters(), **options)
    except (TypeError, ValueError) as error:
        optimizer = trying.Refusal(error)
    if is_refused(optimizer, name, REFUSED["optimizer"]):
        return
    weight = dict(other.model.named_parameters())[key]
    plain = torch.optim.SGD(other.model.parameters(), lr=0.1)
    for _ in range(2):
        step(case, optimizer, lambda: torch.zeros(()))
        step(other, plain, lambda: -3.0 * clusterability(weight))
    assert_parameters(case, other, trying.SLACK[case.dtype])


@every_model
def test_fit(name: str) -> None:
    case, other = zoo.build(name), zoo.build(name)
    if name in UNTRAINABLE or case.random or case.grows or has_dropout(case.model):
        pytest.skip("no gradient flows through the model, or each step is another")
    given = case.inputs, case.targets
    before = Snapshot(case.model, given)
    options = {"output": case.output, "batch_size": 6, "seed": 0, "progress": False}
    try:
        found: Any = modfast.fit(
            case.model,
            given,
            epochs=1,
            optimizer=lambda named: torch.optim.SGD([p for _, p in named], lr=0.1),
            **options,
        )
    except (TypeError, ValueError) as error:
        found = trying.Refusal(error)
        assert before.changes(case.model, given) == []
    if is_refused(found, name, REFUSED["fit"]):
        return
    other.model.train()
    step(other, torch.optim.SGD(other.model.parameters(), lr=0.1), lambda: torch.zeros(()))
    assert not case.model.training
    assert_parameters(case, other, trying.SLACK[case.dtype])


@every_model
def test_search_space_reduction(name: str) -> None:
    case = zoo.build(name)
    weight = weight_of(truth(name, "plain"))
    first = type(case.model.get_submodule(case.layer)).__name__ == "Conv1D"
    n_in, n_out = weight.shape[:2] if first else reversed(weight.shape[:2])
    clusters = Clusters(blocks(n_out), blocks(n_in))
    found = attempt(case, modfast.search_space_reduction, clusters, layer=case.layer)
    if is_refused(found, name, REFUSED["reduction"]):
        return
    sizes = [
        (key, module.weight.numel())
        for key, module in getattr(case.model, "_orig_mod", case.model).named_modules()
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d))
        or type(module).__name__ == "Conv1D"
    ]
    at = [key for key, _ in sizes].index(case.layer)
    gone = 0.75 * sizes[at][1]
    gone += sum(0.5 * n for _, n in sizes[max(at - 1, 0) : at] + sizes[at + 1 : at + 2])
    assert abs(found - gone / sum(n for _, n in sizes)) < 1e-12
