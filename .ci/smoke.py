"""What an installed modfast must get right wherever it runs: known numbers, from every room.

    python smoke.py [--cpu]

Fails without the compiled library, and without the CUDA library where torch has CUDA of the same
major version as its toolkit; --cpu says that there is to be none.
"""

from __future__ import annotations

import math
import sys
import warnings

import torch

warnings.simplefilter("error")  # a library that does not load is only warned of

import modfast  # noqa: E402
from modfast import _extension  # noqa: E402

LN2 = math.log(2)


def near(name: str, found: object, wanted: object, tolerance: float = 1e-6) -> None:
    """Prints the number; ends everything where it is another."""
    pair = [torch.as_tensor(value, dtype=torch.float64) for value in (found, wanted)]
    if pair[0].shape != pair[1].shape or not torch.allclose(*pair, rtol=0, atol=tolerance):
        sys.exit(f"{name} must be {wanted}, got {found}")
    print(f"  {name}: right")


def libraries(with_cuda: bool) -> None:
    """They are loaded, and are those of this very version."""
    library = _extension.library
    assert library is not None
    info = library.build_info()
    assert info["version"] == modfast.__version__
    assert bool(info["cuda_toolkit"]) == with_cuda, info
    toolkit = info["cuda_toolkit"].split(".")[0]
    if with_cuda and (torch.version.cuda or "").split(".")[0] == toolkit:
        assert _extension.cuda_loaded
        assert torch._C._dispatch_has_kernel_for_dispatch_key("modfast::digitize", "CUDA")


def network() -> modfast.models.MLP:
    """Two hidden units: one decides between two classes by log-odds 2 ln 2, one goes nowhere."""
    model = modfast.models.MLP([2, 2, 2], bias=False)
    with torch.no_grad():
        model.fc1.weight.copy_(torch.eye(2))
        model.fc2.weight.copy_(torch.tensor([[LN2, 0.0], [-LN2, 0.0]]))
    return model


def rooms() -> None:
    """A few numbers of each that are known without a computer."""
    ones, clusters = torch.ones(4, 4), modfast.Clusters.equal(4, 4, k=2)
    near("clusters", modfast.clusterability(ones, clusters), 0.5)

    bits = torch.arange(8)[:, None] >> torch.arange(3) & 1
    pairs = modfast.pairwise_mutual_information(bits, bits, bins=2)
    near("information", pairs.mi, LN2 * torch.eye(3))
    steps = torch.linspace(0, 1, 1000, dtype=torch.float64)
    near("information, binned", modfast.mutual_information(steps, -steps, bins=10), math.log(10))

    model, x, y = network(), torch.ones(5, 2), torch.zeros(5, dtype=torch.int64)
    # Whole: (.8, .2); without unit 0: (.5, .5).
    kl = 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)
    units = modfast.ablate_units(model, x, "act1")
    assert units.backend == "fused", units.backend
    near("ablation", units.kl_ablated_original, [5 * kl, 0.0], 1e-5)

    circuit = modfast.prune_circuit(model, x, y, labels=0, threshold=1e-4)
    near("circuits", circuit.kept, 3)  # the zeros, and what leads to the idle unit, go

    rows = torch.arange(6.0)[:, None] * torch.tensor([1.0, -1.0]) + torch.tensor([0.0, 9.0])
    top = modfast.max_activating(model, rows, "act1", k=2)["act1"]
    near("features", top.indices, [[5, 4], [0, 1]])

    layer = torch.nn.Linear(4, 4)
    layer.weight.data.copy_(torch.eye(4))
    near("effective", modfast.effective_information(layer, 4).ei, 2.0)

    variances = torch.tensor([[4.0, 1.0], [0.0, 1.0]])
    near("tasks", modfast.task_capture(variances, torch.tensor([3.0, 1.0])), 0.875)
    study = modfast.TaskStudy.train(modfast.data.load("physics").train, n_models=2, epochs=5)
    assert bool((study.losses[:, -1] < study.losses[:, 0]).all())

    model = modfast.models.MLP([4, 4, 4, 2])
    stepper = modfast.Modularity(model.parameters(), lr=0.5, n_clusters=2, alpha=1.0)
    for parameter in model.parameters():
        parameter.data.fill_(1.0)
        parameter.grad = torch.zeros_like(parameter)
    stepper.step()
    # The clusterability's gradient at ones: 2 (1 - 1/2) / 16 within clusters, its negative outside.
    within = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2))
    near("training", model.fc2.weight.detach(), 1 + (2 * within - 1) / 32)


if __name__ == "__main__":
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}")
    libraries("--cpu" not in sys.argv[1:])
    rooms()
