from __future__ import annotations

import math
import random

import pytest
import torch
from effective.oracle import matrix_of, measures
from torch import nn

import modfast
from modfast import degeneracy, determinism, effective_information

NORMS = ("linear", "softmax", "sigmoid")


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
