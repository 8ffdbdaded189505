"""N0: what single units and random directions do."""

from __future__ import annotations

import torch

from modfast.ablation import ablate_directions, ablate_units, max_information_direction
from modfast.reproduce.networks import EPOCHS, Networks
from modfast.reproduce.tables import Row, Section

N_IMAGES, WIDTH, SITE = 64, 128, "act2"


def study(networks: Networks) -> Section:
    """KL(ablated | original) of units, random directions and the best direction found."""
    x, held_out = networks.mnist.test_x[:N_IMAGES], networks.mnist.test_x[N_IMAGES:]
    found = []
    for seed in networks.seeds:
        model = networks.probed(seed)
        vectors = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(seed))
        units = ablate_units(model, x, SITE).kl_ablated_original
        directions = ablate_directions(model, x, SITE, vectors).kl_ablated_original
        best = max_information_direction(model, x, SITE, seed=seed)
        outside = ablate_directions(model, held_out, SITE, best.direction[None])
        units_outside = ablate_units(model, held_out, SITE).kl_ablated_original.max()
        ratio = outside.kl_ablated_original[0] / units_outside
        found.append(torch.stack([units.mean(), directions.mean(), units.max(), best.kl, ratio]))
    units, directions, strongest, best_kl, ratio = torch.stack(found).T
    rows = (
        Row(
            "mean over 128 units", 0.1316, units, units, "The same rule; the rest is the training."
        ),
        Row("mean over 128 random directions", 0.1105, directions, directions, "The same."),
        Row("strongest unit", None, None, strongest, "Not printed."),
        Row("most informative direction", None, None, best_kl, "The notebook's search raises."),
        Row(
            "... over the strongest unit, on held-out images",
            None,
            None,
            ratio,
            "Found on 64 images, it holds on the others.",
        ),
    )
    settings = (
        f"784-128-128-10 after {EPOCHS} epochs of SGD 1e-3, {SITE}, first {N_IMAGES} test images: "
        "KL(ablated | original) in nats, summed over the images."
    )
    return Section("N0: ablation", settings, rows)
