"""modfast: fast, exact measurement and training of modularity in neural networks.

Clusters of a weight            Clusters, clusterability
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
What a unit or direction does   ablate_units, ablate_directions, ablate_groups, AblationResult
The direction that counts most  max_information_direction, DirectionResult
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
from modfast.clusters import Clusters, clusterability
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
from modfast.sites import capture
from modfast.training import ClusterabilityLoss, History, Modularity, fit

__version__ = "0.1.0"

__all__ = [
    "AblationResult",
    "Calibration",
    "ClusterEvaluation",
    "ClusterabilityLoss",
    "Clusters",
    "DirectionResult",
    "History",
    "JointHistogram",
    "JointInformation",
    "Modularity",
    "ModularityMeasures",
    "PairwiseInformation",
    "ablate_directions",
    "ablate_groups",
    "ablate_units",
    "calibrate",
    "capture",
    "clusterability",
    "conditional_entropy",
    "copula_mutual_information",
    "data",
    "digitize",
    "entropy",
    "evaluate_clusters",
    "fit",
    "gaussian_mutual_information",
    "has_ops",
    "jacobian_mutual_information",
    "joint_entropy",
    "joint_histogram",
    "kmeans_mutual_information",
    "ksg_mutual_information",
    "max_information_direction",
    "models",
    "modularity_measures",
    "mutual_information",
    "pairwise_mutual_information",
    "soft_conditional_entropy",
    "soft_mutual_information",
    "total_correlation",
]
