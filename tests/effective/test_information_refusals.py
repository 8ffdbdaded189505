"""Models and weights that have no effective information are refused by name."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import modfast
from modfast import effective_information


def test_batch_norm_that_cannot_be_folded() -> None:
    conv, bn = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)
    for net in (
        nn.Sequential(bn, conv),
        nn.Sequential(conv, nn.ReLU(inplace=True), bn),
        nn.Sequential(conv, nn.ReLU(), bn),
        nn.Sequential(conv, bn, nn.BatchNorm2d(2)),
    ):
        assert effective_information(net, (2, 3, 3)).layers[0].name in ("0", "1")
        with pytest.raises(ValueError, match="batch_norm='fold': '.' does not follow a layer"):
            effective_information(net, (2, 3, 3), batch_norm="fold")
    net = nn.Sequential(conv, nn.BatchNorm2d(2, track_running_stats=False))
    with pytest.raises(ValueError, match="'1' has no running statistics"):
        effective_information(net, (2, 3, 3), batch_norm="fold")
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(5))
    with pytest.raises(ValueError, match="'1' is not over the 3 out-channels of '0'"):
        effective_information(net, (5, 4), batch_norm="fold")


def test_weights_that_are_not_counted_are_listed_or_skipped() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.unused = nn.Linear(4, 8), nn.Linear(4, 4)
            self.attention = nn.MultiheadAttention(8, 2)
            self.norm, self.act = nn.LayerNorm(8), nn.PReLU()
            self.scale = nn.Parameter(torch.ones(8))

        def forward(self, x):
            x = self.act(self.norm(self.fc(x)))
            return self.attention(x, x, x)[0] * self.scale

    with pytest.raises(ValueError, match="weights that are not counted") as caught:
        effective_information(Net(), (3, 4))
    message = str(caught.value)
    for part in (
        "'Net' (Net) is not supported",
        "'unused' (Linear) was not called",
        "'attention' (MultiheadAttention) is not supported",
        "'attention.out_proj' (NonDynamicallyQuantizableLinear) was not called",
    ):
        assert part in message
    assert "norm" not in message
    assert "act" not in message
    found = effective_information(Net(), (3, 4), unsupported="skip")
    assert [layer.name for layer in found.layers] == ["fc"]


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_layers_without_units_and_integer_weights_are_refused_by_name() -> None:
    net = nn.Sequential(nn.Linear(4, 0), nn.Linear(0, 3))
    with pytest.raises(ValueError, match="layer '0' must have inputs and outputs, got .*0, 4"):
        effective_information(net, 4)
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    net[1].weight = nn.Parameter(torch.ones(3, 4, dtype=torch.int8), requires_grad=False)
    for function in (effective_information, modfast.perturbational_ei):
        with pytest.raises(TypeError, match="the weight of '1' must be float32, .*torch.int8"):
            function(net, 4)
    with pytest.raises(TypeError, match="the weight of 'module' must be float32, .*torch.int8"):
        modfast.connectivity_matrix(net[1], 4)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((3, 4), {}, TypeError, "model must be a torch.nn.Module, got int"),
        ((nn.Linear(4, 3), 5), {}, ValueError, r"input_shape=\(5,\) must fit the model"),
        ((nn.Linear(4, 3), ()), {}, ValueError, "input_shape must have at least one size"),
        ((nn.Linear(4, 3), (0, 4)), {}, ValueError, "input_shape must be at least 1, got 0"),
        ((nn.Linear(4, 3), "4"), {}, TypeError, "input_shape must be an integer, got '4'"),
        ((nn.Linear(4, 3), 4.0), {}, TypeError, "input_shape must be an integer, got 4.0"),
        ((nn.Linear(4, 3), 4, "relu"), {}, ValueError, "norm must be one of .* got 'relu'"),
        ((nn.Linear(4, 3), 4), {"batch_norm": 1}, ValueError, "batch_norm must be one of .* got 1"),
        ((nn.Linear(4, 3), 4), {"unsupported": ""}, ValueError, "unsupported must be one of"),
        ((nn.ReLU(), 4), {}, ValueError, "model must use a linear, convolution or average pooling"),
        (
            (nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), (1, 5, 5)),
            {},
            ValueError,
            "layer 'Conv2d' must have padding_mode='zeros', got 'circular'",
        ),
    ],
)
def test_bad_arguments(arguments, options, error, message) -> None:
    with pytest.raises(error, match=message):
        effective_information(*arguments, **options)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite(bad: float) -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    net[1].weight.data[0, 1] = bad
    with pytest.raises(ValueError, match="the weight of '1' must be finite, got 1 of 6"):
        effective_information(net, 4)


@pytest.mark.filterwarnings("ignore:Complex modules")
def test_weights_that_are_not_real() -> None:
    class ToComplex(nn.Module):
        def forward(self, x):
            return x.to(torch.complex64)

    net = nn.Sequential(nn.Linear(4, 4), ToComplex(), nn.Linear(4, 3).to(torch.complex64))
    with pytest.raises(TypeError, match="the weight of '2' must be float32, .*complex64"):
        effective_information(net, 4)


def test_weights_too_large_for_softmax() -> None:
    for weight in (601.0, -601.0):
        layer = nn.Linear(4, 3)
        layer.weight.data[0, 0] = weight
        with pytest.raises(ValueError, match="weight of 'Linear' must be from -600 to 600 with no"):
            effective_information(layer, 4, "softmax")
        assert math.isfinite(effective_information(layer, 4, "sigmoid").ei)
    for factor in (1e4, -1e4):
        net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        net[0].weight.data.uniform_(-1, -0.5)
        net[1].weight.data.fill_(factor)
        with pytest.raises(ValueError, match="the weight of '0' must be from -600 to 600"):
            effective_information(net, 4, "softmax", batch_norm="fold")
