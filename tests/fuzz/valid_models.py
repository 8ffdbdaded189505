"""Valid calls of what runs or takes a model, and of the operators."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import sklearn.cluster  # noqa: F401  (its first import draws random numbers)
import torch
from fuzz.calls import entries, entry
from fuzz.valid import FOLDER, clusters
from torch import Tensor, nn

import modfast
from modfast.metrics import logit_difference
from modfast.models import MLP

QUIET = {"output": None, "progress": False}
LOGITS = (
    *("the model", "the model's logits", "outputs", "metric", "the weight of", "the loss"),
    "the driven module",
    *("the logits", "activations of", "partition"),
)
"""What messages call that which is no argument itself."""


def net() -> MLP:
    """Outputs 6 and inputs 5 in its first layer, as `clusters()` fit."""
    return MLP([5, 6, 6, 3])


def batch(n: int = 8) -> dict[str, Tensor]:
    return {"inputs": torch.randn(n, 5), "targets": torch.arange(n) % 3}


ABLATED = {"output": None, "dim": -1, "per_sample": False, "max_memory": 2**20}
ABLATED |= {"progress": False, "backend": "fused"}


PATCHED = {"corrupted": None, "positions": None, "metric": logit_difference(0, 1), "seed": 0}
ATTRIBUTED = ("the scores of",)


def tokens() -> nn.Module:
    """Logits at each of 4 positions."""
    return nn.Sequential(
        OrderedDict(
            fc1=nn.Linear(5, 6),
            act1=nn.ReLU(),
            fc2=nn.Linear(6, 6),
            act2=nn.Tanh(),
            fc3=nn.Linear(6, 3),
        )
    )


def words(n: int = 6) -> dict[str, Tensor]:
    targets = torch.arange(4 * n).reshape(n, 4) % 3
    return {"inputs": torch.randn(n, 4, 5), "targets": targets.where(targets != 1, -100)}


@entry("ablation.ablate_units", aliases=LOGITS, nan=True)
def _() -> dict[str, Any]:
    more = {"site": "act2", "units": [0, 3], "value": 0.0, "screen": 1, **PATCHED}
    return {"model": net(), **batch(), **more, **ABLATED}


@entry(
    "ablation.attribute_units", aliases=(*LOGITS, *ATTRIBUTED), work=frozenset({"steps", "draws"})
)
def _() -> dict[str, Any]:
    more = {"sites": ["act1", "act2"], "value": "mean", **PATCHED, "metric": "loss", "steps": 2}
    groups = {"act1": [[0, 1], [3]], "act2": [[2, 5]]}
    rest = {"groups": groups, "draws": 2, "output": None, "dim": -1}
    return {"model": tokens(), **words(), **more, "positions": [0, -1], **rest}


@entry("ablation.ablate_groups", aliases=LOGITS, nan=True)
def _() -> dict[str, Any]:
    more = {"units": [[0, 1], [3]], "groups": None, "keep": False, "value": "mean"}
    more |= {**PATCHED, "corrupted": torch.randn(6, 4, 5), "positions": "each"}
    return {"model": tokens(), **words(), "site": "act2", **more, **ABLATED, "backend": None}


@entry("ablation.ablate_directions", aliases=LOGITS, nan=True)
def _() -> dict[str, Any]:
    directions = torch.eye(6)[:3]
    more = {"site": ["act1", "act2"], "directions": directions, "value": "resample", **PATCHED}
    return {"model": net(), **batch(), **more, **ABLATED, "backend": None}


@entry("ablation.evaluate_clusters", aliases=LOGITS, nan=True, work=frozenset({"clusters"}))
def _() -> dict[str, Any]:
    data = tuple(batch().values())
    more = {"layer": "fc1", "clusters": clusters(), "output": None}
    return {"model": net(), "data": data, **more}


@entry("clusters.find_clusters", aliases=LOGITS)
def _() -> dict[str, Any]:
    more = {"balanced": True, "refine": True, "joint": True, "layers": ["fc1", "fc2"]}
    inputs = {"inputs": tuple(batch().values()), "output": None}
    return {"weight": net(), "k": 2, "method": "gradient", **more, **inputs, "seed": 0}


@entry("clusters.modularity_report", aliases=(*LOGITS, "weight"), work=frozenset({"n_shuffles"}))
def _() -> dict[str, Any]:
    options = {"clusters": None, "null": "row", "n_shuffles": 3, "layers": "fc[12]"}
    more = {"drop_isolated": True, "seed": 0, "progress": False}
    return {"model": net(), "k": 2, **options, **more}


def cut() -> dict[str, Any]:
    return {"fc2": modfast.Clusters.equal(6, 6, 2)}


@entry("clusters.split_clusters", aliases=LOGITS)
def _() -> dict[str, Any]:
    return {"model": net(), "clusters": cut(), "tolerance": 1.0}


@entry("clusters.SplitNetwork.difference", aliases=LOGITS)
def _() -> dict[str, Any]:
    split = modfast.split_clusters(net(), cut(), tolerance=1.0)
    return {"self": split, "model": net(), "inputs": batch()["inputs"]}


@entry("clusters.SplitNetwork.forward", nan=True, aliases=LOGITS)
def _() -> dict[str, Any]:
    split = modfast.split_clusters(net(), cut(), tolerance=1.0)
    return {"self": split, "*0": batch()["inputs"]}


@entry("ablation.max_information_direction", aliases=LOGITS, work=frozenset({"steps", "restarts"}))
def _() -> dict[str, Any]:
    inputs = {"inputs": batch()["inputs"], "site": "act2"}
    counts = {"steps": 3, "lr": 0.01, "restarts": 2, "seed": 0}
    return {"model": net(), **inputs, **counts, "output": None, "dim": -1, "backend": None}


@entry("information.jacobian_mutual_information", aliases=LOGITS)
def _() -> dict[str, Any]:
    inputs = {"inputs": batch()["inputs"], "sites": "fc1", "units": [[0], [1, 2]]}
    more = {"total": False, "max_memory": 2**20, "progress": False}
    return {"model": net(), **inputs, **more}


@entry("training.ClusterabilityLoss", aliases=LOGITS)
def _() -> dict[str, Any]:
    more = {"layers": ["fc1", "fc2"], "n_clusters": 2, "clusters": None, "alpha": 2.0}
    return {"model": net(), **more}


@entry("training.Modularity")
def _() -> dict[str, Any]:
    params = list(net().named_parameters())
    more = {"lr": 0.1, "n_clusters": 2, "alpha": 2.0, "layers": "fc2", "clusters": None}
    return {"params": params, **more, "base": "adam", "weight_decay": 0.1}


def optimizer() -> modfast.Modularity:
    model = net()
    found = modfast.Modularity(model.named_parameters(), lr=0.1, n_clusters=2)
    model(torch.randn(4, 5)).square().mean().backward()
    found.step()
    return found


@entry("training.Modularity.add_param_group", moves=frozenset({"self"}), aliases=("params",))
def _() -> dict[str, Any]:
    group = {"params": [("more", nn.Parameter(torch.randn(3, 3)))]}
    return {"self": optimizer(), "param_group": group}


@entry("training.Modularity.load_state_dict", moves=frozenset({"self"}))
def _() -> dict[str, Any]:
    return {"self": optimizer(), "state_dict": optimizer().state_dict()}


@entry("training.Modularity.step", moves=frozenset({"self"}))
def _() -> dict[str, Any]:
    return {"self": optimizer(), "closure": lambda: torch.zeros(())}


@entry(
    "training.fit",
    moves=frozenset({"model", "optimizer", "checkpoint"}),
    work=frozenset({"epochs"}),
    errors=(FloatingPointError, OSError),
    aliases=LOGITS,
)
def _() -> dict[str, Any]:
    train, test = tuple(batch().values()), tuple(batch().values())
    more = {"epochs": 1, "batch_size": 4, "optimizer": None, "regularizer": None, "seed": 0}
    return {"model": net(), "train": train, "test": test, **more, "checkpoint": None, **QUIET}


@entry("features.max_activating", aliases=LOGITS)
def _() -> dict[str, Any]:
    data = {"data": tuple(batch().values()), "sites": ["act1", "fc2"], "k": 3}
    more = {"reduce": "max", "dim": -1, "batch_size": 4, "context": None, "progress": False}
    return {"model": net(), **data, **more}


@entry("circuits.prune_circuit", aliases=LOGITS)
def _() -> dict[str, Any]:
    more = {"layers": ["fc1", "fc3"], "order": "row", "threshold": 1e-3, "baseline": "running"}
    return {"model": net(), **batch(), **more, "labels": [0, 1], **QUIET, "backend": None}


@entry("circuits.effective_circuit_size", aliases=LOGITS)
def _() -> dict[str, Any]:
    more = {"thresholds": [1e-3, 1e-2], "labels": [0, 2], "layers": "fc1"}
    rest = {"order": "row", "baseline": "running", **QUIET, "backend": None}
    return {"model": net(), **batch(), **more, **rest}


@entry("circuits.search_space_reduction", aliases=(*LOGITS, "layers"))
def _() -> dict[str, Any]:
    return {"model": net(), "clusters": clusters(), "keep": [1], "layer": "fc1"}


@entry("circuits.Circuit.apply")
def _() -> dict[str, Any]:
    model = net()
    return {"self": modfast.prune_circuit(model, **batch(), layers="fc1"), "model": model}


@entry("circuits.Circuit.close_calls")
def _() -> dict[str, Any]:
    return {"self": modfast.prune_circuit(net(), **batch(), layers="fc1"), "rounding": 1e-6}


def edges() -> dict[str, Any]:
    clean, targets = batch().values()
    return {"model": net(), "clean": clean, "corrupted": clean.flip(0), "targets": targets}


NODES = {"fc1": [[0, 1], [2]]}


@entry("circuits.attribute_edges", aliases=LOGITS, work=frozenset({"steps"}))
def _() -> dict[str, Any]:
    more = {
        "method": "eap-ig",
        "metric": "loss",
        "nodes": NODES,
        "steps": 2,
        "intervention": "patch",
    }
    return {**edges(), **more, **QUIET, "max_memory": 2**20}


@entry("circuits.discover_circuit", aliases=LOGITS)
def _() -> dict[str, Any]:
    more = {"threshold": 1e-2, "metric": "kl", "nodes": NODES, "intervention": "patch"}
    return {**edges(), **more, **QUIET, "max_memory": 2**20}


@entry("circuits.network_graph", aliases=LOGITS)
def _() -> dict[str, Any]:
    return {"model": net(), "inputs": batch()["inputs"], "nodes": NODES, "output": None}


def edge_scores(model: nn.Module) -> modfast.EdgeScores:
    return modfast.attribute_edges(**{**edges(), "model": model}, progress=False)


@entry("circuits.EdgeScores.circuit")
def _() -> dict[str, Any]:
    return {"self": edge_scores(net()), "n_edges": 5, "signed": True, "prune": False}


@entry("circuits.faithfulness_curve", aliases=LOGITS)
def _() -> dict[str, Any]:
    found = edges()
    more = {"sizes": [3, 9], "metric": "kl", "signed": False, "output": None, **QUIET}
    return {"scores_or_circuits": edge_scores(found["model"]), **found, **more}


@entry("circuits.EdgeScores.top")
def _() -> dict[str, Any]:
    return {"self": edge_scores(net()), "k": 5}


@entry("circuits.EdgeCircuit.evaluate", aliases=LOGITS)
def _() -> dict[str, Any]:
    found = edges()
    circuit = edge_scores(found["model"]).circuit(9)
    return {"self": circuit, **found, "output": None}


@entry("circuits.EdgeCircuit.logits", aliases=LOGITS)
def _() -> dict[str, Any]:
    found = edges()
    circuit = edge_scores(found["model"]).circuit(9)
    del found["targets"]
    return {"self": circuit, **found, "output": None}


@entry("effective.connectivity_matrix")
def _() -> dict[str, Any]:
    more = {"input_shape": (2, 4), "channel_mixing": False, "max_memory": 2**20}
    return {"module": nn.Conv1d(2, 3, 2), **more}


@entries(
    "effective.effective_information",
    "effective.determinism",
    "effective.degeneracy",
    aliases=LOGITS,
)
def _() -> dict[str, Any]:
    more = {"norm": "linear", "inputs": None, "batch_norm": "skip", "channel_mixing": False}
    return {"model": net(), "input_shape": 5, **more, "unsupported": "error"}


DRIVEN = {
    "in_range": (0.0, 1.0),
    "out_range": (-1.0, 1.0),
    "output": None,
    "activation": torch.tanh,
}
DRIVEN |= {"bins": 4, "correction": "miller-madow", "samples": 40, "tolerance": 0.5}
DRIVEN |= {"max_samples": 100, "seed": 0, "progress": False}
MOST = frozenset({"samples", "max_samples"})


@entry("effective.perturbational_ei", aliases=LOGITS, work=MOST)
def _() -> dict[str, Any]:
    return {"model": net(), "input_shape": (5,), "layer": "fc2", "mode": "parts", **DRIVEN}


@entry("effective.sensitivity", aliases=LOGITS, work=MOST)
def _() -> dict[str, Any]:
    driven = {**DRIVEN, "out_range": None, "activation": None}
    return {"model": net(), "input_shape": 5, "layer": None, "silent": 0.5, **driven}


@entry("tasks.task_gradients", aliases=LOGITS)
def _() -> dict[str, Any]:
    more = {"sites": ["input", "act*"], "tasks": [0, 2], "pool": False, "batch_size": 4}
    return {"model": net(), "inputs": batch()["inputs"], **more, **QUIET}


@entry("tasks.compare_tasks", aliases=LOGITS, nan=True)
def _() -> dict[str, Any]:
    more = {"sites": "act*", "tasks": [0, 1], "pool": False, "batch_size": 4}
    return {"model": net(), "inputs_by_task": torch.randn(2, 6, 5), **more, **QUIET}


def study() -> modfast.TaskStudy:
    data = torch.randn(6, 4), torch.randn(6, 2)
    return modfast.TaskStudy.train(data, (4, 3, 2), n_models=2, epochs=2, progress=False)


COUNTS = frozenset({"sizes", "n_models", "epochs"})


@entry("tasks.TaskStudy.train", work=COUNTS, errors=(FloatingPointError,))
def _() -> dict[str, Any]:
    data = {"data": (torch.randn(6, 4), torch.randn(6, 2)), "sizes": (4, 3, 2)}
    more = {"n_models": 2, "epochs": 2, "lr": 0.01, "seed": 0, "progress": False}
    return {**data, **more}


@entry("tasks.TaskStudy.model", errors=(IndexError,))
def _() -> dict[str, Any]:
    return {"self": study(), "index": 1}


@entry("tasks.TaskStudy.outputs")
def _() -> dict[str, Any]:
    return {"self": study(), "x": torch.randn(5, 4)}


@entry("tasks.TaskStudy.validate")
def _() -> dict[str, Any]:
    return {"self": study(), "data": (torch.randn(5, 4), torch.randn(5, 2))}


@entry("tasks.TaskStudy.compare", nan=True)
def _() -> dict[str, Any]:
    inputs = modfast.data.physics_grids(3)
    return {"self": study(), "inputs_by_task": inputs, "sites": ["act1"], "progress": False}


@entry("models.MLP.forward", nan=True)
def _() -> dict[str, Any]:
    return {"self": net(), "x": torch.randn(4, 5)}


@entry("capture", aliases=LOGITS, errors=(OSError,), nan=True)
def _() -> dict[str, Any]:
    more = {"sites": ["act1", "fc2:input"], "batch_size": 4, "out": FOLDER.name}
    return {"model": net(), "inputs": batch()["inputs"], **more, "progress": False}
