"""modfast: fast, exact measurement and training of modularity in neural networks.

Clusters of a weight            Clusters, clusterability
Training into clusters          ClusterabilityLoss, Modularity, fit, History
What a cluster does             evaluate_clusters, ClusterEvaluation
Networks, data, activations     models, data, capture
The compiled library            has_ops, and `python -m modfast info`
"""

from modfast import data, models
from modfast._extension import has_ops
from modfast.ablation import ClusterEvaluation, evaluate_clusters
from modfast.clusters import Clusters, clusterability
from modfast.sites import capture
from modfast.training import ClusterabilityLoss, History, Modularity, fit

__version__ = "0.1.0"

__all__ = [
    "ClusterEvaluation",
    "ClusterabilityLoss",
    "Clusters",
    "History",
    "Modularity",
    "capture",
    "clusterability",
    "data",
    "evaluate_clusters",
    "fit",
    "has_ops",
    "models",
]
