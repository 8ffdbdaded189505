from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from modfast.models import MLP


def test_submodules_are_named_and_ordered_as_they_run():
    model = MLP([784, 64, 32, 10])
    children = dict(model.named_children())
    assert list(children) == ["fc1", "act1", "fc2", "act2", "fc3"]
    widths = [
        (layer.in_features, layer.out_features)
        for layer in children.values()
        if isinstance(layer, nn.Linear)
    ]
    assert widths == [(784, 64), (64, 32), (32, 10)]
    assert isinstance(children["act1"], nn.ReLU)
    assert isinstance(children["act2"], nn.ReLU)


def test_forward_equals_the_formula():
    torch.manual_seed(0)
    model = MLP([64, 16, 8, 3])
    x = torch.randn(5, 1, 8, 8)
    h = (x.reshape(5, 64) @ model.fc1.weight.T + model.fc1.bias).clamp(min=0)
    h = (h @ model.fc2.weight.T + model.fc2.bias).clamp(min=0)
    torch.testing.assert_close(model(x), h @ model.fc3.weight.T + model.fc3.bias)


def test_two_sizes_are_one_linear_layer():
    model = MLP([4, 2])
    x = torch.randn(3, 4)
    assert [name for name, _ in model.named_children()] == ["fc1"]
    assert torch.equal(model(x), model.fc1(x))


def test_without_bias_there_are_only_weights():
    assert [name for name, _ in MLP([4, 3, 2], bias=False).named_parameters()] == [
        "fc1.weight",
        "fc2.weight",
    ]


def test_state_dict_round_trip():
    torch.manual_seed(0)
    source, target = MLP([4, 3, 2]), MLP([4, 3, 2])
    target.load_state_dict(source.state_dict())
    x = torch.randn(6, 4)
    assert torch.equal(source(x), target(x))


def test_empty_batch_and_numpy_widths():
    assert MLP(list(np.array([4, 3, 2])))(torch.zeros(0, 2, 2)).shape == (0, 2)


def test_weights_get_gradients():
    model = MLP([4, 3, 2])
    model(torch.randn(5, 4)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("sizes", [[], [4], [4, 0, 2], [4, -1]])
def test_bad_widths(sizes):
    with pytest.raises(ValueError, match="at least two widths") as caught:
        MLP(sizes)
    assert f"sizes={sizes!r}" in str(caught.value)


@pytest.mark.parametrize("sizes", [5, None, "ab", [4, 2.0], [4, "2"], [True, 2]])
def test_widths_of_a_wrong_type(sizes):
    with pytest.raises(TypeError, match="sequence of integers") as caught:
        MLP(sizes)
    assert f"sizes={sizes!r}" in str(caught.value)
