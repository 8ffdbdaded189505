"""N1: what units respond to, and which single weights a label needs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from modfast.circuits import Circuit, prune_circuit, search_space_reduction
from modfast.data import Dataset
from modfast.demo import LAYER, SITE, Trained
from modfast.features import label_purity, max_activating
from modfast.reproduce.networks import Networks
from modfast.reproduce.tables import Row, Section, spread

NAMES = ("clustered", "plain")
TOP, THRESHOLD, OTHER_THRESHOLDS = 50, 1e-4, (1e-5, 1e-3)
UNREACHED = 1e9  # nats: a threshold that no loss rises by
FORWARD = ("fc1", "fc2", "fc3")
# Units with 1, 2, ..., 10 different labels among their top 50, and the purity.
PRINTED_PURITY = {
    "clustered": ((5, 19, 10, 12, 8, 4, 0, 0, 0, 6), 0.6172),
    "plain": ((13, 7, 7, 20, 10, 3, 0, 0, 0, 4), 0.6312),
}

Found = dict[str, dict[str, Tensor]]


def study(networks: Networks) -> Section:
    """The printed numbers, and how large the labels' circuits are in both kinds of network."""
    by_seed: dict[str, list[dict[str, Tensor]]] = {name: [] for name in NAMES}
    reductions, loops = [], []
    for seed in networks.each("circuits"):
        pair = networks.pair(seed)
        reductions.append(search_space_reduction(pair.clustered.model, pair.clusters))
        layers = FORWARD[-1], FORWARD
        loops.append(torch.cat([_loop(pair.plain.model, networks.mnist, each) for each in layers]))
        for name in NAMES:
            by_seed[name].append(_measured(getattr(pair, name), networks.mnist))
    found = {
        name: {key: torch.stack([one[key] for one in each]) for key in each[0]}
        for name, each in by_seed.items()
    }
    reduction = torch.tensor(reductions)
    rows = [
        Row("search space cut off by one of 4 clusters", 0.7640, reduction, reduction, "A count."),
        *_purity_rows(found),
        *_loop_rows(torch.stack(loops), found["plain"]),
        *_size_rows(found),
    ]
    total = sum(p.numel() for p in networks.pair(0).plain.model.parameters())
    settings = (
        f"N1's networks. Purity of the top {TOP} test images of each unit of {SITE}; circuits: of "
        f"{total:,} weights, those that are kept by greedy pruning on the test images of one "
        f"label (threshold {THRESHOLD:g} nats over the running loss), mean over the ten labels."
    )
    return Section("N1: circuits", settings, tuple(rows), _finding(found))


def _measured(trained: Trained, data: Dataset) -> dict[str, Tensor]:
    """Of one network."""
    model, sizes = trained.model, trained.circuits
    assert sizes is not None
    top = max_activating(model, data.test, SITE, k=TOP, progress=False)[SITE]
    backward, forward, last = (
        _circuits(model, data, layers, THRESHOLD) for layers in (None, FORWARD, FORWARD[-1])
    )
    masks = torch.stack([torch.cat([m.flatten() for m in c.mask.values()]) for c in backward])
    own = masks.sum(1)
    common = masks.double() @ masks.double().T
    overlap = common / (own[:, None] + own - common)
    others = ~torch.eye(len(masks), dtype=torch.bool)
    lost = trained.evaluation.class_accuracy - trained.evaluation.off_class_accuracy
    by_threshold = zip(sizes.thresholds.tolist(), sizes.kept.double().mean(1), strict=True)
    return {
        "purity": torch.tensor(label_purity(top, data.n_outputs).score),
        "purity of live units": torch.tensor(label_purity(top, data.n_outputs, True).score),
        **{f"kept at {threshold:g}": kept for threshold, kept in by_threshold},
        "kept forward": _mean_kept(forward),
        "kept of fc2": torch.stack([c.mask[f"{LAYER}.weight"].sum() for c in backward])
        .double()
        .mean(),
        "kept of fc3 alone": _mean_kept(last),
        "by label": own.double(),
        "overlap": overlap[others].mean(),
        "cost": lost.mean(),
        "uneven": lost.std(1).mean() / lost.mean(),
    }


def _circuits(
    model: nn.Module, data: Dataset, layers: str | Sequence[str] | None, threshold: float
) -> list[Circuit]:
    found = prune_circuit(
        model, *data.test, layers, threshold=threshold, labels="all", progress=False
    )
    return list(found.values())


def _mean_kept(circuits: list[Circuit]) -> Tensor:
    return torch.tensor([float(circuit.kept) for circuit in circuits]).mean()


def _loop(model: nn.Module, data: Dataset, layers: str | Sequence[str]) -> Tensor:
    """What the notebook's loop counts as kept, and what it keeps; means over the labels.

    It writes a weight back as a view of the zero that it has just set there. So all it visits stay
    zero, as by a threshold that no loss reaches, whatever it decides and counts.
    """
    circuits = _circuits(model, data, layers, UNREACHED)
    counts = []
    for circuit in circuits:
        running, count = float(circuit.original_loss), 0
        for loss in circuit.loss_path.tolist():
            if loss > running + THRESHOLD:
                count += 1
            else:
                running = loss
        counts.append(float(count))
    return torch.stack([torch.tensor(counts).mean(), _mean_kept(circuits)])


