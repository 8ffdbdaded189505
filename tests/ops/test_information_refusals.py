"""Codes and arguments that are refused, or that reach no memory."""

from __future__ import annotations

import pytest
import torch
from ops.coding import PAIRINGS, sides

from modfast import ops
from modfast._extension import has_ops


@pytest.mark.skipif(not has_ops(), reason="modfast's library is not built")
def test_codes_out_of_range() -> None:
    x, y = sides((30, 4, 4), 5, 7)
    orders, observed = torch.full((1, 30), 30), torch.zeros(4, 4, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"x_codes must lie in \[0, 3\), got 4"):
        ops.joint_histogram(x, y, 3, 7, "aligned")
    with pytest.raises(RuntimeError, match=r"y_codes must lie in \[0, 300\), got -2"):
        ops.pairwise_information(x, 0 * y.short() - 2, 5, 300, None)
    with pytest.raises(RuntimeError, match=r"permutations must lie in \[0, 30\), got 30"):
        ops.permuted_information(x, y, 5, 7, orders, observed)


@pytest.mark.parametrize("bins", [3, 257])
def test_codes_out_of_range_reach_no_memory_on_the_gpu(
    bins: int, device: torch.device, small: bool
) -> None:
    if device.type == "cpu" and not small:
        pytest.skip("refused on the CPU")
    x, y = sides((30, 2, 2), bins + 2, bins + 2, device)
    x[3, 1], y[4, 0] = bins, bins + 1
    if bins == 257:
        x[5, 1], y[6, 0] = -1, -32_768
    for pairing in PAIRINGS:
        counts = ops.joint_histogram(x, y, bins, bins, pairing)
        assert counts.sum() <= x.numel() * (1 if pairing == "aligned" else 2)
    assert ops.pairwise_information(x, y, bins, bins)[0].isfinite().all()
    orders = torch.tensor([[-1, 30] * 15], device=device)
    observed = torch.zeros(2, 2, dtype=torch.float64, device=device)
    assert (ops.permuted_information(x, y, bins, bins, orders, observed)[0] == 1).all()


@pytest.mark.skipif(not has_ops(), reason="modfast's library is not built")
def test_operators_refuse_what_would_reach_memory_wrongly(device: torch.device) -> None:
    x, y = sides((30, 4, 4), 5, 7, device)
    raw = torch.ops.modfast
    observed = torch.zeros(4, 4, dtype=torch.float64, device=device)
    with pytest.raises(RuntimeError, match="must be a contiguous matrix"):
        raw.joint_histogram(x.t(), y.t(), 5, 7, "all")
    with pytest.raises(RuntimeError, match="bins must be 2 to 32767, got 1"):
        raw.joint_histogram(x, y, 1, 7, "all")
    with pytest.raises(RuntimeError, match="as many rows on one device, got 29 and 30"):
        raw.pairwise_information(x[1:], y, 5, 7, None)
    orders = torch.zeros(1, 30, dtype=torch.int64, device=device)
    with pytest.raises(RuntimeError, match="observed must be contiguous float64"):
        raw.permuted_information(x, y, 5, 7, orders, observed[:3])
    with pytest.raises(RuntimeError, match="permutations must be contiguous int64"):
        raw.permuted_information(x, y, 5, 7, orders[:, 1:], observed)
    values, limits = torch.zeros(3, 4, device=device), torch.zeros(3, 2, device=device)
    with pytest.raises(RuntimeError, match=r"range must be a contiguous \[1 or 4, 2\]"):
        raw.digitize(values, 5, limits[1:], True, "uniform")
    with pytest.raises(RuntimeError, match="rule must be uniform or notebook, got x"):
        raw.digitize(values, 5, None, True, "x")
    with pytest.raises(RuntimeError, match=r"edges must be \[1 or 4, m\], got 3 rows"):
        raw.digitize_edges(values, limits)
    with pytest.raises(RuntimeError, match="x and y must have one shape"):
        raw.binned_histogram(values, values[1:], 5, None, None, "uniform")


def test_bad_input() -> None:
    x, y = sides((30, 4, 4), 5, 7)
    with pytest.raises(TypeError, match="x_codes must be uint8 or int16, got torch.int64"):
        ops.joint_histogram(x.long(), y, 5, 7, "all")
    with pytest.raises(TypeError, match="y_codes must be a tensor, got list"):
        ops.joint_histogram(x, [], 5, 7, "all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bins_y must be 2 to 32767, got 1"):
        ops.joint_histogram(x, y, 5, 1, "all")
    with pytest.raises(TypeError, match="bins_y must be an integer, got 2.5"):
        ops.joint_histogram(x, y, 5, 2.5, "all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bins_x must be at most 256 for uint8 codes, got 300"):
        ops.joint_histogram(x, y, 300, 7, "all")
    with pytest.raises(ValueError, match="pairing must be one of 'aligned', .*, got 'x'"):
        ops.joint_histogram(x, y, 5, 7, "x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"one shape to be aligned, got \(30, 3\) and \(30, 4\)"):
        ops.joint_histogram(x[:, :3], y, 5, 7, "aligned")
    with pytest.raises(ValueError, match="as many rows, got 30 and 29"):
        ops.pairwise_information(x, y[1:], 5, 7)
    with pytest.raises(
        ValueError, match="correction must be one of 'miller-madow', 'panzeri-treves'"
    ):
        ops.pairwise_information(x, y, 5, 7, "x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"x_codes must be \[n, d\], got shape \(30,\)"):
        ops.pairwise_information(x[:, 0], y, 5, 7)
    orders, observed = torch.zeros(2, 30, dtype=torch.int64), torch.zeros(4, 4).double()
    with pytest.raises(TypeError, match="permutations must be int64, got torch.int32"):
        ops.permuted_information(x, y, 5, 7, orders.int(), observed)
    with pytest.raises(ValueError, match=r"permutations must be \[p, 30\], got shape \(2, 29\)"):
        ops.permuted_information(x, y, 5, 7, orders[:, 1:], observed)
    with pytest.raises(ValueError, match=r"observed must be \[4, 4\], got shape \(3, 4\)"):
        ops.permuted_information(x, y, 5, 7, orders, observed[1:])
