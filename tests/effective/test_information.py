from __future__ import annotations

import math
import random
import resource
import subprocess
import sys

import pytest
import torch
from effective.oracle import matrix_of, measures
from torch import nn

import modfast
from modfast import degeneracy, determinism, effective_information

NORMS = ("linear", "softmax", "sigmoid")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def assert_equals(model, shape, matrices, norm, **options) -> None:
    found = effective_information(model, shape, norm, **options)
    expected = measures(matrices, norm)
    assert (found.ei, found.determinism, found.degeneracy) == pytest.approx(expected, abs=1e-9)


def draw(make_random: random.Random) -> tuple[nn.Module, tuple[int, ...]] | None:
    """A layer of random options, or None if they do not fit."""
    pick = make_random.choice
    groups = pick([1, 1, 2, 4])
    kernel = pick([1, 2, 3, (3, 5), (1, 4), 6])
    options = {"groups": groups, "dilation": pick([1, 1, 2, (3, 1)]), "bias": pick([True, False])}
    size = pick([(5, 5), (6, 9), (1, 7), (11, 4)])
    channels, outputs = groups * pick([1, 2]), groups * pick([1, 3])
    kind = pick([nn.Conv2d, nn.ConvTranspose2d])
    options["padding"] = pick([0, 1, 2, (0, 3)] + ["same", "valid"] * (kind is nn.Conv2d))
    options["stride"] = 1 if options["padding"] == "same" else pick([1, 2, 3, (1, 4)])
    if kind is nn.ConvTranspose2d:
        options["output_padding"] = pick([0, 0, 1])
    try:
        layer = kind(channels, outputs, kernel, **options).double()
        if min(layer(torch.zeros(1, channels, *size).double()).shape) < 1:
            return None
    except RuntimeError:
        return None
    return layer, (channels, *size)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.slow
def test_equals_the_dense_matrix_for_any_convolution(norm: str) -> None:
    make_random, n = random.Random(norm), 0
    while n < 150:
        if (drawn := draw(make_random)) is None:
            continue
        n += 1
        layer, shape = drawn
        assert_equals(layer, shape, [matrix_of(layer, shape)], norm)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("mixing", [False, True])
def test_equals_the_dense_matrix_for_average_pooling(norm: str, mixing: bool) -> None:
    for kernel, stride, padding in [
        (1, 1, 0),
        (2, 2, 0),
        (3, 2, 1),
        (3, 1, 1),
        ((2, 3), (3, 1), 1),
    ]:
        for include in (True, False):
            for ceil in (True, False):
                for divisor in (None, 5):
                    pool = nn.AvgPool2d(kernel, stride, padding, ceil, include, divisor)
                    matrix = matrix_of(pool, (3, 6, 7), mixing)
                    assert_equals(pool, (3, 6, 7), [matrix], norm, channel_mixing=mixing)


@pytest.mark.parametrize("norm", NORMS)
def test_one_dimension_is_two_of_which_one_is_a_point(norm: str) -> None:
    for flat, deep in [
        (nn.Conv1d(4, 6, 3, 2, 1, groups=2), nn.Conv2d(4, 6, (1, 3), (1, 2), (0, 1), groups=2)),
        (
            nn.ConvTranspose1d(4, 6, 3, 2, 1, groups=2),
            nn.ConvTranspose2d(4, 6, (1, 3), (1, 2), (0, 1), groups=2),
        ),
    ]:
        flat.weight = nn.Parameter(deep.weight.detach()[:, :, 0].clone())
        assert_equals(flat, (4, 9), [matrix_of(deep, (4, 1, 9))], norm)
    matrix = matrix_of(nn.AvgPool2d((1, 3), (1, 2), (0, 1)), (4, 1, 9))
    assert_equals(nn.AvgPool1d(3, 2, 1), (4, 9), [matrix], norm)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_each_type_are_taken_as_they_are(norm: str, dtype: torch.dtype) -> None:
    layer = nn.Linear(30, 20).to(dtype)
    before = layer.weight.clone()
    assert_equals(layer, 30, [matrix_of(layer, (30,))], norm)
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("norm", NORMS)
def test_layers_count_by_their_units_and_uses(norm: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, padding=1)
            self.pool = nn.AvgPool2d(2)
            self.fc = nn.Linear(8, 5)

        def forward(self, x):
            x = self.conv(self.conv(x).relu()).relu()
            return self.fc(self.pool(x).flatten(1))

    net = Net().double()
    conv, pool = matrix_of(net.conv, (2, 4, 4)), matrix_of(net.pool, (2, 4, 4))
    assert_equals(net, (2, 4, 4), [conv, conv, pool, matrix_of(net.fc, (8,))], norm)
    found = effective_information(net, (2, 4, 4), norm)
    assert [layer.name for layer in found.layers] == ["conv", "conv", "pool", "fc"]
    assert [(layer.n_in, layer.n_out) for layer in found.layers] == [
        (32, 32),
        (32, 32),
        (32, 8),
        (8, 5),
    ]
    one = found.layers[0]
    expected = measures([conv], norm)
    assert (one.ei, one.determinism, one.degeneracy) == pytest.approx(expected, abs=1e-9)
    assert determinism(net, (2, 4, 4), norm) == found.determinism
    assert degeneracy(net, (2, 4, 4), norm) == found.degeneracy