def _purity_rows(found: Found) -> list[Row]:
    rows = []
    for name, (histogram, printed) in PRINTED_PURITY.items():
        labels = [
            torch.arange(TOP) % n for n, units in enumerate(histogram, 1) for _ in range(units)
        ]
        score = label_purity(torch.stack(labels), len(histogram)).score
        exact = torch.tensor(score, dtype=torch.float64)
        why = f"The same rule; {score:.5f} before rounding."
        rows.append(
            Row(f"label purity, {name}: of the printed histogram", printed, exact, exact, why)
        )
    why = "Without units that are off on every image, whose top images are the first ones."
    rows += [
        Row(
            f"label purity, {name}: of networks trained here",
            PRINTED_PURITY[name][1],
            found[name]["purity"],
            found[name]["purity of live units"],
            why,
        )
        for name in NAMES
    ]
    return rows


def _loop_rows(loops: Tensor, plain: dict[str, Tensor]) -> list[Row]:
    """Of the plain networks; the source prints pairs that add up to all visits."""
    fc3, _, counted, left = loops.T
    why = "Printed as 84 and 556, read so: its loop counts it kept, but its restore writes zeros."
    return [
        Row("weights kept of fc3, as counted", 556, fc3, plain["kept of fc3 alone"], why),
        Row(
            "... of all layers, fc1 first, as counted",
            54714,
            counted,
            plain["kept forward"],
            "Printed as 54714 and 198: after a loss that nothing undid, most losses are higher.",
        ),
        Row(
            "... that are not zero afterwards",
            None,
            left,
            plain["kept forward"],
            "Whatever it counts, no weight that it visits is left.",
        ),
    ]


def _size_rows(found: Found) -> list[Row]:
    cases = {
        **{
            f"circuit at {each:g}": f"kept at {each:g}"
            for each in sorted((THRESHOLD, *OTHER_THRESHOLDS))
        },
        f"circuit at {THRESHOLD:g}, in {LAYER} alone": "kept of fc2",
        f"circuit at {THRESHOLD:g}, fc1 pruned first": "kept forward",
        "shared by the circuits of two labels (Jaccard)": "overlap",
        "accuracy that a cluster's removal costs": "cost",
        "... its spread over classes, of the mean": "uneven",
    }
    rows = [
        Row(f"{what}, {name}", None, None, found[name][key], _against(found, key, name))
        for what, key in cases.items()
        for name in NAMES
    ]
    by_label = [found[name]["by label"] for name in NAMES]
    return rows + [
        Row(
            f"circuit of label {label}, clustered over plain",
            None,
            None,
            clustered / plain,
            f"{spread(clustered)} weights against {spread(plain)}.",
        )
        for label, (clustered, plain) in enumerate(zip(*(each.T for each in by_label), strict=True))
    ]


def _against(found: Found, key: str, name: str) -> str:
    return "" if name == "clustered" else f"Clustered: {_change(found, key)}."


def _change(found: Found, key: str) -> str:
    """Of the clustered networks against the plain ones from the same starts."""
    change = found["clustered"][key] / found["plain"][key] - 1
    mean = change.mean()
    agree = int((change.sign() == mean.sign()).sum())
    word = "less" if mean < 0 else "more"
    return f"{abs(float(mean)):.0%} {word} (in {agree} of {len(change)} seeds)"


def _finding(found: Found) -> str:
    """The published claim is smaller circuits and no more task specialization."""

    def above(key: str) -> Tensor:
        return found["clustered"][key] > found["plain"][key]

    def verdict(more: Tensor) -> str:
        if more.all() or not more.any():
            return "more specialized" if more.all() else "less specialized"
        return "no clear difference"

    own, forward = f"kept at {THRESHOLD:g}", "kept forward"
    means = [found["clustered"][key].mean() > found["plain"][key].mean() for key in (own, forward)]
    decides = "does not decide" if means[0] == means[1] else "decides"
    others = ", ".join(
        f"at {each:g} {_change(found, f'kept at {each:g}')}" for each in OTHER_THRESHOLDS
    )
    return (
        "Published: smaller circuits, no more task specialization. Size, against plain networks "
        f"from the same starts: at {THRESHOLD:g} nats circuits of clustered networks hold "
        f"{_change(found, own)} if pruning begins at the last layer, {_change(found, forward)} if "
        f"at the first: the order {decides}. From the last layer, {others}; in {LAYER} itself "
        f"{_change(found, 'kept of fc2')}. Specialization: circuits of two labels share "
        f"{_change(found, 'overlap')}: {verdict(~above('overlap'))}. The removal of a cluster "
        f"costs {_change(found, 'cost')} accuracy than that of the same units of plain networks, "
        f"and varies, relative to that, {_change(found, 'uneven')} between classes: "
        f"{verdict(above('uneven'))}."
    )
