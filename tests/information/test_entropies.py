from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from modfast import (
    conditional_entropy,
    entropy,
    joint_entropy,
    joint_histogram,
    mutual_information,
    pairwise_mutual_information,
)

FOUR = (entropy, joint_entropy, conditional_entropy, mutual_information)


def plug_in(*counts: np.ndarray) -> float:
    """-sum p log p of a table, by the definition."""
    p = np.concatenate([each.ravel() for each in counts]) / sum(each.sum() for each in counts)
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def numpy_table(x: Tensor, y: Tensor, bins: int, pairing: str) -> np.ndarray:
    """Pooled counts by numpy alone, with edges of the whole tensors."""
    edges = [np.histogram_bin_edges(each.cpu(), bins) for each in (x, y)]
    if pairing == "aligned":
        pairs = [(j, j) for j in range(x.shape[1])]
    else:
        pairs = [(i, j) for i in range(x.shape[1]) for j in range(y.shape[1])]
    tables = [np.histogram2d(x[:, i].cpu(), y[:, j].cpu(), edges)[0] for i, j in pairs]
    return np.sum(tables, axis=0).astype(np.int64)


@pytest.mark.parametrize("pairing", ["aligned", "all"])
@pytest.mark.parametrize("bins", [2, 10, 40])
def test_pooled_counts_and_entropies_are_numpys(
    pairing: str, bins: int, device: torch.device
) -> None:
    torch.manual_seed(bins)
    x = torch.randn(200, 4, dtype=torch.float64, device=device)
    y = x + torch.randn(200, 4, dtype=torch.float64, device=device)
    if pairing == "all":
        y = y[:, :3]
    table = numpy_table(x, y, bins, pairing)
    np.testing.assert_array_equal(joint_histogram(x, y, bins, pairing=pairing).cpu(), table)
    h_x, h_y, h_xy = plug_in(table.sum(1)), plug_in(table.sum(0)), plug_in(table)
    for found, expected in (
        (entropy(x, bins, pairing=pairing), h_x),
        (entropy(y, bins, pairing=pairing), h_y),
        (joint_entropy(x, y, bins, pairing=pairing), h_xy),
        (conditional_entropy(x, y, bins, pairing=pairing), h_xy - h_y),
        (mutual_information(x, y, bins, pairing=pairing), h_x + h_y - h_xy),
    ):
        assert found.dtype == torch.float64
        assert found.shape == ()
        assert float(found) == pytest.approx(expected, abs=1e-12)


def test_pairs_are_those_of_their_columns() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(150, 3), torch.rand(150, 2)
    y[:, 0] += x[:, 1]
    options = {"bins": 6, "pairing": "pairwise"}
    h_x = entropy(x, **options)
    for i in range(3):
        assert h_x[i] == pytest.approx(float(entropy(x[:, i], 6)), abs=1e-12)
        for j in range(2):
            for function in FOUR[1:]:
                alone = float(function(x[:, i], y[:, j], 6))
                assert float(function(x, y, **options)[i, j]) == pytest.approx(alone, abs=1e-12)
            table = joint_histogram(x, y, **options)[i, j]
            assert torch.equal(table, joint_histogram(x[:, i], y[:, j], 6))


@pytest.mark.parametrize("rule", ["uniform", "quantile"])
@pytest.mark.parametrize("pairing", ["aligned", "all", "pairwise"])
@pytest.mark.parametrize("correction", [None, "miller-madow", "panzeri-treves"])
def test_identities(rule: str, pairing: str, correction: str | None) -> None:
    if pairing == "all" and correction is not None:
        pytest.skip("refused, see below")
    torch.manual_seed(1)
    x = torch.randn(300, 3)
    y = torch.where(torch.rand(300, 3) < 0.5, x, torch.randn(300, 3))
    options = {"bins": 7, "rule": rule, "pairing": pairing, "correction": correction}
    h_x, h_y = entropy(x, **options), entropy(y, **options)
    if pairing == "pairwise":
        h_x, h_y = h_x[:, None], h_y[None, :]
    joint, given = joint_entropy(x, y, **options), conditional_entropy(x, y, **options)
    information = mutual_information(x, y, **options)
    close = {"rtol": 0, "atol": 1e-9}
    torch.testing.assert_close(joint, given + h_y, **close)
    torch.testing.assert_close(information, h_x - given, **close)
    torch.testing.assert_close(information, h_x + h_y - joint, **close)
    turned = mutual_information(y, x, **options)
    if correction != "panzeri-treves":  # Its relevant bins are those of x given y.
        torch.testing.assert_close(information, turned.T if turned.dim() else turned, **close)
    if correction is None:
        assert (information >= 0).all()
        own = mutual_information(x, x, **options)
        if pairing == "pairwise":
            own = own.diagonal()
        if pairing != "all":
            torch.testing.assert_close(own, entropy(x, **options), **close)


def test_corrections_are_their_formulas() -> None:
    torch.manual_seed(2)
    x, y = torch.randint(0, 5, (60,)), torch.randint(0, 5, (60,))
    x[x == 3] = 2  # An empty bin.
    table = joint_histogram(x, y, 5)
    k_x, k_y, k_xy = (int((c > 0).sum()) for c in (table.sum(1), table.sum(0), table))
    bias = (k_xy - k_x - k_y + 1) / (2 * 60)
    plain = mutual_information(x, y, 5)
    corrected = mutual_information(x, y, 5, correction="miller-madow")
    assert float(plain - corrected) == pytest.approx(bias, abs=1e-12)
    found = entropy(x, 5, correction="miller-madow") - entropy(x, 5)
    assert float(found) == pytest.approx((4 - 1) / 120, abs=1e-12)
    nulls = [
        mutual_information(x, y[torch.randperm(60, generator=g)], 5)
        for g in [torch.Generator().manual_seed(7)]
        for _ in range(100)
    ]
    corrected = mutual_information(x, y, 5, correction="shuffle", seed=7)
    assert float(plain - corrected) == pytest.approx(float(torch.stack(nulls).mean()), abs=1e-12)


