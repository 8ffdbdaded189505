"""Valid calls of what needs no model; `valid_models` has those that do."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from typing import Any

import torch
from fuzz.calls import entries, entry
from torch import Tensor

import modfast
from modfast import information

FOLDER = tempfile.TemporaryDirectory()
BINNED = {"range": "global", "rule": "uniform", "pairing": "aligned", "correction": None}


def pair(n: int = 24, d: int = 3) -> dict[str, Tensor]:
    x = torch.randn(n, d)
    return {"x": x, "y": x + 0.5 * torch.randn(n, d)}


@entries(*(f"information.{name}" for name in ("mutual_information", "joint_entropy")))
@entry("information.conditional_entropy")
def _() -> dict[str, Any]:
    return {**pair(), "bins": 4, **BINNED, "seed": 0}


@entry("information.entropy")
def _() -> dict[str, Any]:
    return {"x": pair()["x"], "bins": 4, **BINNED}


@entry("information.joint_histogram")
def _() -> dict[str, Any]:
    more = {"pairing": "all", "range": (-2.0, 2.0), "rule": "uniform", "outside": "clip"}
    return {**pair(), "bins": 4, **more}


@entry("information.digitize")
def _() -> dict[str, Any]:
    more = {"range": "column", "rule": "quantile", "outside": "clip"}
    return {"x": pair()["x"], "bins": 4, **more}


@entry("information.Binning")
def _() -> dict[str, Any]:
    return {"bins": 4, "range": (-1.0, 1.0), "rule": "uniform", "outside": "clip"}


# What messages call the values is an argument of its own.
@entries("information.Binning.codes", "information.Binning.bounds_for", aliases=("values",))
def _() -> dict[str, Any]:
    return {"self": information.Binning(4), "argument": "values", "values": pair()["x"]}


@entry("information.entropies_of_counts", nan=True)
def _() -> dict[str, Any]:
    return {"counts": torch.tensor([[3, 0, 2], [1, 1, 1]])}


@entry("information.pairwise_mutual_information", work=frozenset({"n_permutations"}))
def _() -> dict[str, Any]:
    more = {"range": "column", "rule": "uniform", "correction": None, "normalized": "min"}
    return {**pair(), "bins": 4, **more, "n_permutations": 3, "seed": 0}


@entries("information.soft_mutual_information", "information.soft_conditional_entropy")
def _() -> dict[str, Any]:
    more = {"window": 0.5, "kernel": "b-spline", "range": "global", "pairing": "aligned"}
    return {**pair(), "bins": 4, **more}


@entry("information.copula_mutual_information")
def _() -> dict[str, Any]:
    return {**pair(), "unbiased": True}


@entry("information.gaussian_mutual_information")
def _() -> dict[str, Any]:
    return {**pair(), "covariance": None, "unbiased": True}


@entry("information.kmeans_mutual_information", work=frozenset({"max_iterations"}))
def _() -> dict[str, Any]:
    return {**pair(), "k": 3, "max_iterations": 5, "seed": 0}


@entry("information.ksg_mutual_information")
def _() -> dict[str, Any]:
    return {**pair(), "k": 3, "variant": 1, "jitter": 1e-10, "seed": 0}


@entry("information.total_correlation", aliases=("partition",))
def _() -> dict[str, Any]:
    return {"activations": torch.randn(24, 4), "units": [0, 0, 1, 2], "estimator": "gaussian"}


@entry("information.modularity_measures", aliases=("partition",))
def _() -> dict[str, Any]:
    activations = {"fc1": torch.randn(24, 4), "fc2": torch.randn(24, 4)}
    units = {"fc1": [0, 1], "fc2": [2]}
    pairs = [("fc1", "fc2")]
    options = {"estimator": "binned", "bins": 4}
    return {"activations": activations, "units": units, "pairs": pairs, **options}


@entry("information.calibrate", nan=True, work=frozenset({"dims", "samples", "seeds"}))
def _() -> dict[str, Any]:
    estimators = {"gaussian": modfast.gaussian_mutual_information}
    more = {"dims": [1], "samples": [40], "seeds": 2, "information": 1.0, "progress": False}
    return {"estimators": estimators, **more}


def histogram() -> modfast.JointHistogram:
    return modfast.JointHistogram(4, (-3.0, 3.0)).update(*pair().values())


@entry("information.JointHistogram")
def _() -> dict[str, Any]:
    limits = {"range": (-3.0, 3.0), "y_range": (-2.0, 2.0)}
    more = {"pairing": "pairwise", "outside": "clip", "features": (3, 2), "device": "cpu"}
    return {"bins": 4, **limits, **more}


@entry("information.JointHistogram.update", moves=frozenset({"self"}))
def _() -> dict[str, Any]:
    return {"self": histogram(), **pair()}


@entry("information.JointHistogram.merge", moves=frozenset({"self"}))
def _() -> dict[str, Any]:
    return {"self": histogram(), "other": histogram()}


@entry("information.JointHistogram.load_state_dict", moves=frozenset({"self"}))
def _() -> dict[str, Any]:
    return {"self": histogram(), "state": histogram().state_dict()}


def measures() -> modfast.ModularityMeasures:
    return modfast.ModularityMeasures(*torch.rand(3, 1), pairs=(("fc1", "fc2"),))


@entry("information.ModularityMeasures.overlay")
def _() -> dict[str, Any]:
    return {"results": {"a": measures(), "b": measures()}}


@entry("information.ModularityMeasures.plot")
def _() -> dict[str, Any]:
    return {"self": measures(), "untrained": measures()}


@entry("information.PairwiseInformation.plot")
def _() -> dict[str, Any]:
    found = modfast.pairwise_mutual_information(*pair().values(), n_permutations=3, seed=0)
    return {"self": found, "alpha": 0.5}


def clusters() -> modfast.Clusters:
    return modfast.Clusters.equal(6, 5, 2)


@entry("clusters.Clusters", aliases=("labels",))
def _() -> dict[str, Any]:
    return {"rows": [0, 1, -1], "cols": torch.tensor([0, 1]), "n_clusters": 2}


@entry("clusters.Clusters.equal", aliases=("n_clusters",))
def _() -> dict[str, Any]:
    return {"n_out": 6, "n_in": 5, "k": 2}


@entry("clusters.Clusters.from_indices")
def _() -> dict[str, Any]:
    return {"row_lists": [[0, 2], [1]], "col_lists": {0: [1], 1: [0]}, "shape": (3, 2)}


@entry("clusters.Clusters.from_masks")
def _() -> dict[str, Any]:
    return {"row_masks": torch.eye(2).bool(), "col_masks": torch.eye(2).bool()}


@entry("clusters.Clusters.plot", aliases=("rows", "cols"))
def _() -> dict[str, Any]:
    return {"self": clusters(), "weight": torch.randn(6, 5), "title": "found"}


@entry("clusters.Clusters.save", errors=(OSError,))
def _() -> dict[str, Any]:
    return {"self": clusters(), "path": f"{FOLDER.name}/saved.safetensors"}


@entry("clusters.Clusters.load", errors=(OSError,))
def _() -> dict[str, Any]:
    clusters().save(path := f"{FOLDER.name}/clusters.safetensors")
    return {"path": path}


@entry("clusters.Clusters.to")
def _() -> dict[str, Any]:
    return {"self": clusters(), "device": "cpu"}


@entry("clusters.clusterability", nan=True, aliases=("weights",))
def _() -> dict[str, Any]:
    return {"weight": torch.randn(6, 5), "clusters": clusters()}


@entry("clusters.equal_clusters", aliases=("n_clusters",))
def _() -> dict[str, Any]:
    return {"weight": torch.randn(6, 5), "k": 2, "name": "weight", "transposed": False}


@entry("clusters.fit_labels")
def _() -> dict[str, Any]:
    weight = {"weight": torch.randn(5, 6), "name": "weight"}
    return {"clusters": clusters(), **weight, "transposed": True}


@entry("clusters.is_sharded")
def _() -> dict[str, Any]:
    return {"weight": torch.randn(6, 5)}


def labeled(n: int = 2) -> dict[str, Any]:
    return {"weights": [torch.randn(6, 5) for _ in range(n)], "labels": [clusters().labels] * n}


@entry("clusters.penalty_of", nan=True)
def _() -> dict[str, Any]:
    return {**labeled(), "scale": -1.5}


@entry("clusters.sums_of", nan=True)
def _() -> dict[str, Any]:
    return labeled()


@entry("clusters.gradient_of", nan=True, aliases=("weights",))
def _() -> dict[str, Any]:
    sums = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    weight = torch.randn(6, 5)
    return {"weight": weight, "labels": clusters().labels, "scale": 1.5, "sums": sums}


@entry("effective.entropy_bits")
def _() -> dict[str, Any]:
    return {"p": torch.rand(4, 3).softmax(0), "dim": 0}


@entry("effective.normalize_rows")
def _() -> dict[str, Any]:
    return {"weight": torch.randn(4, 3), "norm": "softmax"}


@entry("tasks.distinct_gradients")
def _() -> dict[str, Any]:
    rows = torch.randn(3, 4)[[0, 1, 1, 2, 0]]
    return {"gradients": rows, "regions": torch.tensor([0, 1, 1, 2, 0]), "tolerance": 1e-5}


@entry("tasks.principal_components")
def _() -> dict[str, Any]:
    return {"x": torch.randn(7, 4)}


@entry("tasks.task_capture", nan=True)
def _() -> dict[str, Any]:
    return {"variances": torch.rand(2, 3), "norms": torch.rand(3)}


def distinct() -> modfast.DistinctGradients:
    return modfast.distinct_gradients(torch.randn(5, 4))


@entry("tasks.task_similarity")
def _() -> dict[str, Any]:
    return {"a": distinct(), "b": distinct()}


@entry("tasks.variance_explained")
def _() -> dict[str, Any]:
    tasks = [torch.randn(6, 4), torch.randn(7, 4)]
    return {"components": torch.randn(3, 4), "activations_by_task": tasks}


@entry("tasks.TaskComparison.similarity")
def _() -> dict[str, Any]:
    comparison = modfast.TaskComparison((distinct(), distinct()), torch.rand(2, 10))
    return {"self": comparison, "a": 0, "b": 1}


@entry("tasks.TaskGradients.distinct")
def _() -> dict[str, Any]:
    gradients = torch.randn(2, 5, 4)
    found = modfast.TaskGradients((0, 1), gradients, torch.randn(5, 4), None)
    return {"self": found, "task": 1, "tolerance": 1e-5}


@entry("features.label_purity", aliases=("labels",))
def _() -> dict[str, Any]:
    return {"top": torch.tensor([[0, 2, 2], [1, 1, 1]]), "n_classes": 3, "skip_dead": False}


@entry("features.LabelPurity.overlay")
def _() -> dict[str, Any]:
    purity = modfast.label_purity(torch.tensor([[0, 2, 2], [1, 1, 1]]), 3)
    return {"results": {"a": purity, "b": purity}}


def top(first: int = 0) -> modfast.TopActivations:
    indices = torch.tensor([[0, 3], [2, 1]]) + first
    values = torch.rand(2, 2).sort(1, True).values
    return modfast.TopActivations(indices, values, indices % 3, indices % 2)


@entry("features.TopActivations.merge")
def _() -> dict[str, Any]:
    return {"self": top(), "other": top(4)}


@entry("features.TopActivations.plot")
def _() -> dict[str, Any]:
    more = {"units": [0, 1], "n_samples": 2, "tokenizer": None}
    return {"self": top(), "inputs": torch.rand(4, 5), **more}


def ablated(a: int = 4) -> modfast.AblationResult:
    return modfast.AblationResult(*torch.rand(3, a).double(), 5)


@entries("ablation.AblationResult.mean", "ablation.AblationResult.total")
@entry("ablation.AblationResult.plot")
def _() -> dict[str, Any]:
    return {"self": ablated(), "measure": "kl_ablated_original"}


@entry("ablation.AblationResult.overlay")
def _() -> dict[str, Any]:
    return {"results": {"a": ablated(), "b": ablated()}, "measure": "kl_ablated_original"}


@entry("ablation.AblationResult.top", aliases=("measure",))
def _() -> dict[str, Any]:
    return {"self": ablated(), "k": 2, "by": "kl_original_ablated", "largest": True}


@entry("ablation.AblationResult.grid")
def _() -> dict[str, Any]:
    at = {"numbers": torch.tensor([3, 3, 5, 5]), "positions": torch.tensor([0, 1, 0, 1])}
    return {"self": replace(ablated(), **at), "measure": "kl_ablated_original"}


def sites() -> modfast.SiteAblations:
    return modfast.SiteAblations({"fc1": ablated(), "fc2": ablated(3)})


@entry("ablation.SiteAblations.plot")
def _() -> dict[str, Any]:
    return {"self": sites(), "measure": "kl_ablated_original"}


@entry("ablation.SiteAblations.top", aliases=("measure",))
def _() -> dict[str, Any]:
    return {"self": sites(), "k": 2, "by": "kl_original_ablated"}


@entry("ablation.UnitScores.top")
def _() -> dict[str, Any]:
    scores = {"fc1": torch.rand(4).double(), "fc2": torch.rand(3, 2).double()}
    return {"self": modfast.UnitScores(scores, "kl", 5), "k": 2}


@entry("metrics.logit_difference")
def _() -> dict[str, Any]:
    return {"a": 1, "b": torch.tensor([0, 2, 1])}


@entry("metrics.probability")
def _() -> dict[str, Any]:
    return {"targets": [0, 2, 1]}


@entry("ablation.ClusterEvaluation.plot")
def _() -> dict[str, Any]:
    shapes = (), (3,), (2,), (2,), (2, 3), (2, 3)
    found = modfast.ClusterEvaluation(*(torch.rand(shape) for shape in shapes))
    return {"self": found, "score": "accuracy", "class_names": ["a", "b", "c"]}


def history() -> modfast.History:
    return modfast.History(torch.rand(4), torch.rand(4, 2), torch.rand(2), torch.tensor([0, 4]))


@entry("training.History.plot")
def _() -> dict[str, Any]:
    return {"self": history(), "score": "accuracy"}


@entry("training.History.overlay")
def _() -> dict[str, Any]:
    return {"results": {"a": history(), "b": history()}, "score": "accuracy"}


def sizes() -> modfast.CircuitSizes:
    kept = torch.tensor([[3, 2], [1, 1]])
    losses = torch.rand(2, 2).double()
    thresholds = torch.tensor([0.1, 0.2]).double()
    return modfast.CircuitSizes(thresholds, (0, 1), kept, losses, losses[0], 5)


@entry("circuits.CircuitSizes.overlay")
def _() -> dict[str, Any]:
    return {"results": {"a": sizes(), "b": sizes()}}