@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_layer_over_tokens_is_one_block_per_token(norm: str) -> None:
    layer = nn.Linear(4, 3).double()
    assert_equals(layer, (2, 5, 4), [matrix_of(layer, (2, 5, 4))], norm)


def test_transformers_layer_keeps_inputs_first() -> None:
    transformers = pytest.importorskip("transformers")
    layer = transformers.pytorch_utils.Conv1D(3, 4)
    assert_equals(layer, 4, [layer.weight.detach().double()], "linear")


@pytest.mark.parametrize("norm", NORMS)
def test_parts_of_any_size_give_one_result(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for layer, shape in [
        (nn.Conv2d(6, 4, 3, padding=1), (6, 5, 5)),
        (nn.Conv2d(6, 12, 3, padding=2, groups=6), (6, 5, 5)),
        (nn.Linear(50, 30), (50,)),
    ]:
        for cells in (1, 100, 700, 2**20):
            monkeypatch.setattr("modfast.reference.wiring._WIRING_CELLS", cells)
            assert_equals(layer, shape, [matrix_of(layer, shape)], norm)


def test_references() -> None:
    layer = nn.Linear(4, 4)
    layer.weight.data.fill_(1.0)
    found = effective_information(layer, 4)
    assert (found.ei, found.determinism, found.degeneracy) == (0.0, 2.0, 2.0)
    for n in (1, 8, 100):
        layer = nn.Linear(n, n)
        layer.weight.data.copy_(torch.eye(n))
        found = effective_information(layer, n)
        expected = (math.log2(n), 0.0, math.log2(n))
        assert (found.ei, found.determinism, found.degeneracy) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("fill", [0.0, -1.0])
def test_without_a_positive_weight_there_is_nothing(fill: float) -> None:
    layer = nn.Linear(4, 3)
    layer.weight.data.fill_(fill)
    found = effective_information(layer, 4)
    assert (found.ei, found.determinism, found.degeneracy) == (0.0, 0.0, 0.0)
    # Alone that is so; beside another layer its units still count in the mean.
    net = nn.Sequential(nn.Linear(4, 4), layer)
    matrices = [matrix_of(module, (4,)) for module in net]
    assert_equals(net, 4, matrices, "linear")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 20.0, 500.0])
def test_small_and_large_weights(norm: str, scale: float) -> None:
    for layer, shape in [
        (nn.Linear(9, 7).double(), (9,)),
        (nn.Conv2d(2, 3, 3, padding=1).double(), (2, 3, 3)),
    ]:
        layer.weight.data.uniform_(-scale, scale)
        assert_equals(layer, shape, [matrix_of(layer, shape)], norm)


def test_sigmoid_of_very_negative_weights_does_not_cancel() -> None:
    layer = nn.Linear(5, 4).double()
    layer.weight.data.uniform_(-60, -40)
    for norm in ("sigmoid", "softmax"):
        assert_equals(layer, 5, [matrix_of(layer, (5,))], norm)


