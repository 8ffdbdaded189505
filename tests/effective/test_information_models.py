"""Of models as they are found: their inputs, modes, devices and sizes."""

from __future__ import annotations

import math
import resource
import subprocess
import sys

import pytest
import torch
from effective.oracle import measures
from torch import nn

import modfast
from modfast import degeneracy, determinism, effective_information


class Ids(nn.Module):
    """Takes integers, and a mask by name."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc = nn.Embedding(9, 4), nn.Linear(4, 3)
        self.seen: list[int] = []

    def forward(self, ids, mask=None):
        self.seen.append(1)
        h = self.embed(ids)
        return {"out": self.fc(input=h if mask is None else h * mask[..., None])}


def test_models_of_other_inputs_take_inputs() -> None:
    net, ids = Ids(), torch.randint(9, (5, 7))
    options = {"unsupported": "skip"}
    with pytest.raises(ValueError, match=r"input_shape=\(12,\) must fit.*indices.*inputs="):
        effective_information(net, (12,), **options)
    expected = measures([torch.block_diag(*[net.fc.weight.detach().double().T] * 7)], "linear")
    for inputs in (ids, (ids,), {"ids": ids, "mask": torch.ones(5, 7)}):
        found = effective_information(net, inputs=inputs, **options)
        assert (found.ei, found.determinism, found.degeneracy) == pytest.approx(expected, abs=1e-9)
        assert determinism(net, inputs=inputs, **options) == found.determinism
        assert degeneracy(net, inputs=inputs, **options) == found.degeneracy
    assert net.seen == []
    with pytest.raises(ValueError, match="input_shape must be given or inputs must, got none"):
        effective_information(net)
    with pytest.raises(ValueError, match="input_shape must be given or inputs must, got both"):
        effective_information(net, 3, inputs=ids)
    with pytest.raises(TypeError, match="inputs must be one batch, got a stream"):
        effective_information(net, inputs=[ids])
    with pytest.raises(ValueError, match="inputs must fit the model, .* index out of range"):
        effective_information(net, inputs=ids + 9)


def test_inference_mode_compiled_models_and_encoder_layers() -> None:
    net = modfast.models.MLP([5, 4, 3])
    plain = effective_information(net, 5)
    with torch.inference_mode():
        assert effective_information(net, 5).to_dict() == plain.to_dict()
    compiled = effective_information(torch.compile(net, backend="eager"), 5)
    assert compiled.to_dict() == plain.to_dict()
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    found = effective_information(encoder, (3, 8), unsupported="skip")
    assert [layer.name for layer in found.layers] == ["linear1", "linear2"]
    assert (found.layers[0].n_in, found.layers[0].n_out) == (24, 48)


def test_another_default_device_and_dtype() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.AvgPool2d(2), nn.Flatten())
    net.append(nn.Linear(8, 3))

    def found() -> list[object]:
        matrix = modfast.connectivity_matrix(net[0], (1, 4, 4))
        return [effective_information(net, (1, 4, 4)).ei, matrix.tolist()]

    expected = found()
    modfast.effective.wiring.convolution_axis.cache_clear()
    modfast.effective.wiring.pooling_axis.cache_clear()
    modfast.effective.wiring._kinds.cache_clear()
    modfast.effective.layers._point.cache_clear()
    options = {"samples": 50, "tolerance": None, "seed": 0}
    pairs = modfast.perturbational_ei(net, (1, 4, 4), "3", **options).pairs
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(modfast.perturbational_ei(net, (1, 4, 4), "3", **options).pairs, pairs)
        torch.set_default_device("meta")
        assert found() == expected
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


NETWORKS = {
    "resnet18": (21, 1000),
    "vgg11": (11, 1000),
    "convnext_tiny": (59, 1000),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.slow
def test_large_networks(torchvision: None, name: str) -> None:
    """In a process of its own, whose memory tells of these only."""
    n_layers, n_out = NETWORKS[name]
    program = f"""
import resource, torch, torchvision, modfast


model = torchvision.models.{name}(weights=None)
with torch.no_grad():
    model.eval()(torch.zeros(1, 3, 224, 224))
model.train()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = modfast.effective_information(model, (3, 224, 224), unsupported="skip")
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
assert used < 2**20, used  # kB
assert model.training
assert len(result.layers) == {n_layers}
assert result.layers[-1].n_out == {n_out}
assert abs(result.ei - (result.degeneracy - result.determinism)) < 1e-12
for layer in result.layers:
    assert 0 <= layer.ei <= layer.degeneracy
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_matrix_that_no_memory_holds() -> None:
    """Two layers, one of 4.8e5 x 9.6e5 units: dense in float32 it would take 1.8 TB."""
    conv = nn.Conv2d(3, 6, 5, padding=2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = effective_information(conv, (3, 400, 400))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18
    # Far from the border each row is one kernel, so that the border's share vanishes with size.
    weight = conv.weight.detach().double().relu().transpose(0, 1).flatten(1)
    rows = weight / weight.sum(1, keepdim=True)
    inner = torch.special.entr(rows).sum(1).mean() / math.log(2)
    assert found.determinism == pytest.approx(float(inner), abs=0.02)


def test_figure() -> None:
    pytest.importorskip("plotly")
    net = modfast.models.MLP([5, 4, 3])
    found = effective_information(net, 5)
    figure = found.plot()
    assert [trace.name for trace in figure.data] == ["degeneracy", "determinism", "EI"]
    assert list(figure.data[2].y) == [layer.ei for layer in found.layers]
    assert list(figure.layout.xaxis.ticktext) == ["fc1", "fc2"]
    assert f"{found.ei:.3f}" in figure.layout.title.text
