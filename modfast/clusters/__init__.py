"""Into which clusters does a network fall, and how strongly?"""

from modfast.clusters.finding import find_clusters
from modfast.clusters.fitting import equal_clusters, fit_labels
from modfast.clusters.labels import Clusters
from modfast.clusters.measure import clusterability
from modfast.clusters.report import ModularityReport, modularity_report
from modfast.clusters.sharded import gradient_of, is_sharded, penalty_of, sums_of
from modfast.clusters.splitting import SplitNetwork, split_clusters

__all__ = [
    "Clusters",
    "ModularityReport",
    "SplitNetwork",
    "clusterability",
    "equal_clusters",
    "find_clusters",
    "fit_labels",
    "gradient_of",
    "is_sharded",
    "modularity_report",
    "penalty_of",
    "split_clusters",
    "sums_of",
]
