"""The operators, as functions: validated, differentiable where that means something, compilable.

Analysis code calls these and never `torch.ops`. Arguments are tensors and numbers only; the rooms
above (`modfast.clusters`, `modfast.training`, ...) speak of layers, clusters and models.
"""

from modfast.ops.ablation import ablation_sweep, ablation_sweep_hidden, logit_terms
from modfast.ops.clusterability import cluster_penalty, cluster_penalty_gradient, cluster_sums
from modfast.ops.clustered_optimizers import clustered_adam_, clustered_sgd_
from modfast.ops.information import (
    binned_histogram,
    digitize,
    digitize_edges,
    joint_histogram,
    pairwise_information,
    permuted_information,
)
from modfast.ops.pruning import prune_layer
from modfast.ops.task_training import train_mlps_
from modfast.ops.top import update_top_
from modfast.ops.wiring import wiring_sums

__all__ = [
    "ablation_sweep",
    "ablation_sweep_hidden",
    "binned_histogram",
    "cluster_penalty",
    "cluster_penalty_gradient",
    "cluster_sums",
    "clustered_adam_",
    "clustered_sgd_",
    "digitize",
    "digitize_edges",
    "joint_histogram",
    "logit_terms",
    "pairwise_information",
    "permuted_information",
    "prune_layer",
    "train_mlps_",
    "update_top_",
    "wiring_sums",
]
