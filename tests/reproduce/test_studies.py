"""What the notebooks printed lies where modfast's own runs do."""

from __future__ import annotations

from pathlib import Path

import torch

from modfast.reproduce import Row, run


def rows_of(study: str, root: Path | None = None, seeds: int = 2) -> dict[str, Row]:
    (section,) = run([study], root, seeds, progress=False)
    return {row.quantity: row for row in section.rows}


def near(row: Row, tolerance: float) -> bool:
    """Whether the notebook's rule gives what was printed, on other random starts."""
    values = row.correct if row.notebook is None else row.notebook
    assert row.printed is not None
    assert values is not None
    return abs(float(values.mean()) - row.printed) <= tolerance


def test_metric(mnist_root: Path) -> None:
    rows = rows_of("metric", mnist_root)
    information = rows["I(fc1; fc2), untrained"]
    assert near(information, 0.02)
    assert information.correct is not None
    assert (information.correct < 0.02).all()
    for name in ("H(fc1)", "H(fc2)", "H(fc1, fc2)", "H(fc1 | fc2)"):
        assert near(rows[f"{name}, untrained"], 0.4)
    for pair in ("fc1, fc2", "fc2, fc3", "fc1, fc3"):
        row = rows[f"C1 of {pair}, trained"]
        assert near(row, 0.5)
        assert row.correct is not None
        assert (row.correct.abs() < 0.1).all()


def test_ablation(mnist_root: Path) -> None:
    rows = rows_of("ablation", mnist_root)
    assert near(rows["mean over 128 units"], 0.06)
    assert near(rows["mean over 128 random directions"], 0.05)
    best = rows["most informative direction"].correct
    strongest = rows["strongest unit"].correct
    assert best is not None
    assert strongest is not None
    assert (best > 2 * strongest).all()
    held_out = rows["... over the strongest unit, on held-out images"].correct
    assert held_out is not None
    assert (held_out > 2).all()


def test_clusterability(mnist_root: Path) -> None:
    rows = rows_of("clusterability", mnist_root)
    assert near(rows["loss at step 0"], 0.2)
    assert near(rows["clusterability at step 0"], 0.01)
    assert near(rows["accuracy, clustered"], 0.01)
    assert near(rows["accuracy, plain"], 0.01)
    clustered = rows["clusterability, clustered"].correct
    assert clustered is not None
    assert (clustered > 0.99).all()
    for name, tolerance in (("off", 0.12), ("alone on", 0.15)):
        found = [row for key, row in rows.items() if f"a cluster {name}," in key]
        assert len(found) == 4
        assert all(near(row, tolerance) for row in found)
        means = torch.stack([row.correct.mean() for row in found if row.correct is not None])
        assert (means.diff() >= 0).all()
