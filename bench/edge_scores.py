"""How well do an edge's gradient scores follow its exact ablation, on trained networks?

    MODFAST_MNIST_ROOT=DIR python bench/edge_scores.py [--keep]

An MLP 784-64-64-10 and a CNN of two convolutions and a linear layer, three seeds each, are trained
on 20,000 images by Adam. 64 test images are each compared with the next one. Pearson and Spearman
correlations over all edges, for the difference of the logits of the two images' classes and for the
loss. --keep writes bench/results/edge_scores.json.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any, TypeAlias

import torch
from scipy import stats
from torch import Tensor, nn

import modfast

Row: TypeAlias = dict[str, Any]
SEEDS, EPOCHS, TRAINED, SAMPLES = 3, 2, 20_000, 64


def networks() -> dict[str, nn.Module]:
    """Untrained."""
    cnn = nn.Sequential(
        nn.Conv2d(1, 8, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 5), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip
    return {"mlp": modfast.models.MLP([784, 64, 64, 10]), "cnn": cnn}


def correlations(found: modfast.EdgeScores, exact: modfast.EdgeScores) -> dict[str, float]:
    """Over all edges."""
    both = [torch.cat([x.flatten() for x in each.scores.values()]) for each in (found, exact)]
    return {
        "pearson": float(stats.pearsonr(*both).statistic),
        "spearman": float(stats.spearmanr(*both).statistic),
    }


def rows_of(name: str, model: nn.Module, data: modfast.data.Dataset, seed: int) -> list[Row]:
    """One row for each metric and method."""
    train, test = data.train, data.test
    if name == "mlp":
        train, test = ((x.flatten(1), y) for x, y in (train, test))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    part = tuple(each[:TRAINED] for each in train)
    history = modfast.fit(model, part, EPOCHS, optimizer=optimizer, test=test, seed=seed)
    (x, y), own = (each[:SAMPLES] for each in test), torch.arange(SAMPLES)
    other, others = x.roll(-1, 0), y.roll(-1)

    def difference(logits: Tensor) -> Tensor:
        return (logits[own, y] - logits[own, others]).mean()

    rows: list[Row] = []
    for metric, options in (("difference", {"metric": difference}), ("loss", {"targets": y})):
        exact = modfast.attribute_edges(model, x, other, method="exact", **options)
        for method in ("eap", "eap-ig"):
            found = modfast.attribute_edges(model, x, other, method=method, **options)
            row = {"network": name, "metric": metric, "method": method, "seed": seed}
            row |= {"accuracy": float(history.accuracy[-1]), **correlations(found, exact)}
            rows.append(row)
            print(row, flush=True)
    return rows


def main() -> None:
    """Trains, prints the rows and their means over the seeds."""
    torch.set_num_threads(1)  # faster than two for layers this small
    data = modfast.data.load("mnist", root=os.environ["MODFAST_MNIST_ROOT"])
    rows: list[Row] = []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        for name, model in networks().items():
            rows += rows_of(name, model, data, seed)
    keys = ("network", "metric", "method")
    means = []
    for case in dict.fromkeys(tuple(row[key] for key in keys) for row in rows):
        same = [row for row in rows if tuple(row[key] for key in keys) == case]
        mean = {x: statistics.fmean(row[x] for row in same) for x in ("pearson", "spearman")}
        means.append(dict(zip(keys, case, strict=True)) | mean)
        print("mean", means[-1])
    if "--keep" in sys.argv:
        path = Path(__file__).parent / "results" / "edge_scores.json"
        path.write_text(json.dumps({"runs": rows, "mean": means}, indent=1) + "\n")


if __name__ == "__main__":
    main()
