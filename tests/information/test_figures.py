from __future__ import annotations

import numpy as np
import pytest
import torch

from modfast import (
    JointHistogram,
    ModularityMeasures,
    modularity_measures,
    pairwise_mutual_information,
    plots,
)

pytest.importorskip("plotly", reason="plotly is not installed")


def test_pairs_above_alpha_are_blank() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(100, 3), torch.randn(100, 2)
    y[:, 0] = x[:, 2]
    result = pairwise_mutual_information(x, y, 5, n_permutations=99, seed=0)
    (heat,) = result.plot(alpha=0.1).data
    assert heat.z.shape == (3, 2)
    blank = np.isnan(heat.z)
    np.testing.assert_array_equal(blank, result.q_value > 0.1)
    np.testing.assert_array_equal(heat.z[~blank], result.mi.numpy()[~blank])
    assert not blank[2, 0]
    np.testing.assert_array_equal(heat.customdata[..., 0], result.p_value)
    plain = pairwise_mutual_information(x, y, 5)
    np.testing.assert_array_equal(plain.plot().data[0].z, result.mi)
    with pytest.raises(ValueError, match="alpha must be between 0 and 1, got 2"):
        result.plot(alpha=2)


def test_joint_counts_and_matrices_of_pairs() -> None:
    x, y = torch.randn(100, 3), torch.randn(100, 3)
    result = JointHistogram(4, (-3.0, 3.0)).update(x, y).compute()
    figure = result.plot()
    np.testing.assert_array_equal(figure.data[0].z, result.counts)
    assert f"{float(result.mutual_information):.4f}" in figure.layout.title.text
    pairs = JointHistogram(4, (-3.0, 3.0), pairing="pairwise", features=(3, 3))
    result = pairs.update(x, y).compute()
    np.testing.assert_array_equal(result.plot().data[0].z, result.mutual_information)


def test_trained_against_untrained() -> None:
    torch.manual_seed(0)
    sites = {name: torch.randn(50, 6) for name in ("a", "b", "c")}
    modules = [{name: torch.randperm(6)[:2] for name in sites} for _ in range(4)]
    trained = modularity_measures(sites, modules)
    untrained = modularity_measures({name: each**3 for name, each in sites.items()}, modules)
    maps = trained.plot(untrained).data
    for heat, measure in zip(maps, ("c1", "c2", "c3"), strict=True):
        rows = torch.stack([getattr(each, measure).sum(0) for each in (trained, untrained)])
        np.testing.assert_array_equal(heat.z, rows)
        assert list(heat.y) == ["trained", "untrained"]
        assert list(heat.x) == ["a → b", "b → c", "a → c"]
        assert heat.zmax == -heat.zmin == rows.abs().max()
    assert trained.plot().data[0].z.shape == (1, 3)


def test_bad_measures() -> None:
    zero = torch.zeros(1)
    first, second = (ModularityMeasures(zero, zero, zero, (pair,)) for pair in ("ab", "ac"))
    with pytest.raises(ValueError, match="one list of pairs"):
        first.plot(second)
    with pytest.raises(ValueError, match="results must hold at least one ModularityMeasures"):
        ModularityMeasures.overlay({})
    with pytest.raises(TypeError, match=r"results\['x'\] must be a ModularityMeasures, got int"):
        ModularityMeasures.overlay({"x": 3})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"c3 must hold values for \['a'\], got \['b'\]"):
        plots.modularity_measures({"a": zero}, {"a": zero}, {"b": zero}, [("a", "b")])
    assert first.plot().data[0].zmax == 1