@pytest.mark.parametrize("norm", NORMS)
def test_batch_norm_is_folded_or_skipped(norm: str) -> None:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4), nn.ReLU(),
        nn.ConvTranspose2d(4, 4, 2, groups=2), nn.BatchNorm2d(4, affine=False),
        nn.Flatten(), nn.Linear(64, 3), nn.BatchNorm1d(3),
    ).double()  # fmt: skip
    for module in net:
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_var.uniform_(0.1, 3.0)
            if module.affine:
                nn.init.normal_(module.weight)
    shapes = {0: (2, 5, 5), 3: (4, 3, 3), 6: (64,)}
    plain = [matrix_of(net[i], shape) for i, shape in shapes.items()]
    assert_equals(net, (2, 5, 5), plain, norm)
    folded = []
    for i, matrix in zip(shapes, plain, strict=True):
        bn = net[i + 1]
        factor = (bn.running_var + bn.eps).rsqrt() * (1 if bn.weight is None else bn.weight.data)
        folded.append(matrix * factor.repeat_interleave(matrix.shape[1] // len(factor)))
    assert_equals(net, (2, 5, 5), folded, norm, batch_norm="fold")


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


def test_the_model_is_left_as_it_was() -> None:
    class Fails(nn.Module):
        def forward(self, x):
            raise RuntimeError("no")

    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten())
    net.train()
    net[2].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    flags = [module.training for module in net.modules()]

    def assert_untouched(model: nn.Module) -> None:
        for name, value in before.items():
            assert torch.equal(value, model.state_dict()[name])
        assert [module.training for module in net.modules()] == flags
        for module in model.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks
        assert torch.is_grad_enabled()

    for norm in NORMS:
        effective_information(net, (1, 6, 6), norm, batch_norm="fold")
        assert_untouched(net)
    with pytest.raises(RuntimeError, match="no"):  # what the model itself raises passes
        effective_information(nn.Sequential(*net, Fails()), (1, 6, 6))
    assert_untouched(net)


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


def test_parametrized_weights_are_those_in_use() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(5, 4).double())
    layer.parametrizations.weight.original0.data.mul_(3.0)
    assert_equals(layer, 5, [layer.weight.detach().T], "linear")


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("norm", NORMS)
def test_weights_as_their_layers_compute_them_and_nothing_moves(norm: str) -> None:
    utils = nn.utils
    layers = [
        utils.prune.l1_unstructured(nn.Linear(5, 4), "weight", amount=8),
        utils.weight_norm(nn.Linear(5, 4)),
        utils.spectral_norm(nn.Linear(5, 4)),
        utils.parametrizations.spectral_norm(nn.Linear(5, 4)),
        utils.parametrizations.orthogonal(nn.Linear(5, 4)),
        utils.parametrizations.spectral_norm(nn.Linear(5, 4)),
    ]
    for layer in layers:
        layer.double()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.mul_(1.5)
            layer.eval()(torch.zeros(1, 5).double())  # the hooks compute the weight
        weight = layer.weight.detach().clone()
        net = nn.Sequential(layer, nn.ReLU()).train()
        before = {name: value.clone() for name, value in net.state_dict().items()}
        assert_equals(net, 5, [weight.T], norm)
        torch.testing.assert_close(modfast.connectivity_matrix(layer, 5), weight.T)
        modfast.perturbational_ei(net, 5, "0", samples=50, tolerance=None, seed=0)
        assert all(torch.equal(net.state_dict()[name], each) for name, each in before.items())


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


def test_threads_do_not_matter(n_threads: int) -> None:
    layer = nn.Conv2d(32, 48, 3, padding=1)
    found = effective_information(layer, (32, 30, 30))
    torch.set_num_threads(1)
    alone = effective_information(layer, (32, 30, 30))
    assert found.ei == pytest.approx(alone.ei, rel=1e-13)


def test_on_the_gpu(cuda: torch.device) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, groups=1), nn.AvgPool2d(2), nn.Flatten())
    for norm in NORMS:
        on_cpu = effective_information(net.cpu(), (3, 9, 9), norm)
        on_gpu = effective_information(net.to(cuda), (3, 9, 9), norm)
        assert on_gpu.ei == pytest.approx(on_cpu.ei, abs=1e-9)


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


def test_figure() -> None:
    pytest.importorskip("plotly")
    net = modfast.models.MLP([5, 4, 3])
    found = effective_information(net, 5)
    figure = found.plot()
    assert [trace.name for trace in figure.data] == ["degeneracy", "determinism", "EI"]
    assert list(figure.data[2].y) == [layer.ei for layer in found.layers]
    assert list(figure.layout.xaxis.ticktext) == ["fc1", "fc2"]
    assert f"{found.ei:.3f}" in figure.layout.title.text
