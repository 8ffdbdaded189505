"""Into which clusters does a network fall, and how strongly?"""

from modfast.clusters.labels import Clusters
from modfast.clusters.measure import clusterability

__all__ = ["Clusters", "clusterability"]
