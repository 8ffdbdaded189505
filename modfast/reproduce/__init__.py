"""The notebooks' printed numbers beside what modfast finds: `python -m modfast reproduce`.

Each study runs one notebook's pipeline at its own settings over several seeds, once by the
notebook's own rules, where they differ, and once by the correct ones.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from modfast import checks
from modfast._extension import has_ops
from modfast.progress import bar
from modfast.reproduce import (
    ablation,
    circuits,
    clusterability,
    effective_information,
    metric,
    mutual_information,
    tasks,
)
from modfast.reproduce.networks import Networks
from modfast.reproduce.tables import Row, Section, numbers, page, text

__all__ = [
    "NEEDS_LIBRARY",
    "NEEDS_MNIST",
    "STUDIES",
    "Row",
    "Section",
    "numbers",
    "page",
    "run",
    "text",
]

STUDIES: dict[str, Callable[[Networks], Section]] = {
    "metric": metric.study,
    "ablation": ablation.study,
    "clusterability": clusterability.study,
    "circuits": circuits.study,
    "effective-information": effective_information.study,
    "mutual-information": mutual_information.study,
    "tasks": tasks.study,
}
NEEDS_MNIST = frozenset({"metric", "ablation", "clusterability", "circuits"})
NEEDS_LIBRARY = frozenset({"circuits"})
"""Without the compiled library it would take hours."""


def run(
    studies: Sequence[str],
    root: str | os.PathLike[str] | None = None,
    seeds: int = 5,
    progress: bool = True,
) -> list[Section]:
    """Runs studies, and times each.

    Args:
        studies: names of `STUDIES`.
        root: the folder that holds MNIST, for those of `NEEDS_MNIST`.
        seeds: how many networks each trains.
        progress: show progress bars, where standard error is a terminal.

    Raises:
        TypeError, ValueError: an unknown study, one that needs `root`, seeds below 1.
        FileNotFoundError: MNIST's files are not under `root`.

    Example:
        >>> sections = run([])
        >>> sections
        []
    """
    networks = Networks(root, checks.count("seeds", seeds), progress)
    for name in studies:
        if name not in STUDIES:
            raise ValueError(f"studies must be of {sorted(STUDIES)}, got {name!r}")
        if name in NEEDS_MNIST and root is None:
            raise ValueError(f"root must name the folder that holds MNIST for {name!r}, got None")
        if name in NEEDS_LIBRARY and not has_ops():
            raise ValueError(f"{name!r} needs the compiled library: without, it would take hours")
    found = []
    for name in bar(studies, "studies", progress):
        begun = time.perf_counter()
        section = STUDIES[name](networks)
        found.append(replace(section, seconds=time.perf_counter() - begun))
    return found
