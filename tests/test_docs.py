"""Every example in a docstring and in the README runs and is right."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import modfast

MODULES = [
    module.name
    for module in pkgutil.walk_packages(modfast.__path__, "modfast.")
    # Compiled libraries have no examples, and __main__ runs the program.
    if not module.name.rpartition(".")[2].startswith(("_C", "_cuda", "__main__"))
]
RESULTS = (
    "AblationResult",
    "Circuit",
    "CircuitSizes",
    "ClusterEvaluation",
    "DirectionResult",
    "DistinctGradients",
    "History",
    "ModularityReport",
    "TaskComparison",
    "TaskComparisons",
    "TaskGradients",
    "TaskSimilarity",
)
README = Path(__file__).parents[1] / "README.md"


@pytest.mark.parametrize("name", ["modfast", *MODULES])
def test_docstrings(name: str) -> None:
    if name.startswith("modfast.plots"):
        pytest.importorskip("plotly")
    module = importlib.import_module(name)
    result = doctest.testmod(module)
    assert result.failed == 0


@pytest.mark.parametrize("name", modfast.__all__)
def test_every_public_name_is_documented_and_callables_have_examples(name: str) -> None:
    thing = getattr(modfast, name)
    assert thing.__doc__
    if callable(thing) and name not in RESULTS:
        assert ">>>" in thing.__doc__


@pytest.mark.slow
def test_readme_example(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert examples
    for example in examples:
        subprocess.run(
            [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", example],
            cwd=tmp_path,
            check=True,
        )
