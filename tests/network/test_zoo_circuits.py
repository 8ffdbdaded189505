"""Circuits, edges and effective information, on every model of the zoo."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from network import oracle, zoo
from network.test_zoo import every_model
from network.test_zoo_weights import weight_of
from network.trying import Truth, attempt, close, is_refused, situation, truth, twice
from torch import Tensor, nn

import modfast

REFUSED: dict[str, set[str]] = {
    "prune": set(),
    "edges": set(),
    "wiring": set(),
    "noise": set(),
}
some_situations = pytest.mark.parametrize("kind", ["plain", "changed", "inference", "train"])
VISITS = 10
THRESHOLD = 1e-3


def visited(known: Truth) -> Tensor:
    """Which weights are tried, and in what order."""
    n = weight_of(known).numel()
    return torch.randperm(n, generator=torch.Generator().manual_seed(1))[:VISITS]


def mean_loss(known: Truth, rows: Tensor) -> float:
    case = known.case
    logits = oracle.run(case.model, case.inputs, None, case.output)
    return float(oracle.losses(logits, case.targets)[rows].mean())


def pruned(known: Truth, rows: Tensor) -> tuple[Tensor, list[float]]:
    """Which weights stay, and the loss before and after each visit."""
    case = known.case
    mask = torch.ones(weight_of(known).shape)
    flat = mask.view(-1)
    with torch.no_grad(), oracle.Weights(case.model, case.layer, lambda w: w * mask.to(w.dtype)):
        path = [mean_loss(known, rows)]
        for i in visited(known).tolist():
            flat[i] = 0
            loss = mean_loss(known, rows)
            if loss - path[-1] > THRESHOLD:
                flat[i], loss = 1, path[-1]
            path.append(loss)
    return mask.bool(), path


def look_at_circuits(case: zoo.Case, order: Tensor, labels: int | None) -> Any:
    given = case.inputs, case.targets
    more = {"layers": case.layer, "order": order, "threshold": THRESHOLD, "labels": labels}
    return attempt(case, modfast.prune_circuit, *given, output=case.output, **more)


@pytest.mark.parametrize("labels", [None, 1])
@some_situations
@every_model
def test_prune_circuit(name: str, kind: str, labels: int | None) -> None:
    known = truth(name, kind)
    if known.case.random:
        pytest.skip("its loss is another in each run")
    look = partial(look_at_circuits, order=visited(known), labels=labels)
    with situation(name, kind) as case:
        found = twice(case, kind, look)
    if is_refused(found, name, REFUSED["prune"]):
        return
    rows = oracle.counted(known.case.inputs, known.logits, known.case.targets)
    if labels is not None:
        rows &= known.case.targets == labels
    mask, path = pruned(known, rows)
    path = torch.tensor(path, dtype=torch.float64)
    close(found.original_loss, path[0], max(known.slack, 1e-9), "loss before")
    close(found.loss_path, path[1:], max(known.slack, 1e-9), "loss")
    assert torch.equal(next(iter(found.mask.values())), mask)


def look_at_sizes(case: zoo.Case, order: Tensor) -> Any:
    given = case.inputs, case.targets
    more = {"layers": case.layer, "order": order, "thresholds": [THRESHOLD], "labels": [1]}
    return attempt(case, modfast.effective_circuit_size, *given, output=case.output, **more)


@every_model
def test_effective_circuit_size(name: str) -> None:
    known = truth(name, "plain")
    if known.case.random:
        pytest.skip("its loss is another in each run")
    with situation(name, "plain") as case:
        found = look_at_sizes(case, visited(known))
    if is_refused(found, name, REFUSED["prune"]):
        return
    rows = oracle.counted(known.case.inputs, known.logits, known.case.targets)
    mask, _ = pruned(known, rows & (known.case.targets == 1))
    assert found.kept.flatten().tolist() == [int(mask.sum())]


class Edges:
    """A chain of linear layers, of which some edges carry what they carry on other inputs."""

    def __init__(self, known: Truth, layers: list[str], corrupted: Any) -> None:
        self.known, self.layers = known, layers
        case = known.case
        self.weights = {}
        for layer in layers:
            with torch.no_grad(), oracle.Weights(case.model, layer) as seen:
                oracle.run(case.model, case.inputs, None, case.output)
            self.weights[layer] = seen.seen[0]
        self.other = {
            layer: oracle.activations(case.model, corrupted, f"{layer}:input") for layer in layers
        }
        self.removed = {layer: torch.zeros(self.weights[layer].shape) for layer in layers}

    @torch.no_grad()
    def loss(self) -> float:
        """The mean cross-entropy with the removed edges."""
        case, now = self.known.case, dict[str, Tensor]()
        sites: dict[str, oracle.Change] = {}
        for layer in self.layers:
            sites[f"{layer}:input"] = partial(now.setdefault, layer)

            def carry(z: Tensor, layer: str = layer) -> Tensor:
                change = self.other[layer] - now[layer]
                return z + change @ (self.removed[layer] * self.weights[layer]).T

            sites[layer] = carry
        logits = oracle.run(case.model, case.inputs, sites, case.output)
        return float(oracle.losses(logits, case.targets).mean())


def other_inputs(inputs: Any) -> Any:
    return inputs.flip(0) * 0.5 if isinstance(inputs, Tensor) else inputs


def look_at_edges(case: zoo.Case) -> Any:
    other = other_inputs(case.inputs)
    more = {"method": "exact", "progress": False, "output": case.output}
    found = attempt(case, modfast.attribute_edges, case.inputs, other, case.targets, **more)
    more = {"progress": False, "output": case.output}
    circuit = modfast.discover_circuit
    return found, attempt(case, circuit, case.inputs, other, 1e-3, case.targets, **more)


@some_situations
@every_model
def test_edges(name: str, kind: str) -> None:
    known = truth(name, kind)
    with situation(name, kind) as case:
        scores, circuit = twice(case, kind, look_at_edges)
    if is_refused(scores, name, REFUSED["edges"]):
        assert is_refused(circuit, name, REFUSED["edges"])
        return
    layers = [receiver for _, receiver in scores.scores]
    edges = Edges(known, layers, other_inputs(known.case.inputs))
    base = edges.loss()
    for layer, found in zip(layers, scores.scores.values(), strict=True):
        for r, s in [(0, 0), (1, 2), (2, 1)]:
            edges.removed[layer][r, s] = 1
            assert abs(float(found[s, r]) - (edges.loss() - base)) <= 1e-9, (layer, s, r)
            edges.removed[layer][r, s] = 0
    value = base
    for layer in reversed(layers):
        removed = edges.removed[layer]
        for r in range(removed.shape[0]):
            for s in range(removed.shape[1]):
                removed[r, s] = 1
                without = edges.loss()
                if without - value < 1e-3:
                    value = without
                else:
                    removed[r, s] = 0
    for layer, kept in zip(layers, circuit.masks.values(), strict=True):
        assert torch.equal(kept, edges.removed[layer].T == 0), layer


def shape_of(inputs: Any) -> Any:
    return tuple(inputs.shape[1:]) if isinstance(inputs, Tensor) else 5


def entropy(p: Tensor) -> Tensor:
    return -torch.special.xlogy(p, p).sum(-1) / math.log(2)


def look_at_wiring(case: zoo.Case) -> Any:
    return attempt(case, modfast.effective_information, inputs=case.inputs)


@some_situations
@every_model
def test_effective_information(name: str, kind: str) -> None:
    known = truth(name, kind)
    with situation(name, kind) as case:
        found = twice(case, kind, look_at_wiring)
    if is_refused(found, name, REFUSED["wiring"]):
        return
    inputs = known.case.inputs
    wide = isinstance(inputs, Tensor) and inputs.dim() > 2
    if wide or any(layer.kind != "Linear" for layer in found.layers):
        return  # tests/effective has the dense matrices of these
    rows, into = [], []
    for layer in found.layers:
        with torch.no_grad(), oracle.Weights(known.case.model, layer.name) as seen:
            oracle.run(known.case.model, known.case.inputs, None, lambda output: output)
        wiring = seen.seen[0].double().T.clamp(min=0)
        total = wiring.sum(1, keepdim=True)
        wiring = torch.where(total > 0, wiring / total, 0.0)
        rows.append(entropy(wiring))
        into.append(wiring.sum(0))
    determinism, shares = torch.cat(rows).mean(), torch.cat(into)
    degeneracy = entropy(shares / shares.sum())
    close(torch.tensor(found.determinism, dtype=torch.float64), determinism, 1e-9, "determinism")
    close(torch.tensor(found.degeneracy, dtype=torch.float64), degeneracy, 1e-9, "degeneracy")


class Opaque(nn.Module):
    """The same function of its input, of which nothing can be seen."""

    def __init__(self, known: Truth) -> None:
        super().__init__()
        self.known = [known]
        self.one = nn.Parameter(next(known.case.model.parameters()).detach()[:1].clone())

    def forward(self, x: Tensor) -> Tensor:
        case = self.known[0].case
        return oracle.run(case.model, x, None, case.output, copies=False)


def look_at_noise(case: zoo.Case, output: Any) -> Any:
    more = {"seed": 3, "samples": 64, "bins": 4, "tolerance": None, "output": output}
    given = shape_of(case.inputs)
    return (
        attempt(case, modfast.perturbational_ei, given, **more),
        attempt(case, modfast.sensitivity, given, **more),
    )


@some_situations
@every_model
def test_information_by_perturbation(name: str, kind: str) -> None:
    known = truth(name, kind)
    with situation(name, kind) as case:
        found = twice(case, kind, partial(look_at_noise, output=case.output))
    expected: Any = None
    for i, each in enumerate(found):
        if is_refused(each, name, REFUSED["noise"]):
            continue
        if expected is None:
            inputs = known.case.inputs
            plain = zoo.Case(Opaque(known), inputs, {}, known.case.targets)
            with situation(name, kind):  # for the same random state
                expected = look_at_noise(plain, None)
        bits = expected[i].bits
        assert abs(each.bits - bits) <= max(known.slack, 1e-9) * (1 + bits)
