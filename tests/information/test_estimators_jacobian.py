from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from modfast import gaussian_mutual_information, jacobian_mutual_information
from modfast.models import MLP


def by_determinants(covariance: np.ndarray, groups: list[list[int]]) -> float:
    """-1/2 (log|S| - sum log|S_b|)."""
    every = [unit for group in groups for unit in group]
    logs = [np.linalg.slogdet(covariance[np.ix_(g, g)])[1] for g in (every, *groups)]
    return -(logs[0] - sum(logs[1:])) / 2


def brute_force(model: nn.Module, inputs: Tensor, groups: list[list[int]]) -> float:
    """Sample by sample, by autograd; the mean."""
    found = []
    for sample in inputs:
        jacobian = torch.autograd.functional.jacobian(lambda s: model(s[None])[0].flatten(), sample)
        jacobian = jacobian.flatten(1).double()
        found.append(by_determinants((jacobian @ jacobian.T).numpy(), groups))
    return float(np.mean(found))


@pytest.mark.parametrize("units", [3, 8])
def test_a_linear_network_has_the_information_of_its_covariance(units: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 6), nn.Linear(6, units, bias=units == 3)).double()
    if units == 8:
        model = nn.Sequential(nn.Linear(9, units)).double()
    weights = [layer.weight.detach() for layer in model]
    whole = weights[1] @ weights[0] if units == 3 else weights[0]
    lists = [[0], [2, 1]] if units == 3 else [[0, 5], [2, 1, 3], [7]]
    site = str(len(model) - 1)
    found = jacobian_mutual_information(model, torch.randn(20, 9).double(), site, lists)
    expected = gaussian_mutual_information(y=lists, covariance=whole @ whole.T)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    single = jacobian_mutual_information(model.float(), torch.randn(20, 9), site, lists)
    torch.testing.assert_close(single, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("max_memory", [None, 1, 20_000])
@pytest.mark.parametrize("widths", [[6, 20, 5], [3, 20, 3]])
def test_jacobians_equal_brute_force(widths: list[int], max_memory: int | None) -> None:
    torch.manual_seed(0)
    d = widths[-1]
    model = nn.Sequential(
        nn.Linear(widths[0], widths[1]), nn.Tanh(), nn.Dropout(), nn.Linear(widths[1], d)
    ).double()
    groups = [[0], list(range(1, d))]
    inputs = torch.randn(13, widths[0], dtype=torch.float64)
    found = jacobian_mutual_information(model, inputs, "3", groups, max_memory=max_memory)
    assert model.training
    expected = brute_force(model.eval(), inputs, groups)
    assert float(found[0, 1]) == pytest.approx(expected, abs=1e-9)
    whole = jacobian_mutual_information(model, inputs, "3", range(d), total=True)
    expected = brute_force(model, inputs, [[unit] for unit in range(d)])
    assert float(whole) == pytest.approx(expected, abs=1e-9)


def test_sites_are_modules_by_default() -> None:
    """Two convolutions' channels, one of them worked on in place by what follows."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3, padding=1)
            self.act = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.a(x)).mean((2, 3)) + self.b(x**3).mean((2, 3))

    model, inputs = Net().double(), torch.randn(3, 1, 4, 4, dtype=torch.float64)
    found = jacobian_mutual_information(model, inputs, ["a", "b"])
    assert found.shape == (2, 2)
    assert (found.diagonal() == torch.inf).all()
    assert found[0, 1] == torch.inf  # 16 units of b know all 16 inputs
    values = model.state_dict()
    part = [range(4), range(4, 10)]
    found = jacobian_mutual_information(model, inputs, ["a", "b"], part)
    both = nn.ModuleList([model.a, model.b])

    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([both[0](x).flatten(1), both[1](x**3).flatten(1)], dim=1)

    expected = brute_force(Flat(), inputs, [list(each) for each in part])
    assert float(found[0, 1]) == pytest.approx(expected, abs=1e-9)
    assert all(torch.equal(values[name], each) for name, each in model.state_dict().items())


def test_batch_norm_and_known_units() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    inputs = torch.randn(6, 8)
    model(torch.randn(100, 8))
    found = jacobian_mutual_information(model, inputs, ["0", "2"])
    assert found[0, 1] == torch.inf  # the second layer is a function of the first
    covariance = model[0].weight @ model[0].weight.T
    expected = gaussian_mutual_information(y=[[0, 1], [2, 3]], covariance=covariance.detach())
    found = jacobian_mutual_information(model, inputs, "0", [[0, 1], [2, 3]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_bad_jacobians() -> None:
    torch.manual_seed(0)
    model, x = MLP([6, 8, 8, 3]), torch.randn(5, 6)
    call = jacobian_mutual_information
    with pytest.raises(ValueError, match="sites='fc9': no such module; did you mean: 'fc"):
        call(model, x, "fc9", [0, 1])
    with pytest.raises(TypeError, match="model must be a torch.nn.Module, got function"):
        call(lambda x: x, x, "fc3")
    with pytest.raises(ValueError, match="at least 2 groups, got 1"):
        call(model, x, "fc3")
    with pytest.raises(ValueError, match="of the 3 units there are, got 2"):
        call(model, x, "fc3", [0, 1])
    with pytest.raises(TypeError, match="a batch of inputs must be a tensor, .* got float"):
        call(model, [1.0], "fc3", [0, 1, 1])
    with pytest.raises(
        TypeError, match="inputs must be one tensor of floating values, got torch.int64"
    ):
        call(model, torch.ones(5, 6).long(), "fc3", [0, 1, 1])
    with pytest.raises(ValueError, match=r"inputs must be \[n, ...\] and not empty"):
        call(model, torch.ones(6), "fc3", [0, 1, 1])
    with pytest.raises(ValueError, match="inputs must be finite, got 1 of 30"):
        call(model, torch.where(torch.arange(30) == 7, torch.nan, 1.0).view(5, 6), "fc3", [0, 1, 1])
    with pytest.raises(ValueError, match="max_memory must be at least 1"):
        call(model, x, "fc3", [0, 1, 1], max_memory=0)
    # Seven units of six inputs; units that a ReLU holds at 0.
    with pytest.raises(ValueError, match="module 0 of partition .* at sample 0: .* place 6"):
        call(model, x, "fc1", [[*range(7)], [7]])
    model.fc1.bias.data.fill_(1000)
    x[3] = -1e6 * model.fc1.weight.detach()[2]
    with pytest.raises(ValueError, match="module 1 of partition .* at sample 3: .* place 0"):
        call(model, x, "act1", [[0], [2]], max_memory=1)


def test_information_through_a_channel() -> None:
    """y = x + noise: 1/2 log(1 + snr), with the noise an input of the network."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    model[0].weight.data.copy_(torch.tensor([[1.0, 0.0], [2.0, 0.5]]))
    found = jacobian_mutual_information(model, torch.randn(4, 2), "0", [0, 1])
    assert float(found[0, 1]) == pytest.approx(math.log(17) / 2, abs=1e-6)


def test_a_module_registered_twice_keeps_its_parameters() -> None:
    """FAULTS AA: torch.func.functional_call would leave tensors without gradient in their place."""
    torch.manual_seed(0)
    model = MLP([6, 5, 3]).double()
    model.act1, model.again = nn.Tanh(), model.fc2
    inputs = torch.randn(4, 6, dtype=torch.float64)
    found = jacobian_mutual_information(model, inputs, "fc2", [[0], [1, 2]])
    assert float(found[0, 1]) == pytest.approx(brute_force(model, inputs, [[0], [1, 2]]), abs=1e-9)
    assert model.again.weight is model.fc2.weight
    assert all(type(each) is nn.Parameter and each.requires_grad for each in model.parameters())
    assert all(each.grad is None for each in model.parameters())
    assert not model.fc2._forward_hooks
    model(inputs).sum().backward()
    assert model.fc2.weight.grad is not None


def test_hooks_streams_and_modes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    model[1].register_forward_hook(lambda m, a, o: o * torch.arange(1.0, 6.0) + a[0])
    inputs, groups = torch.randn(9, 6, dtype=torch.float64), [[0], [1, 2]]
    wanted = brute_force(model, inputs, groups)
    targets = torch.zeros(9).long()
    batches = list(zip(inputs.split(4), targets.split(4), strict=True))
    for given in (inputs, (inputs,), batches):
        found = jacobian_mutual_information(model, given, "2", groups)
        assert float(found[0, 1]) == pytest.approx(wanted, abs=1e-9)
    with torch.inference_mode():
        inside = jacobian_mutual_information(model, inputs.clone(), "2", groups)
        own = inputs.clone()
    assert float(inside[0, 1]) == pytest.approx(wanted, abs=1e-9)
    made_in_it = jacobian_mutual_information(model, own, "2", groups)
    assert float(made_in_it[0, 1]) == pytest.approx(wanted, abs=1e-9)
    # Another place for the same units, and what goes into them.
    place = jacobian_mutual_information(model, inputs, "2:input", [[0, 3, 4], [1, 2]])
    assert float(place[0, 1]) == pytest.approx(
        brute_force(model[:2], inputs, [[0, 3, 4], [1, 2]]), abs=1e-9
    )
    with pytest.raises(ValueError, match="inputs must fit the model, .*mat1 and mat2"):
        jacobian_mutual_information(model, inputs[:, :5], "2", groups)
    with pytest.raises(ValueError, match="inputs must fit the model"):
        jacobian_mutual_information(model, inputs.float(), "2", groups)


def test_autocast_is_the_models_business_alone() -> None:
    """FAULTS J: the network may run in bfloat16, but what is measured is measured in float64."""
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(6, 3)), torch.randn(4, 6)
    wanted = jacobian_mutual_information(model, inputs, "0", [[0], [1, 2]])
    with torch.autocast("cpu", torch.bfloat16):
        found = jacobian_mutual_information(model, inputs, "0", [[0], [1, 2]])
    rounded = model[0].weight.detach().bfloat16().double()
    expected = gaussian_mutual_information(y=[[0], [1, 2]], covariance=rounded @ rounded.T)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.01)
