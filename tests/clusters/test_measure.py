from __future__ import annotations

import pytest
import torch
from torch import Tensor

from modfast import Clusters, clusterability


def test_equals_the_definition(device: torch.device) -> None:
    weight = torch.randn(30, 20, dtype=torch.float64, device=device)
    clusters = Clusters.equal(30, 20, 4)
    squares = weight.square()
    expected = squares[clusters.mask().to(device)].sum() / squares.sum()
    torch.testing.assert_close(clusterability(weight, clusters), expected)
    torch.testing.assert_close(clusterability(weight, clusters.to(device)), expected)


def test_random_weights_have_about_one_over_k() -> None:
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    for k in (2, 4, 8):
        assert abs(clusterability(weight, Clusters.equal(256, 256, k)).item() - 1 / k) < 0.01


def test_block_diagonal_is_one_and_its_complement_zero() -> None:
    clusters = Clusters.equal(6, 9, 3)
    inside = clusters.mask().float()
    assert clusterability(inside, clusters) == 1
    assert clusterability(1 - inside, clusters) == 0
    assert clusterability(torch.zeros(6, 9), clusters) == 0


def test_convolution_positions_belong_to_their_channel() -> None:
    weight = torch.randn(6, 4, 3, 3, dtype=torch.float64)
    clusters = Clusters.equal(6, 4, 2)
    inside = weight.square().sum((2, 3))[clusters.mask()].sum() / weight.square().sum()
    torch.testing.assert_close(clusterability(weight, clusters), inside)


@pytest.mark.parametrize("fullgraph", [True])
@pytest.mark.slow
def test_compiles_to_one_graph(fullgraph: bool) -> None:
    clusters = Clusters.equal(8, 8, 2)

    @torch.compile(fullgraph=fullgraph)
    def compiled(weight: Tensor) -> Tensor:
        return 2 * clusterability(weight, clusters)

    weight = torch.randn(8, 8, requires_grad=True)
    compiled(weight).backward()
    eager = weight.detach().clone().requires_grad_()
    (2 * clusterability(eager, clusters)).backward()
    torch.testing.assert_close(weight.grad, eager.grad)


def test_bad_input() -> None:
    clusters = Clusters.equal(4, 4, 2)
    with pytest.raises(
        ValueError, match=r"4 outputs and 4 inputs do not fit weight of shape \(4, 5\)"
    ):
        clusterability(torch.ones(4, 5), clusters)
    with pytest.raises(ValueError, match="at least two dimensions"):
        clusterability(torch.ones(4), clusters)
    with pytest.raises(TypeError, match="got torch.int64"):
        clusterability(torch.ones(4, 4).long(), clusters)
    with pytest.raises(TypeError, match="weight must be a tensor, got list"):
        clusterability([[1.0]], clusters)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="clusters must be a Clusters, got Tensor"):
        clusterability(torch.ones(4, 4), clusters.mask())  # type: ignore[arg-type]
    assert clusterability(torch.full((4, 4), float("nan")), clusters).isnan()
