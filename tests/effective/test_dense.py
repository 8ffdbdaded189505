from __future__ import annotations

import math
import resource

import pytest
import torch
from effective.oracle import matrix_of, rows_of
from torch import nn

from modfast import connectivity_matrix, entropy_bits, normalize_rows


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(4, 3), (4,)),
        (nn.Linear(4, 3), (2, 4)),
        (nn.Conv2d(4, 6, 3, 2, 1, groups=2), (4, 5, 7)),
        (nn.Conv2d(2, 3, (2, 3), padding="same", dilation=2), (2, 5, 7)),
        (nn.ConvTranspose2d(4, 6, 3, 2, 1, groups=2, output_padding=1), (4, 3, 4)),
        (nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), (3, 6, 7)),
    ],
)
def test_matrix_equals_the_definition_and_the_jacobian(layer, shape) -> None:
    layer.train()
    matrix = connectivity_matrix(layer, shape)
    assert matrix.dtype == torch.float64
    assert layer.training
    torch.testing.assert_close(matrix, matrix_of(layer, shape), rtol=0, atol=0)
    x = torch.zeros(1, *shape, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(layer.double(), x)
    jacobian = jacobian.reshape(matrix.shape[1], matrix.shape[0]).T
    torch.testing.assert_close(matrix, jacobian, rtol=0, atol=1e-15)


@pytest.mark.parametrize("mode", ["circular", "replicate", "reflect"])
def test_matrix_of_other_padding_modes_adds_up_what_meets(mode: str) -> None:
    layer = nn.Conv2d(1, 2, 3, padding=1, padding_mode=mode, bias=True).double()
    matrix = connectivity_matrix(layer, (1, 4, 5))
    x = torch.randn(3, 1, 4, 5, dtype=torch.float64)
    plain = layer(x) - layer(torch.zeros_like(x))
    torch.testing.assert_close(x.flatten(1) @ matrix, plain.flatten(1))


def test_channel_mixing_joins_every_channel_to_every_channel() -> None:
    pool = nn.AvgPool2d(2)
    matrix = connectivity_matrix(pool, (3, 4, 4), channel_mixing=True)
    assert torch.equal(matrix, matrix_of(pool, (3, 4, 4), mixing=True))


def test_many_rows_are_made_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(20, 3)
    monkeypatch.setattr("modfast.effective.dense._CELLS_AT_ONCE", 60)
    assert torch.equal(connectivity_matrix(layer, 20), layer.weight.detach().double().T)


def test_a_matrix_beyond_the_cap_is_refused_before_it_is_made() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="max_memory must be at least .* got 1073741824"):
        connectivity_matrix(nn.Linear(4, 4), 2**31)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16
    with pytest.raises(ValueError, match="matrix's 128 bytes, got 127 for 4 x 4 entries"):
        connectivity_matrix(nn.Linear(4, 4), 4, max_memory=127)
    assert connectivity_matrix(nn.Linear(4, 4), 4, max_memory=128).shape == (4, 4)


@pytest.mark.parametrize("norm", ["linear", "softmax", "sigmoid"])
def test_rows(norm: str) -> None:
    weight = torch.randn(6, 5)
    weight[2] = -1.0
    found = normalize_rows(weight, norm)
    torch.testing.assert_close(found, rows_of(weight.double(), norm))
    assert bool((found[2] == 0).all()) == (norm == "linear")


def test_entropies() -> None:
    assert entropy_bits(torch.full((256,), 1 / 256)).item() == 8.0
    assert entropy_bits(torch.eye(3)).tolist() == [0.0, 0.0, 0.0]
    assert entropy_bits(torch.tensor([[0.5, 0.5], [0.0, 0.0]]), dim=1).tolist() == [1.0, 0.0]
    p = torch.randn(4, 7).softmax(0)
    expected = -(p.double() * p.double().log2()).sum(0)
    torch.testing.assert_close(entropy_bits(p), expected)


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match="module must be a linear, .* got ReLU"):
        connectivity_matrix(nn.ReLU(), 4)
    with pytest.raises(TypeError, match="module must be a linear"):
        connectivity_matrix(nn.Sequential(nn.Linear(4, 4)), 4)
    with pytest.raises(
        ValueError, match="max_memory must be at least .* bytes, got 1073741824 for 20000 x 20000"
    ):
        connectivity_matrix(nn.AvgPool1d(1), (1, 20000))
    with pytest.raises(ValueError, match=r"input_shape=\(5,\) does not fit"):
        connectivity_matrix(nn.Linear(4, 4), 5)
    layer = nn.Linear(2, 2)
    layer.weight.data[0, 0] = math.inf
    with pytest.raises(ValueError, match="weight must be finite, got 1 of 4"):
        connectivity_matrix(layer, 2)

    with pytest.raises(TypeError, match="weight must be a floating tensor, got list"):
        normalize_rows([[1.0]])
    with pytest.raises(TypeError, match="weight must be a floating tensor, got torch.int64"):
        normalize_rows(torch.ones(2, 2).long())
    with pytest.raises(ValueError, match=r"weight must be \[n_in, n_out\], got shape \(3,\)"):
        normalize_rows(torch.ones(3))
    with pytest.raises(ValueError, match="norm must be one of"):
        normalize_rows(torch.ones(3, 3), "l2")
    with pytest.raises(ValueError, match="weight must be finite, got 9 of 9"):
        normalize_rows(torch.full((3, 3), math.nan))

    with pytest.raises(ValueError, match="p must not be negative, got -0.5"):
        entropy_bits(torch.tensor([-0.5, 1.5]))
    with pytest.raises(ValueError, match="p must sum to 1 along dim=0, got 2.0"):
        entropy_bits(torch.ones(2))
    with pytest.raises(ValueError, match="dim must be a dimension of p, which has 1, got 1"):
        entropy_bits(torch.ones(1), dim=1)
    with pytest.raises(TypeError, match="dim must be an integer, got 0.5"):
        entropy_bits(torch.ones(1), dim=0.5)
    with pytest.raises(ValueError, match="p must be finite"):
        entropy_bits(torch.tensor([math.nan]))
    with pytest.raises(TypeError, match="p must be a floating tensor"):
        entropy_bits(torch.ones(1, dtype=torch.int64))
