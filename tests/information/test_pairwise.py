from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from modfast import (
    PairwiseInformation,
    entropy,
    joint_histogram,
    mutual_information,
    pairwise_mutual_information,
)


@pytest.mark.parametrize("rule", ["uniform", "quantile"])
def test_equals_scikit_learns_scores(rule: str, device: torch.device) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    from modfast import digitize

    torch.manual_seed(0)
    x = torch.randn(200, 3, device=device)
    y = torch.cat([x[:, :1] ** 2, torch.randn(200, 1, device=device)], dim=1)
    cx, cy = (digitize(each, 6, range="column", rule=rule).cpu() for each in (x, y))
    scores = {name: torch.empty(3, 2) for name in (None, "min", "geometric", "arithmetic", "max")}
    for i in range(3):
        for j in range(2):
            for name, table in scores.items():
                table[i, j] = (
                    metrics.mutual_info_score(cx[:, i], cy[:, j])
                    if name is None
                    else metrics.normalized_mutual_info_score(
                        cx[:, i], cy[:, j], average_method=name
                    )
                )
    for name, table in scores.items():
        found = pairwise_mutual_information(x, y, 6, rule=rule, normalized=name).mi
        assert found.dtype == torch.float64
        torch.testing.assert_close(found.cpu().float(), table, rtol=0, atol=1e-6)


