"""modfast: fast, exact measurement and training of modularity in neural networks.

Clusters of a weight            Clusters, clusterability
Training into clusters          ClusterabilityLoss, Modularity, fit, History
What a cluster does             evaluate_clusters, ClusterEvaluation
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
from modfast.sites import capture
from modfast.training import ClusterabilityLoss, History, Modularity, fit

__version__ = "0.1.0"

__all__ = [
    "AblationResult",
    "ClusterEvaluation",
    "ClusterabilityLoss",
    "Clusters",
    "DirectionResult",
    "History",
    "Modularity",
    "ablate_directions",
    "ablate_groups",
    "ablate_units",
    "capture",
    "clusterability",
    "data",
    "evaluate_clusters",
    "fit",
    "has_ops",
    "max_information_direction",
    "models",
]
