"""Circuits of networks that are no chains: runs of some edges alone, and ACDC."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from circuits.tiny import metric, tiny
from torch import Tensor, nn

import modfast
from modfast import EdgeCircuit, attribute_edges, discover_circuit

KINDS = ("gpt2", "neox", "llama", "bert", "vit")


def circuit_of(scores: modfast.EdgeScores, masks: dict[tuple[str, str], Tensor]) -> EdgeCircuit:
    return EdgeCircuit(masks, scores.nodes, intervention=scores.intervention)


def logits_of(model: nn.Module, inputs: Any) -> Tensor:
    with torch.no_grad():
        found = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return found if isinstance(found, Tensor) else found.logits


@pytest.mark.parametrize("kind", KINDS)
def test_all_edges_none_and_all_but_one(kind: str) -> None:
    case = tiny(kind)
    inputs = case.model, case.clean, case.corrupted
    exact = attribute_edges(*inputs, method="exact", metric=metric, nodes="heads")

    def run(masks: dict[tuple[str, str], Tensor]) -> Tensor:
        return circuit_of(exact, masks).logits(*inputs)

    every = {pair: torch.ones(x.shape, dtype=torch.bool) for pair, x in exact.scores.items()}
    torch.testing.assert_close(run(every), logits_of(case.model, case.clean))
    none = {pair: ~x for pair, x in every.items()}
    torch.testing.assert_close(run(none), logits_of(case.model, case.corrupted))
    for pair, scores in list(exact.scores.items())[::3]:
        mask = every[pair].clone()
        mask[-1, -1] = False
        rise = float(metric(run({**every, pair: mask})).mean()) - exact.value
        assert rise == pytest.approx(float(scores[-1, -1]), abs=1e-10)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        sizes = ((4, 6), (6, 4), (4, 5), (5, 4), (4, 3))
        self.up1, self.down1, self.up2, self.down2, self.head = (nn.Linear(*x) for x in sizes)
        self.act1, self.act2 = nn.ReLU(), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.down1(self.act1(self.up1(x)))
        return self.head(x + self.down2(self.act2(self.up2(x))))

    def by_hand(self, clean: Tensor, other: Tensor, kept: dict[tuple[str, str], bool]) -> Tensor:
        """With each edge's own input, of the clean or of the other run."""

        def pick(sender: str, receiver: str, own: Tensor, instead: Tensor) -> Tensor:
            return own if kept[sender, receiver] else instead

        other1 = self.down1(self.act1(self.up1(other)))
        other2 = self.down2(self.act2(self.up2(other + other1)))
        first = self.down1(self.act1(self.up1(pick("input", "act1", clean, other))))
        second = self.down2(self.act2(self.up2(
            pick("input", "act2", clean, other) + pick("act1", "act2", first, other1)
        )))  # fmt: skip
        return self.head(
            pick("input", "logits", clean, other)
            + pick("act1", "logits", first, other1)
            + pick("act2", "logits", second, other2)
        )


def two() -> tuple[Two, Tensor, Tensor]:
    torch.manual_seed(0)
    return Two().double(), *torch.randn(2, 7, 4, dtype=torch.float64)


def test_every_circuit_of_a_small_network_by_hand() -> None:
    model, clean, corrupted = two()
    scores = attribute_edges(model, clean, corrupted, metric=metric)
    pairs = list(scores.scores)
    assert len(pairs) == 6
    for number in range(2**6):
        kept = {pair: bool(number >> i & 1) for i, pair in enumerate(pairs)}
        masks = {pair: torch.tensor([[each]]) for pair, each in kept.items()}
        found = circuit_of(scores, masks).logits(model, clean, corrupted)
        torch.testing.assert_close(found, model.by_hand(clean, corrupted, kept).detach())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
