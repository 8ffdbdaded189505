"""A call of every public function that touches a model, or draws random numbers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import modfast
from modfast import Clusters

N, D, H, C = 12, 6, 5, 3
QUIET: Any = {"progress": False}
FOLDER = tempfile.TemporaryDirectory()


def mlp() -> nn.Module:
    """A chain, for which the quick ways are taken."""
    torch.manual_seed(0)
    return modfast.models.MLP([D, H, H, C])


class Worn(nn.Module):
    """All that is to be put back: modes of single layers, buffers, a hook, dropout, a cache."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.fc1, self.act1 = nn.Linear(D, H), nn.ReLU(inplace=True)
        self.norm, self.drop = nn.BatchNorm1d(H), nn.Dropout(0.3)
        self.fc2, self.act2 = nn.Linear(H, H), nn.ReLU()
        self.fc3 = nn.Linear(H, C)
        self.seen: list[int] = []
        self.register_buffer("passes", torch.zeros(()))
        self.norm.eval()
        self.act2.register_forward_hook(lambda module, args, output: output * 1.0)

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        self.seen.append(len(x))
        h = self.drop(self.norm(self.act1(self.fc1(x))))
        return self.fc3(self.act2(self.fc2(h)))


class Encoder(nn.Module):
    """Where the fast path of torch's encoder layers would pass hooks by."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.layer = nn.TransformerEncoderLayer(4, 2, 5, batch_first=True)
        self.fc = nn.Linear(4, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer(x.view(len(x), 2, 4)).mean(1))


@dataclass(frozen=True)
class Case:
    """One call."""

    name: str
    make: Callable[[], nn.Module]
    call: Callable[[nn.Module], Any]
    trains: bool = False

    def __str__(self) -> str:
        return self.name


def _data(*shape: int, seed: int = 5, spread: float = 1.0) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    kind: Any = {"dtype": torch.float32, "device": "cpu"}
    return spread * torch.randn(*shape, generator=generator, **kind)


X, OTHER, WIDE = _data(N, D), _data(N, D, seed=6), _data(N, 8)
Y = torch.arange(N, device="cpu") % C
VECTORS = _data(2, H, seed=7)
HALVES = [[0, 1], [2, 3]]
DIFFERENCE = modfast.metrics.logit_difference(0, 1)
CLUSTERS = Clusters.equal(H, H, 2)
EVERY: Any = {"layer": "fc1", "samples": 64, "max_samples": 64, "tolerance": None, "seed": 0}
_CIRCUIT = modfast.discover_circuit(mlp(), X, OTHER, 1e-3, targets=Y, **QUIET)

MODEL_CALLS: dict[str, Callable[[nn.Module], Any]] = {
    "capture": lambda m: modfast.capture(m, X, ["fc1:input", "act1"], batch_size=5, **QUIET),
    "capture, to files": lambda m: modfast.capture(
        m, X, ["fc1:input", "act1"], batch_size=5, out=FOLDER.name, **QUIET
    ),
    "ablate_units": lambda m: modfast.ablate_units(m, X, "act1", **QUIET),
    "ablate_units, by the model": lambda m: modfast.ablate_units(
        m, X, "act2", HALVES[0], "mean", backend="model", **QUIET
    ),
    "ablate_directions": lambda m: modfast.ablate_directions(m, X, "act1", VECTORS, **QUIET),
    "ablate_groups": lambda m: modfast.ablate_groups(m, X, "act2", HALVES, targets=Y, **QUIET),
    "ablate_units, patched at several sites": lambda m: modfast.ablate_units(
        m, X, ["fc1", "act2"], corrupted=OTHER, metric=DIFFERENCE, seed=1, **QUIET
    ),
    "ablate_units, resampled and screened": lambda m: modfast.ablate_units(
        m, X, ["fc1", "act2"], value="resample", screen=2, seed=1, **QUIET
    ),
    "ablate_units, optimal": lambda m: modfast.ablate_units(
        m, X, "act2", [0], value="optimal", **QUIET
    ),
    "ablate_directions, by mean activations": lambda m: modfast.ablate_directions(
        m, X, "act2", VECTORS, value="mean", targets=Y, **QUIET
    ),
    "attribute_units": lambda m: modfast.attribute_units(m, X, ["fc1", "act2"], seed=1),
    "attribute_units, of a metric": lambda m: modfast.attribute_units(
        m, X, ["fc1", "act2"], corrupted=OTHER, metric=DIFFERENCE, groups=HALVES
    ),
    "attribute_units, in steps": lambda m: modfast.attribute_units(
        m, X, ["act1", "act2"], value="mean", metric="loss", targets=Y, steps=3
    ),
    "evaluate_clusters": lambda m: modfast.evaluate_clusters(m, (X, Y), "fc2", CLUSTERS),
    "max_information_direction": lambda m: modfast.max_information_direction(
        m, X, "act2", steps=2, restarts=2, seed=0
    ),
    "prune_circuit": lambda m: modfast.prune_circuit(m, X, Y, "fc2", labels=[0, 1], **QUIET),
    "prune_circuit, by the model": lambda m: modfast.prune_circuit(
        m, X, Y, "fc3", backend="model", **QUIET
    ),
    "effective_circuit_size": lambda m: modfast.effective_circuit_size(
        m, X, Y, thresholds=[1e-3, 1e-1], layers="fc3", **QUIET
    ),
    "search_space_reduction": lambda m: modfast.search_space_reduction(m, CLUSTERS, layer="fc2"),
    "max_activating": lambda m: modfast.max_activating(m, (X, Y), "act*", k=3, **QUIET),
    "jacobian_mutual_information": lambda m: modfast.jacobian_mutual_information(
        m, X, "fc1", HALVES, **QUIET
    ),
    "perturbational_ei": lambda m: modfast.perturbational_ei(m, D, **EVERY, **QUIET),
    "sensitivity": lambda m: modfast.sensitivity(m, D, **EVERY, **QUIET),
    "effective_information": lambda m: modfast.effective_information(m, D),
    "determinism": lambda m: modfast.determinism(m, D, "softmax"),
    "degeneracy": lambda m: modfast.degeneracy(m, inputs=X),
    "connectivity_matrix": lambda m: modfast.connectivity_matrix(m.fc1, D),
    "task_gradients": lambda m: modfast.task_gradients(m, X, ["input", "act1"], **QUIET),
    "compare_tasks": lambda m: modfast.compare_tasks(m, [X] * C, "act2", **QUIET),
    "fit": lambda m: modfast.fit(m, (X, Y), 2, 5, test=(X, Y), seed=0, **QUIET),
    "fit, into clusters": lambda m: modfast.fit(
        m, (X, Y), 2, 6, modfast.Modularity, seed=1, **QUIET
    ),
    "ClusterabilityLoss": lambda m: modfast.ClusterabilityLoss(m, "fc2", 2)(),
}
# They need a chain of layers.
CHAIN_CALLS: dict[str, Callable[[nn.Module], Any]] = {
    "attribute_edges": lambda m: modfast.attribute_edges(m, X, OTHER, Y, **QUIET),
    "attribute_edges, exact": lambda m: modfast.attribute_edges(
        m, X, OTHER, method="exact", **QUIET
    ),
    "discover_circuit": lambda m: modfast.discover_circuit(m, X, OTHER, 1e-3, targets=Y, **QUIET),
    "EdgeCircuit.evaluate": lambda m: _CIRCUIT.evaluate(m, X, OTHER, Y),
    "EdgeCircuit.logits": lambda m: _CIRCUIT.logits(m, X, OTHER),
}
CASES = [
    *(Case(name, mlp, call, "fit" in name) for name, call in MODEL_CALLS.items()),
    *(Case(name, mlp, call) for name, call in CHAIN_CALLS.items()),
    *(Case(f"{name}; worn", Worn, call, "fit" in name) for name, call in MODEL_CALLS.items()),
    *(
        Case(f"{name}; encoder", Encoder, call)
        for name, call in {
            "capture": lambda m: modfast.capture(m, WIDE, "layer.linear1", **QUIET),
            "ablate_units": lambda m: modfast.ablate_units(m, WIDE, "layer.linear1", **QUIET),
        }.items()
    ),
]

# Of tensors: those that draw random numbers, and those that make tensors of their own.
LONG, LATER = _data(60, 3, seed=8), _data(60, 2, seed=9)
CALLS: dict[str, Callable[[], Any]] = {
    "ksg_mutual_information": lambda: modfast.ksg_mutual_information(LONG, LATER),
    "kmeans_mutual_information": lambda: modfast.kmeans_mutual_information(LONG, LATER, 4),
    "gaussian_mutual_information": lambda: modfast.gaussian_mutual_information(LONG, LATER),
    "copula_mutual_information": lambda: modfast.copula_mutual_information(LONG, LATER),
    "total_correlation": lambda: modfast.total_correlation(LONG, [[0], [1, 2]]),
    "modularity_measures": lambda: modfast.modularity_measures(
        {"a": LONG, "b": LATER}, [{"a": [0], "b": [1]}, {"a": [1, 2], "b": [0]}]
    ),
    "mutual_information": lambda: modfast.mutual_information(
        LONG[:, :2], LATER, 4, correction="shuffle", seed=3
    ),
    "conditional_entropy": lambda: modfast.conditional_entropy(LONG[:, :2], LATER, 4),
    "entropy": lambda: modfast.entropy(LONG, 4, rule="quantile"),
    "joint_entropy": lambda: modfast.joint_entropy(LONG, LATER, 4, pairing="pairwise"),
    "joint_histogram": lambda: modfast.joint_histogram(LONG[:, :2], LATER, 4),
    "digitize": lambda: modfast.digitize(LONG, 4, range=(-1.0, 1.0)),
    "pairwise_mutual_information": lambda: modfast.pairwise_mutual_information(
        LONG, LATER, 4, n_permutations=5, seed=2
    ),
    "soft_mutual_information": lambda: modfast.soft_mutual_information(LONG[:, :2], LATER, 4),
    "soft_conditional_entropy": lambda: modfast.soft_conditional_entropy(LONG[:, :2], LATER, 4),
    "calibrate": lambda: modfast.calibrate(dims=[1], samples=[50], seeds=2, **QUIET),
    "clusterability": lambda: modfast.clusterability(VECTORS, Clusters.equal(2, H, 2)),
    "normalize_rows": lambda: modfast.normalize_rows(VECTORS),
    "entropy_bits": lambda: modfast.entropy_bits(VECTORS.softmax(0)),
    "principal_components": lambda: modfast.principal_components(LONG),
    "distinct_gradients": lambda: modfast.distinct_gradients(LONG.sign()),
    "label_purity": lambda: modfast.label_purity(Y.view(4, 3), C),
    "heads": lambda: modfast.heads(6, 2),
    "last_token": lambda: modfast.last_token(LONG.view(6, 10, 3)),
    "TaskStudy.train": lambda: modfast.TaskStudy.train(
        (LONG, LATER), (3, 4, 2), 2, 3, seed=4, **QUIET
    ),
    "TaskStudy.compare": lambda: modfast.TaskStudy.train(
        (LONG, LATER), (3, 4, 2), 2, 3, seed=4, **QUIET
    ).compare([LONG, LONG], **QUIET),
    "data.physics": lambda: modfast.data.physics(20, seed=1),
    "data.physics_grids": lambda: modfast.data.physics_grids(),
    "data.load": lambda: _digits().train,
}


def _digits() -> Any:
    return modfast.data.load("digits")


def differences(a: Any, b: Any, path: str = "result") -> list[str]:
    """Where two results are not bit for bit the same."""
    if isinstance(a, modfast.Result):
        a, b = a.to_dict(), b.to_dict()
    if isinstance(a, Tensor):
        b = b if isinstance(b, Tensor) else torch.tensor(b)
        same = a.dtype == b.dtype and a.shape == b.shape and a.device == b.device
        same = same and torch.equal(a.detach().nan_to_num(), b.detach().nan_to_num())
        return [] if same else [f"{path}: {a.dtype} {a.device} {a}, {b.dtype} {b.device} {b}"]
    if isinstance(a, Mapping):
        same = list(a) == list(b)
        found = [] if same else [f"{path}: {list(a)}, {list(b)}"]
        return found + [
            x for key in a if same for x in differences(a[key], b[key], f"{path}.{key}")
        ]
    if isinstance(a, (tuple, list)):
        pairs = enumerate(zip(a, b, strict=True))
        return [x for i, (one, two) in pairs for x in differences(one, two, f"{path}[{i}]")]
    if hasattr(a, "__dataclass_fields__"):
        return differences(vars(a), vars(b), path)
    return [] if a == b or a != a else [f"{path}: {a!r}, {b!r}"]
