"""A module that a model has under two names stays what it is."""

from __future__ import annotations

import pytest
from network.snapshot import Snapshot
from state.cases import CASES, OTHER, Case, X, Y, differences, mlp
from torch import nn

INPUTS = (X, OTHER, Y)


def twice() -> nn.Module:
    """Its second activation is its second layer, too, which has a third name."""
    model = mlp()
    model.act2 = model.fc2
    model.again = model.fc2
    return model


@pytest.mark.parametrize("case", [case for case in CASES if case.make is mlp], ids=str)
def test_a_module_with_three_names(case: Case) -> None:
    model = twice()
    parameters, before = dict(model.fc2._parameters), Snapshot(model, INPUTS)
    if case.name == "prune_circuit":  # of a layer that is not alone in having its weight
        with pytest.raises(ValueError, match=r"it is fc2\.weight and act2\.weight and again"):
            case.call(model)
    else:
        found = case.call(model)
        assert differences(found, case.call(model if not case.trains else twice())) == []
    for name, value in model.fc2._parameters.items():
        assert isinstance(value, nn.Parameter)
        assert value is parameters[name]
        assert value.requires_grad
    if not case.trains:
        assert before.changes(model, INPUTS) == []
