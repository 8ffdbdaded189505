"""What the notebooks printed lies where modfast's own runs do."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

import modfast
from modfast.reproduce import Row, run, tasks


def rows_of(*studies: str, root: Path | None = None) -> dict[str, Row]:
    sections = run(studies, root, seeds=2, progress=False)
    return {row.quantity: row for section in sections for row in section.rows}


@cache
def rows_of_clustered(root: Path) -> dict[str, Row]:
    """Of both studies that train N1's networks, which takes most of their time."""
    circuits = ["circuits"] if modfast.has_ops() else []
    return rows_of("clusterability", *circuits, root=root)


def near(row: Row, tolerance: float) -> bool:
    """Whether the notebook's rule gives what was printed, on other random starts."""
    values = row.correct if row.notebook is None else row.notebook
    assert row.printed is not None
    assert values is not None
    return abs(float(values.mean()) - row.printed) <= tolerance


@pytest.mark.slow
def test_metric(mnist_root: Path) -> None:
    rows = rows_of("metric", root=mnist_root)
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


@pytest.mark.slow
def test_ablation(mnist_root: Path) -> None:
    rows = rows_of("ablation", root=mnist_root)
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


@pytest.mark.slow
def test_clusterability(mnist_root: Path) -> None:
    rows = rows_of_clustered(mnist_root)
    assert near(rows["loss at step 0"], 0.2)
    assert near(rows["clusterability at step 0"], 0.01)
    assert near(rows["accuracy, clustered"], 0.01)
    assert near(rows["accuracy, plain"], 0.01)
    clustered = rows["clusterability, clustered"].correct
    assert clustered is not None
    assert (clustered > 0.99).all()
    for label in range(10):
        assert near(rows[f"accuracy of class {label}, clustered"], 0.03)
    for name, tolerance in (("off", 0.12), ("alone on", 0.15)):
        found = [row for key, row in rows.items() if f"a cluster {name}," in key]
        assert len(found) == 4
        assert all(near(row, tolerance) for row in found)
        means = torch.stack([row.correct.mean() for row in found if row.correct is not None])
        assert (means.diff() >= 0).all()


def test_circuits(mnist_root: Path) -> None:
    if not modfast.has_ops():
        pytest.skip("the compiled library is not built; this takes hours without")
    rows = rows_of_clustered(mnist_root)
    assert near(rows["search space cut off by one of 4 clusters"], 5e-5)
    for name in ("clustered", "plain"):
        assert near(rows[f"label purity, {name}: of the printed histogram"], 5e-5)
        purity = rows[f"label purity, {name}: of networks trained here"]
        assert near(purity, 0.05)
        assert purity.notebook is not None
        assert purity.correct is not None
        # Units that are off on all images have the first images at the top, of all labels.
        assert (purity.correct >= purity.notebook).all()
    assert near(rows["weights kept of fc3, as counted"], 60)
    assert near(rows["... of all layers, fc1 first, as counted"], 2500)
    left = rows["... that are not zero afterwards"]
    assert left.notebook is not None
    assert left.correct is not None
    assert (left.notebook == 0).all()
    assert (left.correct > 1000).all()
    sizes = [f"circuit at {threshold}, {{}}" for threshold in ("1e-05", "0.0001", "0.001")]
    for name in ("clustered", "plain"):
        kept = [rows[size.format(name)].correct for size in sizes]
        assert all(one is not None for one in kept)
        assert (torch.stack(kept).diff(dim=0) < 0).all()  # type: ignore[arg-type]
    within = [
        rows[f"circuit at 0.0001, in fc2 alone, {name}"].correct for name in ("clustered", "plain")
    ]
    assert (within[0] < 0.7 * within[1]).all()  # type: ignore[operator]


def test_effective_information() -> None:
    rows = rows_of("effective-information")
    for row in rows.values():
        if row.printed is not None:
            assert near(row, 1e-6)
            assert row.correct is not None
            assert abs(float(row.correct.mean()) - row.printed) < 1e-6
        assert row.notebook is not None
        assert row.correct is not None
        mixes_channels = "convolutional" in row.quantity or "pooling" in row.quantity
        same = torch.allclose(row.notebook.double(), row.correct.double(), rtol=0, atol=1e-9)
        assert same != mixes_channels
    pooling = rows["EI, average pooling of 4 channels"]
    assert pooling.notebook is not None
    assert pooling.correct is not None
    # Four channels of their own tell log2 4 bits more.
    torch.testing.assert_close(pooling.correct - pooling.notebook, torch.tensor([2.0]))


@pytest.mark.slow
def test_mutual_information() -> None:
    rows = rows_of("mutual-information")
    exact = rows["two halves of an output: from weights"].correct
    jacobians = rows["... from Jacobians"].correct
    samples = rows["... from samples, Gaussian"].correct
    assert exact is not None
    assert jacobians is not None
    assert samples is not None
    torch.testing.assert_close(jacobians, exact, rtol=0, atol=1e-6)
    assert ((samples - exact).abs() < 0.1).all()
    codes = rows["... from samples, 16 codes of k-means"]
    assert near(codes, 2e-4)
    assert codes.correct is not None
    assert (codes.correct < exact).all()
    for name, tolerance in (("gaussian", 0.1), ("copula", 0.1), ("ksg", 0.4)):
        estimate = rows[f"1 nat of 4 + 4 Gaussian units, by {name}"].correct
        assert estimate is not None
        assert abs(float(estimate.mean()) - 1) < tolerance


@pytest.mark.slow
def test_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    if not modfast.has_ops():
        pytest.skip("the compiled library is not built; this takes minutes without")
    monkeypatch.setattr(tasks, "N_MODELS", 12)
    rows = rows_of("tasks")
    assert near(rows["validation loss"], 4e-4)
    for site in tasks.SITES.values():
        assert near(rows[f"cosine of the tasks' mean gradients, {site}"], 0.1)
    assert near(rows["lowest capture of any network and site"], 0.13)
    assert near(rows["highest"], 1e-3)
    capture, overlap, distinct = (
        torch.stack([rows[f"{what}, {site}"].correct for site in tasks.SITES.values()])  # type: ignore[misc]
        for what in (
            "capture",
            "mean |cosine| of the tasks' distinct gradients",
            "distinct gradients of a task",
        )
    )
    assert (capture.mean(1).diff() > 0).all()
    assert overlap.mean(1).argmin() == 2
    assert (distinct.mean(1).diff() < 0).all()
    assert (distinct[2] == 1).all()
