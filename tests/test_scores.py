from __future__ import annotations

import torch

from modfast.scores import scores


def test_accuracy_by_class() -> None:
    targets = torch.tensor([0, 0, 1, 3])
    predicted = torch.tensor([0, 1, 1, 0])
    overall, each = scores(torch.nn.functional.one_hot(predicted, 4).float(), targets)
    assert overall == 0.5
    assert each[:2].tolist() == [0.5, 1.0]
    assert each[2].isnan()
    assert each[3] == 0


def test_r2_is_one_for_perfect_and_zero_for_the_mean() -> None:
    targets = torch.randn(50, 2)
    overall, each = scores(
        torch.stack([targets[:, 0], targets[:, 1].mean().expand(50)], 1), targets
    )
    torch.testing.assert_close(each, torch.tensor([1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(overall, each.mean())
