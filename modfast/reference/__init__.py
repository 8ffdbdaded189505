"""Every operator in plain, readable torch: the oracle of the tests, never optimized.

It also runs where no compiled kernel is: without the library, and on devices that it does not
cover. Names, arguments and results are those of `csrc/schema.cpp`; the files are those of
`modfast.ops`.
"""

from modfast.reference.ablation import (
    ACTIVATIONS,
    ablation_sweep,
    ablation_sweep_hidden,
    ablation_terms,
    class_sums,
    logit_terms,
)
from modfast.reference.clusterability import (
    cluster_penalty,
    cluster_penalty_backward,
    cluster_sums,
    ratio,
    same_cluster,
    split_labels,
)
from modfast.reference.clustered_optimizers import clustered_adam_, clustered_sgd_
from modfast.reference.information import (
    INFORMATION_ROUNDING,
    binned_histogram,
    code_dtype,
    compute_dtype,
    digitize,
    digitize_edges,
    information_bias,
    inner_edges,
    joint_histogram,
    mutual_information,
    nearest,
    one_hot,
    pairwise_information,
    permuted_information,
    relevant_bins,
)
from modfast.reference.pruning import prune_layer
from modfast.reference.task_training import run_mlps, split_mlps, train_mlps_
from modfast.reference.top import update_top_
from modfast.reference.wiring import wiring_sums

__all__ = [
    "ACTIVATIONS",
    "INFORMATION_ROUNDING",
    "ablation_sweep",
    "ablation_sweep_hidden",
    "ablation_terms",
    "binned_histogram",
    "class_sums",
    "cluster_penalty",
    "cluster_penalty_backward",
    "cluster_sums",
    "clustered_adam_",
    "clustered_sgd_",
    "code_dtype",
    "compute_dtype",
    "digitize",
    "digitize_edges",
    "information_bias",
    "inner_edges",
    "joint_histogram",
    "logit_terms",
    "mutual_information",
    "nearest",
    "one_hot",
    "pairwise_information",
    "permuted_information",
    "prune_layer",
    "ratio",
    "relevant_bins",
    "run_mlps",
    "same_cluster",
    "split_labels",
    "split_mlps",
    "train_mlps_",
    "update_top_",
    "wiring_sums",
]
