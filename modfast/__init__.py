"""modfast: fast, exact measurement and training of modularity in neural networks.

Clusters of a weight            Clusters, clusterability
Training into clusters          ClusterabilityLoss, Modularity, fit, History
What a cluster does             evaluate_clusters, ClusterEvaluation
Binned information              mutual_information, entropy, joint_entropy, conditional_entropy
... its counts                  digitize, joint_histogram, JointHistogram
... of all pairs of units       pairwise_mutual_information
... as a loss                   soft_mutual_information, soft_conditional_entropy
... of modules                  modularity_measures
What a unit or direction does   ablate_units, ablate_directions, ablate_groups, AblationResult
The direction that counts most  max_information_direction, DirectionResult
What a unit responds to         max_activating, TopActivations, label_purity, LabelPurity
Which edges a behavior needs    attribute_edges, EdgeScores, discover_circuit, EdgeCircuit
The weights that a label needs  prune_circuit, Circuit, search_space_reduction
... for each label, and how many effective_circuit_size, CircuitSizes
Networks, data, activations     models, data, capture
The compiled library            has_ops, and `python -m modfast info`
"""

from modfast import data, models
from modfast._extension import has_ops
from modfast.ablation import (
    AblationResult,
    ClusterEvaluation,
    DirectionResult,
    ablate_directions,
    ablate_groups,
    ablate_units,
    evaluate_clusters,
    max_information_direction,
)
from modfast.circuits import (
    Circuit,
    CircuitEvaluation,
    CircuitSizes,
    EdgeCircuit,
    EdgeScores,
    attribute_edges,
    discover_circuit,
    effective_circuit_size,
    prune_circuit,
    search_space_reduction,
)
from modfast.clusters import Clusters, clusterability
from modfast.features import LabelPurity, TopActivations, label_purity, max_activating
from modfast.information import (
    JointHistogram,
    JointInformation,
    ModularityMeasures,
    PairwiseInformation,
    conditional_entropy,
    digitize,
    entropy,
    joint_entropy,
    joint_histogram,
    modularity_measures,
    mutual_information,
    pairwise_mutual_information,
    soft_conditional_entropy,
    soft_mutual_information,
)
from modfast.sites import capture
from modfast.training import ClusterabilityLoss, History, Modularity, fit

__version__ = "0.1.0"

__all__ = [
    "AblationResult",
    "Circuit",
    "CircuitEvaluation",
    "CircuitSizes",
    "ClusterEvaluation",
    "ClusterabilityLoss",
    "Clusters",
    "DirectionResult",
    "EdgeCircuit",
    "EdgeScores",
    "History",
    "JointHistogram",
    "JointInformation",
    "LabelPurity",
    "Modularity",
    "ModularityMeasures",
    "PairwiseInformation",
    "TopActivations",
    "ablate_directions",
    "ablate_groups",
    "ablate_units",
    "attribute_edges",
    "capture",
    "clusterability",
    "conditional_entropy",
    "data",
    "digitize",
    "discover_circuit",
    "effective_circuit_size",
    "entropy",
    "evaluate_clusters",
    "fit",
    "has_ops",
    "joint_entropy",
    "joint_histogram",
    "label_purity",
    "max_activating",
    "max_information_direction",
    "models",
    "modularity_measures",
    "mutual_information",
    "pairwise_mutual_information",
    "prune_circuit",
    "search_space_reduction",
    "soft_conditional_entropy",
    "soft_mutual_information",
]
