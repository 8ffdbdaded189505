"""N4: do two independent tasks use directions of their own?"""

from __future__ import annotations

from modfast.data import physics_grids
from modfast.reproduce.networks import Networks
from modfast.reproduce.tables import Row, Section

N_MODELS, N_GRID = 100, 100
SITES = {"input": "the input", "act1": "act1", "act2": "act2"}
A, B = 0, 1


def study(networks: Networks) -> Section:
    """Losses, the tasks' gradients and how far each direction belongs to one task."""
    models = networks.tasks(N_MODELS)
    found = models.compare(physics_grids(N_GRID), list(SITES), progress=networks.progress)
    loss = models.validate(networks.physics.test)
    lowest, highest = found.capture.aminmax()
    rows = [
        Row("validation loss", 4e-4, loss, loss, "The same rule; the notebook's is of one start."),
    ]
    for i, name in enumerate(SITES.values()):
        cosine = found.cosine[:, i, A, B]
        rows.append(
            Row(
                f"cosine of the tasks' mean gradients, {name}",
                0.0036,
                cosine,
                cosine,
                "One network's, at a site of which there is no record: chance around 0.",
            )
        )
    rows += [
        Row("lowest capture of any network and site", 0.83, lowest, lowest, "The same rule."),
        Row("highest", 1.0, highest, highest, "The same rule."),
    ]
    for what, values, why in (
        ("capture", found.capture, "1: each direction varies with one task alone."),
        (
            "mean |cosine| of the tasks' distinct gradients",
            found.overlap[..., A, B],
            "0: orthogonal; most so in the last hidden layer, as in the notebook.",
        ),
        (
            "distinct gradients of a task",
            found.n_distinct.double().mean(2),
            f"Of {N_GRID**2:,} inputs: one for each linear region that they reach.",
        ),
    ):
        rows += [
            Row(f"{what}, {name}", None, None, values[:, i], why)
            for i, name in enumerate(SITES.values())
        ]
    settings = (
        f"{'-'.join(map(str, models.sizes))} on two tasks F = m a, {models.losses.shape[1]:,} "
        f"epochs of Adam 1e-2 on all of 8,000 samples; mean ± standard deviation over "
        f"{len(models)} networks; gradients on grids of {N_GRID} x {N_GRID} inputs."
    )
    return Section("N4: task gradients", settings, tuple(rows))
