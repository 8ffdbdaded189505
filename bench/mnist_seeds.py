"""Five seeds of the notebook's experiment: does clustering cost accuracy?

    MODFAST_MNIST_ROOT=DIR python bench/mnist_seeds.py [--keep]

784-64-64-10 without bias, SGD 1e-3, batch 64, 10 epochs, 4 clusters on fc2, weight 15, plain and
clustered from the same start. Targets: clusterability above .999, mean accuracies within half a
point. --keep writes bench/results/mnist_seeds.json.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from pathlib import Path

import torch

import modfast


def main() -> None:
    """Trains, prints, and checks the targets."""
    torch.set_num_threads(1)  # faster than two for layers this small
    data = modfast.data.load("mnist", root=os.environ["MODFAST_MNIST_ROOT"])
    clusters = modfast.Clusters.equal(64, 64, 4)
    rows = []
    for seed in range(5):
        row: dict[str, float] = {"seed": seed}
        for name, alpha in (("plain", 0.0), ("clustered", 15.0)):
            torch.manual_seed(seed)
            model = modfast.models.MLP([784, 64, 64, 10], bias=False)
            optimizer = modfast.Modularity(model.parameters(), lr=1e-3, alpha=alpha)
            history = modfast.fit(
                model, data.train, epochs=10, optimizer=optimizer, test=data.test, seed=seed
            )
            row[f"{name} accuracy"] = float(history.accuracy[-1])
            row[f"{name} clusterability"] = modfast.clusterability(
                model.fc2.weight, clusters
            ).item()
        rows.append(row)
        print(row, flush=True)
    means = {key: statistics.fmean(row[key] for row in rows) for key in rows[0] if key != "seed"}
    print("mean", means)
    assert all(row["clustered clusterability"] > 0.999 for row in rows)
    assert abs(means["clustered accuracy"] - means["plain accuracy"]) < 0.005
    if "--keep" in sys.argv:
        path = Path(__file__).parent / "results" / "mnist_seeds.json"
        path.write_text(json.dumps({"runs": rows, "mean": means}, indent=1) + "\n")


if __name__ == "__main__":
    main()
