from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from modfast import (
    ModularityMeasures,
    conditional_entropy,
    digitize,
    entropy,
    modularity_measures,
    mutual_information,
    soft_mutual_information,
)

NAMES = ("fc1", "fc2", "fc3")


def network(n: int = 300, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    torch.manual_seed(0)
    fc1 = torch.randn(n, 12)
    fc2 = torch.randn(n, 9)
    fc2[:, :4] += 2 * fc1[:, :4]
    return {"fc1": fc1.to(device), "fc2": fc2.to(device), "fc3": fc2[:, 3:8].exp().to(device)}


@pytest.mark.parametrize("rule", ["uniform", "quantile"])
def test_equals_the_definition(rule: str, device: torch.device) -> None:
    sites = network(device=device)
    modules = [{"fc1": [3, 0, 7], "fc2": [2], "fc3": [0, 1, 2, 3, 4]}]
    modules.append({"fc1": torch.tensor([1]), "fc2": torch.arange(8), "fc3": [2, 4]})
    found = modularity_measures(sites, modules, bins=6, rule=rule)
    assert found.pairs == (("fc1", "fc2"), ("fc2", "fc3"), ("fc1", "fc3"))
    codes = {name: digitize(each, 6, rule=rule).long() for name, each in sites.items()}
    given = partial(conditional_entropy, bins=6, pairing="all")
    for row, module in enumerate(modules):
        for column, (first, second) in enumerate(found.pairs):
            inside = torch.zeros(codes[first].shape[1], dtype=torch.bool)
            inside[module[first]] = True
            target, layer = codes[second][:, module[second]], codes[first]
            rest = given(target, layer[:, ~inside])
            for measure, expected in (
                (found.c1, rest - entropy(target, 6)),
                (found.c2, given(target, layer) - given(target, layer[:, inside])),
                (found.c3, given(target, layer) - rest),
            ):
                assert measure.shape == (2, 3)
                assert float(measure[row, column]) == pytest.approx(float(expected), abs=1e-9)


def test_one_module_gives_one_value_per_pair() -> None:
    sites = network()
    module = {name: [0, 1, 2] for name in NAMES}
    single, listed = modularity_measures(sites, module), modularity_measures(sites, [module])
    assert single.c1.shape == single.c2.shape == single.c3.shape == (3,)
    assert torch.equal(single.c3, listed.c3[0])
    wanted = [("fc3", "fc1")]
    assert modularity_measures(sites, {**module, "fc3": [1]}, wanted).pairs == (("fc3", "fc1"),)
    two = {name: sites[name] for name in NAMES[:2]}
    assert modularity_measures(two, module).pairs == (("fc1", "fc2"),)


def test_a_module_that_is_one_differs_from_one_that_is_not() -> None:
    sites = {name: each for name, each in network(2000).items() if name != "fc3"}
    real = modularity_measures(sites, {"fc1": [0, 1, 2, 3], "fc2": [0, 1, 2, 3]})
    false = modularity_measures(sites, {"fc1": [4, 5, 6, 7], "fc2": [4, 5, 6, 7]})
    assert real.c2 > 10 * false.c2.abs()
    assert real.c3 < 0
    assert real.c2 - real.c3 > 0.01


def test_other_estimators_stand_in() -> None:
    sites = network()
    module = {name: [0, 1, 2] for name in NAMES}

    def estimate(x: Tensor, y: Tensor, scale: float = 2.0) -> Tensor:
        return scale * mutual_information(x[:, 0], y.sum(1))

    found = modularity_measures(sites, module, estimator=estimate, scale=2.0)
    x, y = sites["fc2"][:, :3], sites["fc1"]
    whole, inside, outside = estimate(x, y), estimate(x, y[:, :3]), estimate(x, y[:, 3:])
    torch.testing.assert_close(found.c1[0], -outside)
    torch.testing.assert_close(found.c2[0], inside - whole)
    torch.testing.assert_close(found.c3[0], outside - whole)


def test_soft_measures_converge_to_the_binned_ones() -> None:
    sites = {name: each.double() for name, each in network().items()}
    modules = [{name: [0, 1, 2] for name in NAMES}, {name: [4, 1] for name in NAMES}]
    hard = modularity_measures(sites, modules, bins=6)
    soft = modularity_measures(sites, modules, estimator="soft", bins=6, window=1e-9)
    for name in ("c1", "c2", "c3"):
        torch.testing.assert_close(getattr(soft, name), getattr(hard, name), rtol=0, atol=1e-9)
    limits = {"range": (-30.0, 30.0), "bins": 12, "window": 0.7}
    first = sites["fc2"][:, :3], sites["fc1"][:, 3:]
    expected = -soft_mutual_information(*first, pairing="all", **limits)
    found = modularity_measures(sites, modules, estimator="soft", **limits).c1[0, 0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_soft_measures_are_a_loss() -> None:
    sites = {name: each.requires_grad_() for name, each in network(50).items()}
    module = {name: [0, 1] for name in NAMES}
    modularity_measures(sites, module, estimator="soft").c2.sum().backward()
    assert all(each.grad is not None and each.grad.any() for each in sites.values())
    with pytest.raises(ValueError, match=r"activations\['fc1'\] must not require grad"):
        modularity_measures(sites, module)


MODULE = {name: [0, 1] for name in NAMES}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"activations": [torch.ones(2, 2)]}, TypeError, "must be a mapping, got list"),
        ({"activations": {"fc1": torch.randn(5, 3)}}, ValueError, "at least two sites"),
        (
            {"activations": {"fc1": torch.randn(5, 3), "fc2": torch.randn(6, 3)}},
            ValueError,
            r"same samples at each site, got \{'fc1': 5, 'fc2': 6\}",
        ),
        ({"units": 3}, TypeError, "units must be a mapping"),
        ({"units": []}, ValueError, "at least one module"),
        ({"units": [3]}, TypeError, "must be a mapping of sites to unit indices, got int"),
        ({"units": {"fc1": [0]}}, ValueError, "units must name units of site 'fc2'"),
        ({"units": {**MODULE, "fc2": [9]}}, ValueError, r"\['fc2'\] .* 0 to 8, got 9"),
        ({"units": {**MODULE, "fc2": [-1]}}, ValueError, "0 to 8, got -1"),
        ({"units": {**MODULE, "fc2": [1, 1]}}, ValueError, "must not repeat units, got 1"),
        ({"units": {**MODULE, "fc2": []}}, ValueError, "one or more unit indices"),
        ({"units": {**MODULE, "fc2": [0.5]}}, TypeError, "must be integer labels"),
        ({"units": {**MODULE, "fc2": range(9)}}, ValueError, "must leave out some unit"),
        ({"pairs": []}, ValueError, "pairs must hold at least one pair"),
        ({"pairs": ["fc1", "fc2"]}, TypeError, "pairs must be pairs of sites, got 'fc1'"),
        ({"pairs": [("fc1", "fc9")]}, ValueError, "no such site 'fc9'; did you mean: 'fc"),
        ({"estimator": "ksg"}, TypeError, "estimator must be 'binned', 'soft' or a function"),
        ({"estimator": lambda x, y: x}, ValueError, "estimator must give a scalar, got shape"),
        ({"bins": 1}, ValueError, "bins must be from 2"),
        ({"outside": "wrap"}, ValueError, "outside must be one of"),
    ],
)
def test_bad_input(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        modularity_measures(**{"activations": network(20), "units": MODULE, **arguments})


def test_values_that_are_not_finite_are_named() -> None:
    sites = network(20)
    sites["fc2"][3, 1] = float("nan")
    with pytest.raises(ValueError, match=r"activations\['fc2'\] must be finite, got 1 NaN"):
        modularity_measures(sites, MODULE)


def test_results_are_frozen() -> None:
    found = modularity_measures(network(20), MODULE)
    assert isinstance(found, ModularityMeasures)
    with pytest.raises(AttributeError):
        found.c1 = found.c2  # type: ignore[misc]