@pytest.mark.parametrize("correction", ["miller-madow", "panzeri-treves", "shuffle"])
def test_corrections_take_the_bias_away(correction: str) -> None:
    # 200 seeds at once: column j of x against column j of y, found on the diagonal of 200 blocks.
    torch.manual_seed(3)
    x, y = torch.rand(1000, 200), torch.rand(1000, 200)
    bias, rest = [], []
    for start in range(0, 200, 20):
        a, b = x[:, start : start + 20], y[:, start : start + 20]
        bias.append(pairwise_mutual_information(a, b, 8).mi.diagonal())
        rest.append(
            pairwise_mutual_information(a, b, 8, correction=correction, seed=start).mi.diagonal()
        )
    assert torch.cat(bias).mean() == pytest.approx(7 * 7 / 2000, rel=0.1)
    assert abs(torch.cat(rest).mean()) < 0.05 * torch.cat(bias).mean()


@pytest.mark.parametrize("pairing", ["aligned", "all"])
def test_shuffles_take_the_bias_of_pooled_columns_away(pairing: str) -> None:
    torch.manual_seed(4)
    found = []
    for seed in range(10):
        x, y = torch.randn(200, 3), torch.randn(200, 3)
        x[:, 1] += 5  # What the columns' means alone say is no information of the samples.
        y[:, 1] += 5
        options = {"bins": 8, "pairing": pairing}
        plain = mutual_information(x, y, **options)
        found.append(mutual_information(x, y, correction="shuffle", seed=seed, **options) / plain)
    assert abs(torch.stack(found).mean()) < 0.05


def test_gaussians_have_their_information() -> None:
    torch.manual_seed(5)
    for rho in (0.0, 0.5, 0.8):
        x, z = torch.randn(2, 200_000, dtype=torch.float64)
        y = rho * x + (1 - rho**2) ** 0.5 * z
        known = -0.5 * np.log(1 - rho**2)
        found = mutual_information(x, y, 40, rule="quantile", correction="miller-madow")
        assert float(found) == pytest.approx(known, abs=0.012)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_threads_do_not_matter(dtype: torch.dtype, n_threads: int) -> None:
    x = torch.linspace(-3, 3, 40_000, dtype=dtype).sin().reshape(-1, 8)
    y = (x * 5).cos()
    counts = [joint_histogram(x, y, 12, pairing=pairing) for pairing in ("aligned", "all")]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    single = [joint_histogram(x, y, 12, pairing=pairing) for pairing in ("aligned", "all")]
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(counts, single, strict=True))


def test_mixed_types_and_codes() -> None:
    torch.manual_seed(6)
    x, y = torch.randn(100, 2), torch.randn(100, 2)
    codes = (y > 0).long()
    expected = joint_histogram((x > 0).long(), codes, 2)
    limits = (-9.0, 9.0)
    assert torch.equal(joint_histogram(x, y.double(), 2, range=limits), expected)
    ones = torch.full((2,), 9.0)
    assert torch.equal(joint_histogram(x, y, 2, range=(-ones, ones)), expected)
    assert torch.equal(joint_histogram((x > 0).int(), codes, 2), expected)
    table = joint_histogram(x, codes, 2)
    assert torch.equal(table.sum(0), codes.flatten().bincount())


def test_constants_tell_nothing() -> None:
    x, y = torch.randn(50, 2), torch.full((50, 2), 3.0)
    for pairing in ("aligned", "all", "pairwise"):
        assert mutual_information(x, y, pairing=pairing).abs().max() < 1e-12
        assert entropy(y, pairing=pairing).abs().max() < 1e-12


@pytest.mark.parametrize("function", [*FOUR[1:], joint_histogram, pairwise_mutual_information])
def test_bad_pairs(function: object) -> None:
    assert callable(function)
    x, y = torch.randn(10, 2), torch.randn(10, 2)
    with pytest.raises(ValueError, match="same samples, got 10 and 9 rows"):
        function(x, y[:9])
    with pytest.raises(ValueError, match="y must not require grad"):
        function(x, y.requires_grad_())
    if function is not pairwise_mutual_information:
        with pytest.raises(ValueError, match="'aligned', got 2 and 1; pairing='all'"):
            function(x, y.detach()[:, :1])
        with pytest.raises(ValueError, match="pairing must be one of .*, got 'each'"):
            function(x, y, pairing="each")
    with pytest.raises(ValueError, match="bins must be from 2"):
        function(x, y, 1)


def test_bad_corrections() -> None:
    x, y = torch.randn(10, 2), torch.randn(10, 2)
    for function in FOUR[1:]:
        with pytest.raises(ValueError, match="correction must be one of .*, got 'jackknife'"):
            function(x, y, correction="jackknife")
        with pytest.raises(ValueError, match="None or 'shuffle' with pairing='all', got 'miller"):
            function(x, y, pairing="all", correction="miller-madow")
        with pytest.raises(TypeError, match="seed must be an integer, got 0.5"):
            function(x, y, correction="shuffle", seed=0.5)
    with pytest.raises(ValueError, match="must not be 'shuffle' for an entropy"):
        entropy(x, correction="shuffle")
    with pytest.raises(ValueError, match="pairing must be one of"):
        entropy(x, pairing="each")  # type: ignore[arg-type]
