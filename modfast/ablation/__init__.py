"""What breaks when a unit, a direction, a group of units or a cluster is removed?"""

from modfast.ablation.clusters import ClusterEvaluation, evaluate_clusters
from modfast.ablation.directions import max_information_direction
from modfast.ablation.result import AblationResult, DirectionResult
from modfast.ablation.units import ablate_directions, ablate_groups, ablate_units

__all__ = [
    "AblationResult",
    "ClusterEvaluation",
    "DirectionResult",
    "ablate_directions",
    "ablate_groups",
    "ablate_units",
    "evaluate_clusters",
    "max_information_direction",
]
