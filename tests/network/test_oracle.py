"""The zoo and its oracle, before they judge anything else."""

from __future__ import annotations

import pytest
import torch
from network import oracle, zoo
from network.snapshot import Snapshot
from network.zoo_case import same_numbers
from torch import nn


@pytest.fixture(params=zoo.NAMES)
def case(request: pytest.FixtureRequest) -> zoo.Case:
    return zoo.build(request.param)


@torch.no_grad()
def test_models_and_their_sites(case: zoo.Case) -> None:
    before = Snapshot(case.model, case.inputs)
    if case.grows:
        pytest.skip("each run is another")
    whole = oracle.run(case.model, case.inputs, output=case.output).clone()
    assert whole.shape[:-1] == case.targets.shape
    assert whole.shape[-1] > case.targets.max()
    for site, dim in case.sites.items():
        value = oracle.activations(case.model, case.inputs, site)
        assert value.shape[dim] > 1
        again = oracle.replaced(case.model, case.inputs, site, lambda v: v, case.output)
        torch.testing.assert_close(again, whole)
        change = oracle.units_set([0, 1], dim)
        other = oracle.replaced(case.model, case.inputs, site, change, case.output)
        assert not torch.allclose(other, whole), site
    changes = before.changes(case.model, case.inputs)
    assert [c for c in changes if not any(name in c for name in case.moves)] == []
    case.change(case)
    after = oracle.run(case.model, case.inputs, output=case.output)
    assert not torch.allclose(after, whole, rtol=1e-2)


def test_what_a_model_returns_is_what_the_oracle_says(case: zoo.Case) -> None:
    """Without hooks, on the fast paths, and compiled: the same to rounding."""
    if case.grows:
        pytest.skip("each run is another")
    with same_numbers():
        whole = oracle.run(case.model, case.inputs, output=case.output).clone()
    with torch.no_grad(), same_numbers():
        found = oracle.logits_of(oracle.call(case.model, case.inputs), case.output)
    torch.testing.assert_close(found, whole)


def test_two_builds_are_equal(case: zoo.Case, request: pytest.FixtureRequest) -> None:
    other = zoo.build(request.node.callspec.params["case"])
    assert other.model is not case.model
    for each in (case, other):
        with same_numbers():
            each.seen = oracle.run(each.model, each.inputs, output=each.output)
    assert torch.equal(case.seen, other.seen)


def test_a_snapshot_says_what_changed() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    inputs = {"x": torch.zeros(2), "more": [1.0]}

    def changed(do: object) -> list[str]:
        before = Snapshot(model, inputs)
        assert before.changes(model, inputs) == []
        assert callable(do)
        do()
        return before.changes(model, inputs)

    layer, norm = model[0], model[1]
    assert changed(lambda: layer.weight.data.add_(1)) == ["0._parameters['weight']: value changed"]
    weight = nn.Parameter(layer.weight.detach().clone())
    assert "0._parameters['weight'] changed" in changed(lambda: setattr(layer, "weight", weight))
    assert "1._buffers['running_mean']: value changed" in changed(lambda: norm.running_mean.add_(1))
    assert changed(lambda: norm.eval()) == ["1.training changed"]
    assert "0._parameters['weight']: requires_grad changed" in changed(
        lambda: layer.weight.requires_grad_(False)
    )
    assert "0._parameters['bias'].grad is new" in changed(
        lambda: setattr(layer.bias, "grad", torch.zeros(2))
    )
    assert any(
        "_forward_hooks" in line for line in changed(lambda: layer.register_forward_hook(print))
    )
    assert "0.forward is new" in changed(lambda: setattr(layer, "forward", print))
    assert "inputs['x']: value changed" in changed(lambda: inputs["x"].add_(1))
    assert "inputs['more']: length changed" in changed(lambda: inputs["more"].append(1))
    assert changed(lambda: torch.rand(1)) == ["torch's random state changed"]
