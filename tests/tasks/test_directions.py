from __future__ import annotations

import numpy as np
import pytest
import torch

from modfast import (
    distinct_gradients,
    principal_components,
    task_capture,
    task_similarity,
    variance_explained,
)


@pytest.mark.parametrize("shape", [(2, 1), (50, 7), (5, 40), (9, 9)])
def test_principal_components_are_those_of_the_covariance(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape).double() * torch.rand(shape[1]).double() + 3
    components, variances = principal_components(x)
    k = min(shape)
    assert components.shape == (k, shape[1])
    torch.testing.assert_close(components @ components.T, torch.eye(k).double())
    covariance = np.atleast_2d(np.cov(x.numpy(), rowvar=False))
    largest = np.linalg.eigvalsh(covariance)[::-1][:k]
    np.testing.assert_allclose(variances, largest, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        covariance @ components.numpy().T, components.numpy().T * variances.numpy(), atol=1e-12
    )
    assert (components.gather(1, components.abs().argmax(1, keepdim=True)) > 0).all()
    torch.testing.assert_close(variance_explained(components, [x])[0], variances)
    assert principal_components(x.float())[1].dtype == torch.float32


def test_variances_along_components_of_any_length() -> None:
    torch.manual_seed(0)
    components = torch.randn(4, 6)
    components[2] = 0
    activations = [torch.randn(30, 6), torch.randn(9, 6) + 5]
    found = variance_explained(components, activations)
    assert found.dtype == torch.float64
    for i, a in enumerate(activations):
        for j, component in enumerate(components.double().numpy()):
            unit = component / max(np.linalg.norm(component), 1e-30)
            wanted = np.var(a.double().numpy() @ unit, ddof=1)
            assert float(found[i, j]) == pytest.approx(wanted, rel=1e-9, abs=1e-15)
    stacked = torch.stack([activations[0]] * 2)
    assert torch.equal(variance_explained(components, stacked)[1], found[0])


def test_capture_by_its_formula() -> None:
    torch.manual_seed(0)
    variances, norms = torch.rand(5, 3, 7).double(), torch.rand(5, 7).double()
    found = task_capture(variances, norms)
    for i in range(5):
        shares = variances[i].max(0).values / variances[i].sum(0)
        wanted = (shares * norms[i]).sum() / norms[i].sum()
        assert float(found[i]) == pytest.approx(float(wanted), rel=1e-12)
        assert torch.equal(task_capture(variances[i], norms[i]), found[i])
    one, two = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    assert task_capture(one, torch.ones(2)) == 1
    assert task_capture(two, torch.ones(2)) == 0.5
    # A direction without variance says nothing; without any, nothing can be said.
    still = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert task_capture(still, torch.ones(2)) == 0.5
    assert task_capture(0 * still, torch.ones(2)).isnan()


def test_similarity() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(5, 8).double(), torch.randn(3, 8).double()
    a = a[[0, 1, 1, 1, 2, 3, 4, 4]]
    left, right = distinct_gradients(a), distinct_gradients(torch.cat([b, 0 * b[:1]]))
    found = task_similarity(left, right)
    assert found.matrix.shape == (5, 4)
    for i, u in enumerate(left.directions):
        for j, v in enumerate(right.directions):
            assert float(found.matrix[i, j]) == pytest.approx(float(u @ v), abs=1e-15)
    mean_a, mean_b = a.mean(0), b.sum(0) / 4
    wanted = mean_a @ mean_b / mean_a.norm() / mean_b.norm()
    assert float(found.cosine) == pytest.approx(float(wanted), rel=1e-9)
    nothing = distinct_gradients(torch.zeros(3, 8))
    assert task_similarity(left, nothing).cosine == 0
    assert not task_similarity(left, nothing).matrix.any()
    assert float(task_similarity(left, left).cosine) == pytest.approx(1)


def test_bad_input() -> None:
    x, norms = torch.ones(3, 2), torch.ones(2)
    with pytest.raises(ValueError, match=r"x must have shape \[n, d\] with n at least 2"):
        principal_components(x[:1])
    with pytest.raises(TypeError, match="x must be a floating tensor, got list"):
        principal_components([[1.0], [2.0]])
    with pytest.raises(ValueError, match="x must be finite"):
        principal_components(x / 0)
    with pytest.raises(ValueError, match=r"activations_by_task\[1\] must have the components' 2"):
        variance_explained(x, [x, torch.ones(3, 3)])
    with pytest.raises(ValueError, match=r"activations_by_task\[0\] must have shape .*at least 2"):
        variance_explained(x, [x[:1]])
    with pytest.raises(ValueError, match="activations_by_task must hold at least one task"):
        variance_explained(x, [])
    with pytest.raises(ValueError, match=r"got \[3, 2\] and \[3\]"):
        task_capture(x, torch.ones(3))
    with pytest.raises(ValueError, match="norms must be at least 0, got -1.0"):
        task_capture(x, -norms)
    with pytest.raises(ValueError, match="variances must be finite"):
        task_capture(x / 0, norms)
    with pytest.raises(TypeError, match="norms must be a floating tensor"):
        task_capture(x, norms.long())
    found = distinct_gradients(x)
    with pytest.raises(ValueError, match="gradients of one site, got 2 and 1 features"):
        task_similarity(found, distinct_gradients(x[:, :1]))
    with pytest.raises(TypeError, match="b must be DistinctGradients, got Tensor"):
        task_similarity(found, x)
