"""Do tasks share directions?"""

from modfast.tasks.comparison import TaskComparison, compare_tasks
from modfast.tasks.directions import (
    TaskSimilarity,
    principal_components,
    task_capture,
    task_similarity,
    variance_explained,
)
from modfast.tasks.distinct import DistinctGradients, distinct_gradients
from modfast.tasks.gradients import TaskGradients, task_gradients
from modfast.tasks.study import TaskComparisons, TaskStudy

__all__ = [
    "DistinctGradients",
    "TaskComparison",
    "TaskComparisons",
    "TaskGradients",
    "TaskSimilarity",
    "TaskStudy",
    "compare_tasks",
    "distinct_gradients",
    "principal_components",
    "task_capture",
    "task_gradients",
    "task_similarity",
    "variance_explained",
]
