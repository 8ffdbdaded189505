"""N1: training into clusters, and switching them off and on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modfast.clusters import clusterability
from modfast.demo import DEFAULTS, LAYER, DemoResult
from modfast.models import MLP
from modfast.reproduce.networks import Networks
from modfast.reproduce.tables import Row, Section

PRINTED_OFF = (0.7925, 0.6091, 0.7872, 0.7198)
PRINTED_ON = (0.3264, 0.2674, 0.4802, 0.2272)
PRINTED_CLASSES = (0.967, 0.965, 0.859, 0.884, 0.909, 0.816, 0.924, 0.908, 0.854, 0.875)


def study(networks: Networks) -> Section:
    """Clusterability, accuracy, and what is left without each cluster and with it alone."""
    results = [networks.pair(seed) for seed in networks.seeds]
    starts = torch.tensor([_start(networks, result) for result in results])
    first_loss, first_share = starts.T

    def over(read: str, which: str) -> Tensor:
        values = [getattr(getattr(result, which).evaluation, read) for result in results]
        return torch.stack(values)

    shares = torch.tensor([[r.plain.clusterability, r.clustered.clusterability] for r in results])
    off = over("off_accuracy", "clustered").sort(1).values
    on = over("on_accuracy", "clustered").sort(1).values
    seeded = "The same rule; the notebook's start is not seeded."
    rows = [
        Row("loss at step 0", -1.4736, first_loss, first_loss, seeded),
        Row("clusterability at step 0", 0.2513, first_share, first_share, "1/4 by chance."),
        Row("accuracy, clustered", 0.90, None, over("accuracy", "clustered"), seeded),
        Row("accuracy, plain", 0.90, None, over("accuracy", "plain"), "No accuracy is lost."),
        Row("clusterability, clustered", None, None, shares[:, 1], "Above .99."),
        Row("clusterability, plain", None, None, shares[:, 0], "Stays at chance."),
    ]
    for name, printed, values in (("off", PRINTED_OFF, off), ("alone on", PRINTED_ON, on)):
        rows += [
            Row(
                f"accuracy with a cluster {name}, {_rank(i)}",
                value,
                None,
                values[:, i],
                "Sorted: which cluster is which is chance.",
            )
            for i, value in enumerate(sorted(printed))
        ]
    by_class = over("class_accuracy", "clustered")
    rows += [
        Row(
            f"accuracy of class {label}, clustered",
            printed,
            None,
            by_class[:, label],
            seeded,
        )
        for label, printed in enumerate(PRINTED_CLASSES)
    ]
    s = DEFAULTS["mnist"]
    settings = (
        f"784-64-64-10 without biases on MNIST, SGD {s.lr:g}, batches of {s.batch_size}, "
        f"{s.epochs} epochs, four clusters of 16 in {LAYER}, alpha {s.alpha:g}."
    )
    return Section("N1: clusterability", settings, tuple(rows))


def _rank(i: int) -> str:
    return ("lowest", "second", "third", "highest")[i]


def _start(networks: Networks, result: DemoResult) -> tuple[float, float]:
    """Loss of the first batch and clusterability, before training."""
    s = result.settings
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(s.seed)
        model = MLP(s.sizes, bias=s.bias)
        x, y = networks.mnist.train_x[: s.batch_size], networks.mnist.train_y[: s.batch_size]
        share = clusterability(model.get_submodule(LAYER).get_parameter("weight"), result.clusters)
        loss = nn.functional.cross_entropy(model(x), y) - s.alpha * share
    return float(loss), float(share)
