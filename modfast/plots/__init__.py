"""Figures: how training went, how weights fall into clusters, what clusters, units and tasks do.

Every function returns a plotly figure, to be shown, changed or written by its caller. plotly comes
with the extra `modfast[report]` and is imported only when a figure is made: each function raises
ImportError, naming the extra, where it is missing.
"""

from modfast.plots.ablation import ablation_lines, cluster_evaluation, direction_search
from modfast.plots.clusters import bipartite, weight_matrix
from modfast.plots.information import (
    joint_information,
    modularity_measures,
    pairwise_information,
)
from modfast.plots.style import require_plotly
from modfast.plots.tasks import (
    task_comparison,
    task_comparisons,
    task_similarity,
    task_study,
)
from modfast.plots.training import history

__all__ = [
    "ablation_lines",
    "bipartite",
    "cluster_evaluation",
    "direction_search",
    "history",
    "joint_information",
    "modularity_measures",
    "pairwise_information",
    "require_plotly",
    "task_comparison",
    "task_comparisons",
    "task_similarity",
    "task_study",
    "weight_matrix",
]
