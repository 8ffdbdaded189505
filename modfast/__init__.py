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
Directions that tasks use       task_gradients, distinct_gradients, principal_components
... and share                   task_similarity, variance_explained, task_capture, compare_tasks
... in many networks            TaskStudy
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
    "ClusterEvaluation",
    "ClusterabilityLoss",
    "Clusters",
    "DirectionResult",
    "DistinctGradients",
    "History",
    "JointHistogram",
    "JointInformation",
    "Modularity",
    "ModularityMeasures",
    "PairwiseInformation",
    "TaskComparison",
    "TaskComparisons",
    "TaskGradients",
    "TaskSimilarity",
    "TaskStudy",
    "ablate_directions",
    "ablate_groups",
    "ablate_units",
    "capture",
    "clusterability",
    "compare_tasks",
    "conditional_entropy",
    "data",
    "digitize",
    "distinct_gradients",
    "entropy",
    "evaluate_clusters",
    "fit",
    "has_ops",
    "joint_entropy",
    "joint_histogram",
    "max_information_direction",
    "models",
    "modularity_measures",
    "mutual_information",
    "pairwise_mutual_information",
    "principal_components",
    "soft_conditional_entropy",
    "soft_mutual_information",
    "task_capture",
    "task_gradients",
    "task_similarity",
    "variance_explained",
]
