"""Effective information by its definition: dense matrices, filled entry by entry."""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor, nn


def pairs(size: int | tuple[int, ...]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def matrix_of(module: nn.Module, shape: tuple[int, ...], mixing: bool = False) -> Tensor:
    """In-units by out-units of a layer with two-dimensional positions or none, float64."""
    if isinstance(module, nn.Linear):
        alone = module.weight.detach().double().T
        return torch.block_diag(*[alone] * math.prod(shape[:-1]))
    channels, *size = shape
    out = module(torch.zeros(1, *shape, dtype=next(module.parameters(), torch.ones(1)).dtype))
    n_out, *out_size = out.shape[1:]
    matrix = torch.zeros(channels, *size, n_out, *out_size, dtype=torch.float64)
    if isinstance(module, nn.AvgPool2d):
        fill_pool(matrix, module, mixing)
    else:
        fill_convolution(matrix, module)
    return matrix.reshape(math.prod(shape), -1)


def fill_convolution(matrix: Tensor, module: nn.Module) -> None:
    transposed = isinstance(module, nn.ConvTranspose2d)
    n_in, *size, n_out, height, width = matrix.shape
    weight, groups, kernel = module.weight.detach().double(), module.groups, module.kernel_size
    if module.padding == "same":
        padding = [d * (k - 1) // 2 for d, k in zip(module.dilation, kernel, strict=True)]
    else:
        padding = [0, 0] if module.padding == "valid" else list(module.padding)
    near = size if transposed else (height, width)
    far = (height, width) if transposed else size
    for i, j in product(*map(range, near)):
        for t, u in product(*map(range, kernel)):
            y = i * module.stride[0] - padding[0] + t * module.dilation[0]
            x = j * module.stride[1] - padding[1] + u * module.dilation[1]
            if not (0 <= y < far[0] and 0 <= x < far[1]):
                continue
            for g in range(groups):
                a = slice(g * n_in // groups, (g + 1) * n_in // groups)
                b = slice(g * n_out // groups, (g + 1) * n_out // groups)
                if transposed:
                    matrix[a, i, j, b, y, x] = weight[a, :, t, u]
                else:
                    matrix[a, y, x, b, i, j] = weight[b, :, t, u].T


def fill_pool(matrix: Tensor, pool: nn.AvgPool2d, mixing: bool) -> None:
    channels, height, width, _, out_height, out_width = matrix.shape
    kernel, stride, padding = map(pairs, (pool.kernel_size, pool.stride, pool.padding))
    between = torch.ones(channels, channels) if mixing else torch.eye(channels)
    for i, j in product(range(out_height), range(out_width)):
        top, left = i * stride[0] - padding[0], j * stride[1] - padding[1]
        rows = range(top, min(top + kernel[0], height + padding[0]))
        columns = range(left, min(left + kernel[1], width + padding[1]))
        inside = [(y, x) for y in rows for x in columns if 0 <= y < height and 0 <= x < width]
        n = len(rows) * len(columns) if pool.count_include_pad else len(inside)
        for y, x in inside:
            matrix[:, y, x, :, i, j] = between.double() / (pool.divisor_override or n)


def rows_of(matrix: Tensor, norm: str) -> Tensor:
    if norm == "softmax":
        return matrix.softmax(1)
    matrix = matrix.clamp(min=0) if norm == "linear" else matrix.sigmoid()
    total = matrix.sum(1, keepdim=True)
    return torch.where(total > 0, matrix / total, 0.0)


def measures(matrices: list[Tensor], norm: str) -> tuple[float, float, float]:
    """EI, determinism, degeneracy of layers' matrices, in bits."""
    rows = [rows_of(matrix, norm) for matrix in matrices]
    entropies = torch.cat([torch.special.entr(each).sum(1) for each in rows])
    columns = torch.cat([each.sum(0) for each in rows])
    spread = torch.special.entr(columns / columns.sum()).sum() if columns.any() else columns.sum()
    found = spread - entropies.mean(), entropies.mean(), spread
    return tuple(float(each) / math.log(2) for each in found)