def test_of_x_with_itself_is_symmetric_with_entropies_on_the_diagonal() -> None:
    torch.manual_seed(1)
    x = torch.randn(300, 5)
    found = pairwise_mutual_information(x, bins=7).mi
    torch.testing.assert_close(found, found.T, rtol=0, atol=1e-12)
    expected = entropy(x, 7, pairing="pairwise")
    torch.testing.assert_close(found.diagonal(), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(found, pairwise_mutual_information(x, x, 7).mi, rtol=0, atol=1e-12)
    vector = pairwise_mutual_information(x[:, 0], x, 7).mi
    torch.testing.assert_close(vector, found[:1], rtol=0, atol=1e-12)


def test_constants_share_nothing_normalized() -> None:
    x = torch.stack([torch.zeros(20), torch.arange(20.0)], dim=1)
    for name in ("min", "geometric", "arithmetic", "max"):
        found = pairwise_mutual_information(x, bins=4, normalized=name).mi
        torch.testing.assert_close(found, torch.tensor([[0.0, 0], [0, 1]]).double())


@pytest.mark.parametrize("correction", ["miller-madow", "panzeri-treves", "shuffle"])
def test_corrections_are_those_of_mutual_information(correction: str) -> None:
    torch.manual_seed(2)
    x, y = torch.randn(80, 2), torch.randn(80, 3)
    options = {"bins": 5, "correction": correction, "seed": 3}
    expected = mutual_information(x, y, pairing="pairwise", **options)
    assert torch.equal(pairwise_mutual_information(x, y, **options).mi, expected)


def test_nulls_are_permutations_of_ys_samples() -> None:
    torch.manual_seed(3)
    x, y = torch.randn(60, 2), torch.randn(60, 3)
    y[:, 1] += x[:, 0]
    result = pairwise_mutual_information(x, y, 5, n_permutations=40, seed=11)
    assert isinstance(result, PairwiseInformation)
    assert pairwise_mutual_information(x, y, 5).p_value is None
    generator = torch.Generator().manual_seed(11)
    orders = [torch.randperm(60, generator=generator) for _ in range(40)]
    plain = pairwise_mutual_information(x, y, 5).mi
    nulls = torch.stack([pairwise_mutual_information(x, y[order], 5).mi for order in orders])
    torch.testing.assert_close(result.mi, plain)
    torch.testing.assert_close(result.null_mean, nulls.mean(0))
    torch.testing.assert_close(result.null_std, nulls.std(0))
    expected = (1 + (nulls >= plain - 1e-12).sum(0)).double() / 41
    torch.testing.assert_close(result.p_value, expected)
    assert result.p_value[0, 1] == 1 / 41
    again = pairwise_mutual_information(x, y, 5, n_permutations=40, seed=11)
    assert torch.equal(again.p_value, result.p_value)
    shuffled = pairwise_mutual_information(
        x, y, 5, n_permutations=40, seed=11, correction="shuffle", normalized="max"
    )
    top = torch.maximum(
        entropy(x, 5, pairing="pairwise")[:, None], entropy(y, 5, pairing="pairwise")
    )
    torch.testing.assert_close(shuffled.mi, (plain - nulls.mean(0)) / top)
    torch.testing.assert_close(shuffled.null_mean, nulls.mean(0) / top)
    assert pairwise_mutual_information(x, y, n_permutations=1).null_std.isnan().all()


def test_q_values_are_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    torch.manual_seed(4)
    x, y = torch.randn(100, 6), torch.randn(100, 5)
    y[:, :3] += x[:, :3]
    result = pairwise_mutual_information(x, y, 4, n_permutations=99, seed=0)
    expected = stats.false_discovery_control(result.p_value.flatten().numpy())
    torch.testing.assert_close(result.q_value.flatten(), torch.from_numpy(expected))
    own = pairwise_mutual_information(x, bins=4, n_permutations=99, seed=0)
    upper = torch.triu_indices(6, 6, 1).unbind()
    expected = stats.false_discovery_control(own.p_value[upper].numpy())
    torch.testing.assert_close(own.q_value[upper], torch.from_numpy(expected))
    assert torch.equal(own.q_value, own.q_value.T)
    assert torch.equal(own.p_value, own.p_value.T)
    assert torch.equal(own.p_value.diagonal(), own.q_value.diagonal())
    alone = pairwise_mutual_information(x[:, 0], bins=4, n_permutations=9, seed=0)
    assert alone.q_value.item() == alone.p_value.item() == 0.1


def test_p_values_are_uniform_under_the_null() -> None:
    stats = pytest.importorskip("scipy.stats")
    torch.manual_seed(5)
    # Each pair of its own samples, so that p-values are independent.
    found = [
        pairwise_mutual_information(
            torch.rand(200), torch.rand(200), 8, n_permutations=199, seed=seed
        ).p_value.item()
        for seed in range(300)
    ]
    # p-values of 199 permutations lie on a grid of 1/200; spread over its cells they are uniform.
    spread = torch.tensor(found) - torch.rand(300) / 200
    assert stats.kstest(spread.numpy(), "uniform").pvalue > 0.01
    assert stats.kstest(spread.numpy() ** 1.5, "uniform").pvalue < 0.01


def test_power_grows_with_known_information() -> None:
    torch.manual_seed(6)
    power = []
    for nats in (0.005, 0.03, 0.1):
        rho = math.sqrt(1 - math.exp(-2 * nats))
        x, z = torch.randn(2, 400, 20)
        y = rho * x + math.sqrt(1 - rho**2) * z
        result = pairwise_mutual_information(x, y, 6, rule="quantile", n_permutations=99, seed=0)
        power.append(float((result.p_value.diagonal() <= 0.05).double().mean()))
        others = result.p_value[~torch.eye(20, dtype=torch.bool)]
        assert float((others <= 0.05).double().mean()) < 0.09
    assert power[0] < 0.3 < power[1] < 0.95 < power[2]


def test_counts_do_not_saturate() -> None:
    # float32 counters would stop at 2^24.
    codes = torch.zeros(2**24 + 3, 1, dtype=torch.uint8)
    codes[:2] = 1
    assert joint_histogram(codes, codes, 2).tolist() == [[2**24 + 1, 0], [0, 2]]
    p = 2 / (2**24 + 3)
    expected = -p * math.log(p) - (1 - p) * math.log1p(-p)
    found = pairwise_mutual_information(codes, bins=2).mi.item()
    assert found == pytest.approx(expected, rel=1e-6)


def test_for_one_release_the_result_serves_as_the_tensor_it_was() -> None:
    torch.manual_seed(7)
    found = pairwise_mutual_information(torch.randn(50, 3), torch.randn(50, 4), 5)
    for use in (
        lambda each: each.sum(),
        lambda each: each[0] + 1,
        lambda each: 1 - 2 * each,
        lambda each: torch.stack([each, each]),
        lambda each: each.T @ each,
        lambda each: torch.from_numpy(np.asarray(each)),
        lambda each: list(each)[2],
        lambda each: torch.tensor(len(each)),
        lambda each: each > 0.1,
        lambda each: torch.einsum("ij,ij->", each, each.clone()),
    ):
        with pytest.warns(DeprecationWarning, match=r"a tensor is now PairwiseInformation\.mi"):
            value = use(found)
        assert torch.equal(value, use(found.mi))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        found.nothing  # noqa: B018


def test_bad_input() -> None:
    x = torch.randn(10, 2)
    for options, error, message in (
        ({"rule": "notebook"}, ValueError, "rule must be one of .*, got 'notebook'"),
        ({"normalized": "sum"}, ValueError, "normalized must be one of .*, got 'sum'"),
        ({"correction": "none"}, ValueError, "correction must be one of .*, got 'none'"),
        ({"n_permutations": -1}, ValueError, "n_permutations must be at least 0, got -1"),
        ({"n_permutations": 2.0}, TypeError, "n_permutations must be an integer, got 2.0"),
    ):
        with pytest.raises(error, match=message):
            pairwise_mutual_information(x, **options)
    with pytest.raises(ValueError, match="x must be .* not empty"):
        pairwise_mutual_information(x[:0])
