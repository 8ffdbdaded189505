"""modfast: fast, exact measurement and training of modularity in neural networks.

Clusters of a weight            Clusters, clusterability, find_clusters
... more than chance?           modularity_report, ModularityReport
... cut apart                   split_clusters, SplitNetwork
Training into clusters          ClusterabilityLoss, Modularity, fit, History
What a cluster does             evaluate_clusters, ClusterEvaluation
Binned information              mutual_information, entropy, joint_entropy, conditional_entropy
... its counts                  digitize, joint_histogram, JointHistogram
... of all pairs of units       pairwise_mutual_information
... as a loss                   soft_mutual_information, soft_conditional_entropy
... of modules                  modularity_measures
Information of groups of units  gaussian_mutual_information, copula_mutual_information,
                                ksg_mutual_information, kmeans_mutual_information
... through a network           jacobian_mutual_information
... of many groups              total_correlation
... how far off it is           calibrate, Calibration
What a unit or direction does   ablate_units, ablate_directions, ablate_groups, AblationResult,
                                SiteAblations, metrics
... of all units, by gradients  attribute_units, UnitScores, Screening
The direction that counts most  max_information_direction, DirectionResult
What a unit responds to         max_activating, TopActivations, label_purity, LabelPurity
Which edges a behavior needs    attribute_edges, EdgeScores, discover_circuit, EdgeCircuit
The weights that a label needs  prune_circuit, Circuit, search_space_reduction
... for each label, and how many effective_circuit_size, CircuitSizes
Information of the wiring       effective_information, EffectiveInformation, determinism, degeneracy
... its dense steps             connectivity_matrix, normalize_rows, entropy_bits
... by perturbation             perturbational_ei, sensitivity, PerturbationalInformation
Directions that tasks use       task_gradients, distinct_gradients, principal_components
... and share                   task_similarity, variance_explained, task_capture, compare_tasks
... in many networks            TaskStudy
Networks, data, activations     models, data, capture
What functions return           Result: shown in short, saved, loaded, drawn
Attention heads, last tokens    heads, last_token
The compiled library            has_ops, and `python -m modfast info`
... and the plain way without   reference_mode
"""

from modfast import data, metrics, models
from modfast._extension import has_ops, reference_mode
from modfast.ablation import (
    AblationResult,
    ClusterEvaluation,
    DirectionResult,
    Screening,
    SiteAblations,
    UnitScores,
    ablate_directions,
    ablate_groups,
    ablate_units,
    attribute_units,
    evaluate_clusters,
    max_information_direction,
)
from modfast.circuits import (
    Circuit,
    CircuitEvaluation,
    CircuitSizes,
    EdgeCircuit,
    EdgeScores,
    FaithfulnessCurve,
    NetworkGraph,
    attribute_edges,
    discover_circuit,
    effective_circuit_size,
    faithfulness_curve,
    network_graph,
    prune_circuit,
    search_space_reduction,
)
from modfast.clusters import (
    Clusters,
    ModularityReport,
    SplitNetwork,
    clusterability,
    find_clusters,
    modularity_report,
    split_clusters,
)
from modfast.effective import (
    EffectiveInformation,
    LayerInformation,
    PerturbationalInformation,
    connectivity_matrix,
    degeneracy,
    determinism,
    effective_information,
    entropy_bits,
    normalize_rows,
    perturbational_ei,
    sensitivity,
)
from modfast.features import LabelPurity, TopActivations, label_purity, max_activating
from modfast.information import (
    Calibration,
    JointHistogram,
    JointInformation,
    ModularityMeasures,
    PairwiseInformation,
    calibrate,
    conditional_entropy,
    copula_mutual_information,
    digitize,
    entropy,
    gaussian_mutual_information,
    jacobian_mutual_information,
    joint_entropy,
    joint_histogram,
    kmeans_mutual_information,
    ksg_mutual_information,
    modularity_measures,
    mutual_information,
    pairwise_mutual_information,
    soft_conditional_entropy,
    soft_mutual_information,
    total_correlation,
)
from modfast.network.capture import capture
from modfast.network.logits import last_token
from modfast.network.sites import heads
from modfast.results import Result
from modfast.tasks import (
    DistinctGradients,
    TaskComparison,
    TaskComparisons,
    TaskGradients,
    TaskSimilarity,
    TaskStudy,
    compare_tasks,
    distinct_gradients,
    principal_components,
    task_capture,
    task_gradients,
    task_similarity,
    variance_explained,
)
from modfast.training import ClusterabilityLoss, History, Modularity, fit

__version__ = "0.1.0"

__all__ = [
    "AblationResult",
    "Calibration",
    "Circuit",
    "CircuitEvaluation",
    "CircuitSizes",
    "ClusterEvaluation",
    "ClusterabilityLoss",
    "Clusters",
    "DirectionResult",
    "DistinctGradients",
    "EdgeCircuit",
    "EdgeScores",
    "EffectiveInformation",
    "FaithfulnessCurve",
    "History",
    "JointHistogram",
    "JointInformation",
    "LabelPurity",
    "LayerInformation",
    "Modularity",
    "ModularityMeasures",
    "ModularityReport",
    "NetworkGraph",
    "PairwiseInformation",
    "PerturbationalInformation",
    "Result",
    "Screening",
    "SiteAblations",
    "SplitNetwork",
    "TaskComparison",
    "TaskComparisons",
    "TaskGradients",
    "TaskSimilarity",
    "TaskStudy",
    "TopActivations",
    "UnitScores",
    "ablate_directions",
    "ablate_groups",
    "ablate_units",
    "attribute_edges",
    "attribute_units",
    "calibrate",
    "capture",
    "clusterability",
    "compare_tasks",
    "conditional_entropy",
    "connectivity_matrix",
    "copula_mutual_information",
    "data",
    "degeneracy",
    "determinism",
    "digitize",
    "discover_circuit",
    "distinct_gradients",
    "effective_circuit_size",
    "effective_information",
    "entropy",
    "entropy_bits",
    "evaluate_clusters",
    "faithfulness_curve",
    "find_clusters",
    "fit",
    "gaussian_mutual_information",
    "has_ops",
    "heads",
    "jacobian_mutual_information",
    "joint_entropy",
    "joint_histogram",
    "kmeans_mutual_information",
    "ksg_mutual_information",
    "label_purity",
    "last_token",
    "max_activating",
    "max_information_direction",
    "metrics",
    "models",
    "modularity_measures",
    "modularity_report",
    "mutual_information",
    "network_graph",
    "normalize_rows",
    "pairwise_mutual_information",
    "perturbational_ei",
    "principal_components",
    "prune_circuit",
    "reference_mode",
    "search_space_reduction",
    "sensitivity",
    "soft_conditional_entropy",
    "soft_mutual_information",
    "split_clusters",
    "task_capture",
    "task_gradients",
    "task_similarity",
    "total_correlation",
    "variance_explained",
]
