"""What breaks when a unit, a direction, a group of units or a cluster is removed?"""

from modfast.ablation.attribution import attribute_units
from modfast.ablation.clusters import ClusterEvaluation, evaluate_clusters
from modfast.ablation.directions import max_information_direction
from modfast.ablation.result import (
    AblationResult,
    DirectionResult,
    Screening,
    SiteAblations,
    UnitScores,
)
from modfast.ablation.units import ablate_directions, ablate_groups, ablate_units

__all__ = [
    "AblationResult",
    "ClusterEvaluation",
    "DirectionResult",
    "Screening",
    "SiteAblations",
    "UnitScores",
    "ablate_directions",
    "ablate_groups",
    "ablate_units",
    "attribute_units",
    "evaluate_clusters",
    "max_information_direction",
]
