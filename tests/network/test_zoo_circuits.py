"""Circuits, edges and effective information, on every model of the zoo."""

from __future__ import annotations

import math
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from network import oracle, zoo
from network.test_zoo import every_model
from network.test_zoo_weights import COMPUTED, weight_of
from network.trying import Truth, attempt, close, is_refused, situation, situations, truth, twice
from torch import Tensor, nn

import modfast

REFUSED: dict[str, set[str]] = {
    # The weight is no parameter, or that of another layer too.
    "prune": COMPUTED | {"tied layers", "a module registered twice"},
    # No chain, or calls that depend on values, or inputs that are no floating tensor.
    "edges": {
        "**kwargs",
        "LoRA by peft",
        "a parametrized layer",
        "BERT",
        "GPT-2",
        "GPT-NeoX",
        "GRU, two layers, both ways",
        "LSTM",
        "Llama, grouped queries",
        "LoRA by hand",
        "Mamba",
        "Mixtral",
        "Mixtral, experts in one call, float32",
        "Qwen2",
        "T5",
        "TransformerEncoder",
        "TransformerEncoder with padding",
        "ViT",
        "a Function of autograd",
        "a branch on values",
        "a cache as argument",
        "a compiled part",
        "a layer called again after the site",
        "a list as attribute",
        "a log of what was seen",
        "a loop over one layer",
        "a pruned layer",
        "a scripted part",
        "a static output buffer",
        "a value in words",
        "an LSTM cell in a loop",
        "an optional argument",
        "attention that returns a tuple and no weights",
        "attention that returns its weights",
        "calls of functions",
        "channels last",
        "convolutions and a function as a site",
        "dropout that returns its input in eval mode",
        "features last in four dimensions",
        "float32, with autocast inside",
        "gradients inside",
        "hooks of a user",
        "hooks that take keywords and come first or always",
        "item()",
        "many tensors written to at once",
        "mappings as outputs",
        "numpy",
        "patched forwards",
        "residual, through an Identity that returns its input",
        "rows of a buffer written one by one",
        "sparse inside, an array as attribute",
        "spectral_norm",
        "spectral_norm, by hooks",
        "tied layers",
        "vmap inside",
        "weight_norm",
        "weight_norm, by hooks",
        "writing through a view of the site",
    },
    # Weights of other layers, and of those that are not called, are named; unsupported="skip".
    "wiring": {
        *("LSTM", "GRU, two layers, both ways", "an LSTM cell in a loop", "tied layers"),
        *("TransformerEncoder", "TransformerEncoder with padding", "calls of functions"),
        *("attention that returns its weights", "a scripted part", "a Parameter used as h @ w"),
        *("hooks that take keywords and come first or always", "GPT-2", "GPT-NeoX", "Qwen2"),
        *("Llama, grouped queries", "BERT", "T5", "ViT", "Mixtral", "Mamba"),
        "Mixtral, experts in one call, float32",
    },
    # Noise is one floating tensor of any number of rows.
    "noise": {
        *("tied layers", "**kwargs", "a cache as argument"),
        *("GPT-2", "GPT-NeoX", "Llama, grouped queries", "Qwen2", "BERT", "T5", "Mixtral", "Mamba"),
        *("Mixtral, experts in one call, float32", "a static output buffer"),
    },
}
some_situations = situations("plain", "changed", "inference")
TOGETHER = {"a branch on values", "item()", "a value in words"}
# They are no chains, and have a graph.
GRAPHS = {
    *("a compiled part", "a layer called again after the site"),
    *("residual, through an Identity that returns its input", "mappings as outputs"),
    *("dropout that returns its input in eval mode", "calls of functions"),
    *(
        "TransformerEncoder",
        "TransformerEncoder with padding",
        "attention that returns its weights",
    ),
    *("attention that returns a tuple and no weights", "GPT-2", "GPT-NeoX", "BERT", "T5", "ViT"),
    *("Llama, grouped queries", "Qwen2", "Mixtral, experts in one call, float32"),
}
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
    if known.case.random or known.case.grows:
        pytest.skip("its loss is another in each run")
    if labels is not None and name in TOGETHER:
        pytest.skip("its samples depend on one another")
    look = partial(look_at_circuits, order=visited(known), labels=labels)
    with situation(name, kind) as case:
        found = twice(case, kind, look)
    if is_refused(found, name, REFUSED["prune"], kind):
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
    if known.case.random or known.case.grows or name in TOGETHER:
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
        self.other = {layer: self._call(layer, corrupted) for layer in layers}
        self.removed = {layer: torch.zeros_like(w) for layer, (_, w) in self.other.items()}

    @torch.no_grad()
    def _call(self, layer: str, inputs: Any) -> tuple[Tensor, Tensor]:
        """What the layer's linear call is given."""
        case = self.known.case
        with oracle.Weights(case.model, layer) as seen:
            oracle.run(case.model, inputs, None, case.output)
        return seen.given[0], seen.seen[0]

    @torch.no_grad()
    def loss(self) -> float:
        """The mean cross-entropy with the removed edges."""
        case = self.known.case

        def carried(layer: str, x: Tensor, weight: Tensor) -> Tensor:
            return (self.other[layer][0] - x) @ (self.removed[layer] * weight).T

        with ExitStack() as stack:
            for layer in self.layers:
                more = partial(carried, layer)
                stack.enter_context(oracle.Weights(case.model, layer, more=more))
            logits = oracle.run(case.model, case.inputs, None, case.output)
        return float(oracle.losses(logits, case.targets).mean())