def test_acdc_is_one_edge_after_the_other(kind: str) -> None:
    """Each decision by a whole run of the circuit, from the logits back to the input."""
    case = tiny(kind)
    inputs = case.model, case.clean, case.corrupted
    scores = attribute_edges(*inputs, method="exact", metric="kl", nodes="heads")
    sizes = torch.cat([x.flatten() for x in scores.scores.values()]).abs()
    threshold = float(sizes.median())
    found = discover_circuit(*inputs, threshold, nodes="heads", progress=False)
    assert 0 < found.n_edges < found.n_total
    masks = {pair: torch.ones(x.shape, dtype=torch.bool) for pair, x in scores.scores.items()}

    def value() -> float:
        return circuit_of(scores, masks).evaluate(*inputs).kl

    now = value()
    ends = list(dict.fromkeys(receiver for _, receiver in masks))
    nodes = list(dict.fromkeys(end.rpartition(".")[0] if end[-2:] in (".q", ".k", ".v") else end
                               for end in ends))  # fmt: skip
    for node in reversed(nodes):
        for end in [x for x in ends if x in (node, f"{node}.q", f"{node}.k", f"{node}.v")]:
            into = [(pair, mask) for pair, mask in masks.items() if pair[1] == end]
            for j in range(into[0][1].shape[1]):
                for _, mask in into:
                    for i in range(mask.shape[0]):
                        mask[i, j] = False
                        without = value()
                        if without - now < threshold:
                            now = without
                        else:
                            mask[i, j] = True
    for pair, mask in masks.items():
        assert torch.equal(mask, found.masks[pair]), pair


def test_circuits_of_scores_are_kept_and_evaluated(tmp_path: Any) -> None:
    case = tiny("gpt2")
    inputs = case.model, case.clean, case.corrupted
    targets = torch.randint(0, 20, (3, 5))
    scores = attribute_edges(*inputs, targets, nodes="heads")
    circuit = scores.circuit(20, prune=False)
    assert (circuit.n_edges, circuit.n_total) == (20, 46)
    measured = circuit.evaluate(*inputs, targets)
    assert measured.corrupted_kl > 0
    assert measured.whole_loss == pytest.approx(scores.value)
    circuit.save(tmp_path / "circuit.safetensors")
    again = EdgeCircuit.load(tmp_path / "circuit.safetensors")
    assert again.evaluate(*inputs, targets).to_dict() == measured.to_dict()
    every = scores.circuit(46).evaluate(*inputs, targets)
    assert every.faithfulness == pytest.approx(1)
    assert every.loss == pytest.approx(scores.value)
    with pytest.raises(ValueError, match="no such node"):
        circuit.evaluate(*two())
    model, clean, _ = two()
    zero = attribute_edges(model, clean, None, intervention="zero", metric=metric).circuit(3)
    assert zero.intervention == "zero"
    assert zero.evaluate(model, clean, None).corrupted_kl > 0
    with pytest.raises(ValueError, match="corrupted must be given with"):
        EdgeCircuit(zero.masks, zero.nodes).evaluate(model, clean, None)


@pytest.mark.parametrize("intervention", ["zero", "mean", "positional-mean"])
def test_a_chain_carries_something_else_too(intervention: Any) -> None:
    torch.manual_seed(0)
    model = modfast.models.MLP([5, 4, 3]).double()
    clean, corrupted = torch.randn(2, 8, 5, dtype=torch.float64)
    exact = attribute_edges(
        model, clean, corrupted, method="exact", metric=metric, intervention=intervention
    )
    new = torch.zeros_like(clean) if intervention == "zero" else corrupted.mean(0).expand_as(clean)
    hidden = model.fc1(clean)
    moved = hidden.clone()
    moved[:, 1] += model.fc1.weight[1, 2] * (new - clean)[:, 2]
    wanted = metric(model.fc2(model.act1(moved))).mean() - metric(model(clean)).mean()
    assert float(exact.scores["input", "fc1"][2, 1]) == pytest.approx(float(wanted.detach()))
    found = discover_circuit(
        model, clean, corrupted, 1e-3, intervention=intervention, progress=False
    )
    assert found.intervention == intervention
    logits = found.logits(model, clean, corrupted)
    assert logits.shape == (8, 3)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("signed", [False, True])
