"""N0: what layers, and a module's parts of them, tell about each other."""

from __future__ import annotations

import torch
from torch import Tensor

from modfast.information import (
    conditional_entropy,
    entropy,
    joint_entropy,
    modularity_measures,
    mutual_information,
)
from modfast.information.binning import Rule
from modfast.network.capture import capture
from modfast.reproduce.networks import EPOCHS, Networks
from modfast.reproduce.tables import Row, Section

SITES = ("fc1", "fc2", "fc3")
PAIRS = ("fc1, fc2", "fc2, fc3", "fc1, fc3")
N_IMAGES, N_MODULES, MODULE_SIZE = 640, 10, 10
RULES: tuple[Rule, Rule] = ("notebook", "uniform")
ENTROPIES = (
    (
        "H(fc1), untrained",
        1.4756,
        "Ten real bins both times; the notebook adds 1e-8 under the log.",
    ),
    ("H(fc2), untrained", 1.3278, "The same."),
    ("H(fc1, fc2), untrained", 2.7037, "The notebook adds entropies of 10 and of 9 bins."),
    ("H(fc1 | fc2), untrained", 1.3759, "Nine intervals, the minimum wrapped into the last bin."),
    (
        "I(fc1; fc2), untrained",
        0.0997,
        "About ln(10/9) = 0.105: ten bins minus nine, not information.",
    ),
)
PRINTED_MEASURES = {
    "C1": (-1.450, -1.504, -1.346),
    "C2": (0.024, 0.058, 0.023),
    "C3": (-0.066, -0.058, -0.003),
}
MEASURES = {
    "C1": "Minus the information of the rest of the layer; most of it is the ln(10/9) artefact.",
    "C2": "Minus what the rest adds to the module; by the notebook's pairing of columns, noise.",
    "C3": "Minus what the module adds to the rest; by the notebook's pairing, noise too.",
}


def study(networks: Networks) -> Section:
    """Entropies of an untrained network, and the measures of random modules in a trained one."""
    x = networks.mnist.test_x[:N_IMAGES]
    entropies, measures = [], []
    for seed in networks.seeds:
        fc1, fc2 = capture(networks.untrained(seed), x, ["fc1", "fc2"]).values()
        entropies.append(torch.stack([_entropies(fc1, fc2, rule) for rule in RULES]))
        sites = capture(networks.probed(seed), x, SITES)
        generator = torch.Generator().manual_seed(seed)
        modules = [
            {
                s: torch.randperm(a.shape[1], generator=generator)[:MODULE_SIZE]
                for s, a in sites.items()
            }
            for _ in range(N_MODULES)
        ]
        found = [modularity_measures(sites, modules, rule=rule) for rule in RULES]
        measures.append(torch.stack([torch.stack([m.c1, m.c2, m.c3]).sum(1) for m in found]))
    by_seed = torch.stack(entropies)  # [seeds, rules, quantities]
    rows = [
        Row(name, printed, by_seed[:, 0, i], by_seed[:, 1, i], why)
        for i, (name, printed, why) in enumerate(ENTROPIES)
    ]
    sums = torch.stack(measures)  # [seeds, rules, measures, pairs]
    for i, (name, printed) in enumerate(PRINTED_MEASURES.items()):
        rows += [
            Row(
                f"{name} of {pair}, trained",
                printed[j],
                sums[:, 0, i, j],
                sums[:, 1, i, j],
                MEASURES[name],
            )
            for j, pair in enumerate(PAIRS)
        ]
    settings = (
        f"784-128-128-10 on {N_IMAGES} MNIST images, pre-activations, 10 bins, nats; trained for "
        f"{EPOCHS} epochs by SGD 1e-3. Measures are sums over {N_MODULES} modules of {MODULE_SIZE} "
        "random units a layer."
    )
    return Section("N0: information between layers", settings, tuple(rows))


def _entropies(x: Tensor, y: Tensor, rule: Rule) -> Tensor:
    return torch.stack(
        [
            entropy(x, rule=rule),
            entropy(y, rule=rule),
            joint_entropy(x, y, rule=rule),
            conditional_entropy(x, y, rule=rule),
            mutual_information(x, y, rule=rule),
        ]
    )
