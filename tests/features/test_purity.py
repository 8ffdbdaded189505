"""label_purity: the notebook's printed numbers, and its rules."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from modfast import LabelPurity, TopActivations, label_purity

# Units with 1, 2, ..., 10 distinct labels among their top 50, as the notebook printed them.
CLUSTERED = [5, 19, 10, 12, 8, 4, 0, 0, 0, 6]
PLAIN = [13, 7, 7, 20, 10, 3, 0, 0, 0, 4]


def labels_of(histogram: list[int]) -> torch.Tensor:
    """Labels `[64, 50]` of which as many units have each number of distinct ones."""
    rows = [torch.arange(50) % n for n, units in enumerate(histogram, 1) for _ in range(units)]
    generator = torch.Generator().manual_seed(0)
    shuffled = [row[torch.randperm(50, generator=generator)] for row in rows]
    return torch.stack(shuffled)[torch.randperm(len(rows), generator=generator)]


@pytest.mark.parametrize(("histogram", "printed"), [(CLUSTERED, 0.6172), (PLAIN, 0.6312)])
def test_printed_numbers(histogram: list[int], printed: float) -> None:
    found = label_purity(labels_of(histogram), 10)
    assert round(found.score, 4) == printed
    assert found.histogram.tolist() == histogram
    assert found.survival[0] == 1
    assert found.survival[-1] == 0
    more = [sum(histogram[j:]) / 64 for j in range(11)]
    np.testing.assert_allclose(found.survival, more, rtol=0, atol=1e-15)


def test_dead_units_can_be_left_out() -> None:
    values = torch.tensor([[1.0, 0.5], [0.0, 0.0], [2.0, 2.0]])
    labels = torch.tensor([[1, 1], [0, 1], [2, 0]])
    top = TopActivations(torch.arange(6).view(3, 2), values, labels)
    assert label_purity(top, 4).distinct.tolist() == [1, 2, 2]
    assert label_purity(top, 4, skip_dead=True).distinct.tolist() == [1, 2]
    assert label_purity(top, 4).score == pytest.approx(1 - 5 / 12)


def test_bad_input() -> None:
    labels = torch.tensor([[0, 3]])
    with pytest.raises(ValueError, match="labels must be from 0 to 2, got 3"):
        label_purity(labels, 3)
    with pytest.raises(ValueError, match="labels must be from 0 to 3, got -1"):
        label_purity(labels - 1, 4)
    with pytest.raises(TypeError, match="labels must be integers, got torch.float32"):
        label_purity(labels.float(), 4)
    with pytest.raises(ValueError, match=r"and not empty, got shape \(0, 2\)"):
        label_purity(labels[:0], 4)
    with pytest.raises(ValueError, match=r"got shape \(2,\)"):
        label_purity(labels[0], 4)
    with pytest.raises(ValueError, match="n_classes must be at least 1"):
        label_purity(labels, 0)
    with pytest.raises(TypeError, match="skip_dead needs a TopActivations"):
        label_purity(labels, 4, skip_dead=True)
    with pytest.raises(TypeError, match="must be a TopActivations or labels, got list"):
        label_purity([[0, 3]], 4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="top must have labels"):
        label_purity(TopActivations(labels, labels.float()), 4)


def test_figure() -> None:
    pytest.importorskip("plotly")
    named = {"clustered": label_purity(labels_of(CLUSTERED), 10)}
    named["plain"] = label_purity(labels_of(PLAIN), 10)
    bars, _, others, curve = LabelPurity.overlay(named).data
    assert list(bars.y) == CLUSTERED
    assert list(others.y) == PLAIN
    np.testing.assert_array_equal(curve.y, named["plain"].survival)
    assert "0.6172" in named["clustered"].plot().layout.title.text
    with pytest.raises(ValueError, match="at least one"):
        LabelPurity.overlay({})
    with pytest.raises(TypeError, match=r"results\['a'\] must be a LabelPurity, got int"):
        LabelPurity.overlay({"a": 1})  # type: ignore[dict-item]
    assert isinstance(named["plain"], LabelPurity)