def test_pruned_edges_change_nothing(kind: str, signed: bool) -> None:
    case = tiny(kind)
    inputs = case.model, case.clean, case.corrupted
    scores = attribute_edges(*inputs, metric=metric, nodes="heads")
    dropped = 0
    for n in (3, 10, 20):
        whole = scores.circuit(n, signed=signed, prune=False)
        found = scores.circuit(n, signed=signed)
        assert whole.n_edges == n
        assert all(bool((mask <= whole.masks[pair]).all()) for pair, mask in found.masks.items())
        torch.testing.assert_close(found.logits(*inputs), whole.logits(*inputs))
        dropped += n - found.n_edges
    assert dropped


def test_pruning_follows_paths_by_hand() -> None:
    torch.manual_seed(0)
    model, clean, corrupted = two()
    scores = attribute_edges(model, clean, corrupted, metric=metric)
    pairs = list(scores.scores)
    assert pairs[0] == ("input", "act1")
    ways = [
        [("input", "act1"), ("act1", "act2"), ("act2", "logits")],
        [("input", "act1"), ("act1", "logits")],
        [("input", "act2"), ("act2", "logits")],
        [("input", "logits")],
    ]
    for number in range(2**6):
        kept = {pair for i, pair in enumerate(pairs) if number >> i & 1}
        values = {pair: torch.tensor([[float(pair in kept)]]).double() for pair in pairs}
        if kept:
            made = modfast.EdgeScores(values, scores.nodes, "eap", 0.0).circuit(len(kept))
            wanted = {pair for way in ways if kept.issuperset(way) for pair in way}
            assert {pair for pair, mask in made.masks.items() if bool(mask)} == wanted


def test_a_faithfulness_curve_by_hand(tmp_path: Any) -> None:
    model, clean, corrupted = two()
    scores = attribute_edges(model, clean, corrupted, metric=metric)
    inputs = model, clean, corrupted
    curve = modfast.faithfulness_curve(scores, *inputs, metric=metric, sizes=[4, 2, 6])
    low, high = (float(metric(model(x)).detach().mean()) for x in (corrupted, clean))
    wanted = [
        (float(metric(scores.circuit(n).logits(*inputs)).mean()) - low) / (high - low)
        for n in (2, 4, 6)
    ]
    assert curve.sizes.tolist() == [2, 4, 6]
    assert curve.faithfulness.tolist() == pytest.approx(wanted)
    assert wanted[-1] == pytest.approx(1)
    points = [(0.0, 0.0), *zip((2 / 6, 4 / 6, 1.0), wanted, strict=True)]
    area = [
        sum((b[0] - a[0]) * (value(a[1]) + value(b[1])) / 2 for a, b in pairwise(points))
        for value in (lambda f: f, lambda f: abs(1 - f))
    ]
    assert (curve.cpr, curve.cmd) == pytest.approx(tuple(area))
    circuits = [scores.circuit(n, prune=False) for n in (2, 4, 6)]
    again = modfast.faithfulness_curve(circuits, *inputs, metric=metric)
    torch.testing.assert_close(again.faithfulness, curve.faithfulness)
    case = tiny("gpt2")
    ours = case.model, case.clean, case.corrupted
    heads = attribute_edges(*ours, metric=metric, nodes="heads")
    whole = modfast.faithfulness_curve(heads, *ours, metric="kl", progress=False)
    assert whole.sizes[-1] == whole.n_total == 46
    assert float(whole.faithfulness[-1]) == pytest.approx(1)

    def refuses(message: str, *args: Any, error: type = ValueError, **options: Any) -> None:
        with pytest.raises(error, match=message):
            modfast.faithfulness_curve(*args, **options)

    refuses("sizes must be at most 6", scores, *inputs, metric=metric, sizes=[7])
    refuses("sizes must be one or more", scores, *inputs, metric=metric, sizes=[])
    refuses("sizes must be None", circuits, *inputs, metric=metric, sizes=[1])
    refuses("must be EdgeScores or circuits", 3, *inputs, error=TypeError)
    refuses("must differ between all edges and none", scores, *inputs, metric=lambda z: 0 * z.sum())