def other_inputs(inputs: Any) -> Any:
    return inputs.flip(0) * 0.5 if isinstance(inputs, Tensor) else inputs


def is_chain(scores: modfast.EdgeScores) -> bool:
    return list(scores.scores) == list(pairwise(scores.nodes))


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
    if known.case.random or known.case.grows:
        pytest.skip("each run is another")
    with situation(name, kind) as case:
        scores, circuit = twice(case, kind, look_at_edges)
    if isinstance(scores, modfast.EdgeScores) and not is_chain(scores):
        assert name in GRAPHS
        assert circuit.masks.keys() == scores.scores.keys()
        assert all(bool(each.isfinite().all()) for each in scores.scores.values())
        return  # tests/circuits has their numbers
    assert name not in GRAPHS or kind == "changed"
    if is_refused(scores, name, REFUSED["edges"], kind):
        assert is_refused(circuit, name, REFUSED["edges"], kind)
        return
    layers = [receiver for _, receiver in scores.scores]
    modules = dict(known.case.model.named_modules())
    if any(getattr(modules.get(layer), "weight", torch.ones(1)).dim() != 2 for layer in layers):
        return  # tests/circuits has those of convolutions
    if known.case.dtype != torch.float64:
        return  # where edges hardly differ, either may go
    edges = Edges(known, layers, other_inputs(known.case.inputs))
    base = edges.loss()
    for layer, found in zip(layers, scores.scores.values(), strict=True):
        for r, s in [(0, 0), (1, 2), (2, 1)]:
            edges.removed[layer][r, s] = 1
            assert abs(float(found[s, r]) - (edges.loss() - base)) <= known.slack, (layer, s, r)
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
    first = inputs[0] if isinstance(inputs, tuple) else inputs
    return tuple(first.shape[1:]) if isinstance(first, Tensor) else 5


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
    # Without its adapters, whose weights then are not called.
    more = {"LoRA by peft"} if kind == "changed" else set()
    if is_refused(found, name, REFUSED["wiring"] | more, kind):
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
    if known.case.grows:
        pytest.skip("each run is another")
    with situation(name, kind) as case:
        found = twice(case, kind, partial(look_at_noise, output=case.output))
    expected: Any = None
    for i, each in enumerate(found):
        if is_refused(each, name, REFUSED["noise"], kind):
            continue
        if expected is None:
            inputs = known.case.inputs
            plain = zoo.Case(Opaque(known), inputs, {}, known.case.targets)
            with situation(name, kind):  # for the same random state
                expected = look_at_noise(plain, None)
        bits = expected[i].bits
        assert abs(each.bits - bits) <= max(known.slack, 1e-9) * (1 + bits)
