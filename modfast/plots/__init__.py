"""Figures: how training went, how weights fall into clusters, what clusters, units and tasks do.

Every function returns a plotly figure, to be shown, changed or written by its caller. plotly comes
with the extra `modfast[report]` and is imported only when a figure is made: each function raises
ImportError, naming the extra, where it is missing.
"""

from modfast.plots.ablation import (
    ablation_lines,
    ablation_map,
    cluster_evaluation,
    direction_search,
    screening,
)
from modfast.plots.circuits import circuit, circuit_sizes
from modfast.plots.clusters import bipartite, weight_matrix
from modfast.plots.edges import edge_circuit, edge_scores, faithfulness
from modfast.plots.effective import effective_information, perturbational_information
from modfast.plots.estimators import calibration
from modfast.plots.features import label_purity, top_contexts, top_inputs
from modfast.plots.information import (
    joint_information,
    modularity_measures,
    pairwise_information,
)
from modfast.plots.nulls import modularity_report
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
    "ablation_map",
    "bipartite",
    "calibration",
    "circuit",
    "circuit_sizes",
    "cluster_evaluation",
    "direction_search",
    "edge_circuit",
    "edge_scores",
    "effective_information",
    "faithfulness",
    "history",
    "joint_information",
    "label_purity",
    "modularity_measures",
    "modularity_report",
    "pairwise_information",
    "perturbational_information",
    "require_plotly",
    "screening",
    "task_comparison",
    "task_comparisons",
    "task_similarity",
    "task_study",
    "top_contexts",
    "top_inputs",
    "weight_matrix",
]
