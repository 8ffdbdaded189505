"""How the package's modules may import each other: one way, in no circle, by public names.

Imports are read from the sources, those inside functions and for type checkers too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import modfast

ROOT = Path(modfast.__file__).parent
MOST_LINES = 400

ROOMS = (
    *("ablation", "circuits", "clusters", "effective", "features"),
    *("information", "tasks", "training"),
)
# From the highest to the lowest: each imports from its own and from lower ones.
LAYERS = (
    ("__main__", "cli", "bench"),  # the suite, where it was installed with the package
    ("report", "reproduce"),
    ("demo",),
    ("modfast",),  # the public names
    ROOMS,
    ("network", "sites", "passes", "scores", "data", "models", "metrics"),
    ("plots", "ops"),
    ("_extension", "results"),
    ("reference", "checks", "files", "precision", "progress", "_renamed"),
)
RANKS = {part: -rank for rank, parts in enumerate(LAYERS) for part in parts}
# Figures are drawn of tensors and strings.
PLOTS_KNOW = {"plots", "checks", "results", "_renamed"}


class Import(NamedTuple):
    """A module, the one that it imports (or imports from), and the name that it takes, if any."""

    source: str
    target: str
    name: str
    line: int


def module_name(path: Path) -> str:
    parts = ("modfast", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def part(module: str) -> str:
    """A room, or a module of the top level."""
    return (*module.split("."), "modfast")[1]


def imports_of(source: str, path: Path) -> Iterator[Import]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "modfast":
                    yield Import(source, alias.name, "", node.lineno)
        elif isinstance(node, ast.ImportFrom):
            package = source if path.name == "__init__.py" else source.rpartition(".")[0]
            for _ in range(node.level - 1):
                package = package.rpartition(".")[0]
            base = ".".join(filter(None, [package if node.level else "", node.module or ""]))
            if base.split(".")[0] != "modfast":
                continue
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                target = inner if inner in MODULES else base
                yield Import(source, target, alias.name, node.lineno)


IMPORTS = [each for name, path in MODULES.items() for each in imports_of(name, path)]


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """The groups of nodes each of which can be reached from each other one."""
    reached: dict[str, set[str]] = {}
    for start in arrows:
        found, ahead = set(), list(arrows[start])
        while ahead:
            if (each := ahead.pop()) not in found:
                found.add(each)
                ahead += arrows.get(each, ())
        reached[start] = found
    groups = {
        tuple(sorted(n for n in reached[start] if start in reached.get(n, ())))
        for start in arrows
        if start in reached[start]
    }
    return [list(group) for group in sorted(groups)]


def arrows_between(imports: list[Import]) -> dict[str, set[str]]:
    arrows: dict[str, set[str]] = {name: set() for name in MODULES}
    for each in imports:
        arrows.setdefault(each.source, set()).add(each.target)
    return arrows


def upward(imports: list[Import]) -> list[str]:
    return [
        f"{each.source}:{each.line} imports {each.target}"
        for each in imports
        if RANKS[part(each.source)] < RANKS[part(each.target)]
        or (part(each.source) == "plots" and part(each.target) not in PLOTS_KNOW)
    ]


def public_names(room: str) -> set[str]:
    for node in ast.parse(MODULES[f"modfast.{room}"].read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    raise AssertionError(f"modfast.{room} has no __all__")


def inner_names(imports: list[Import]) -> list[str]:
    """What a room takes of another's that is not in its `__all__`; any part, that has a _ before.

    Names of other parts than rooms (network, ops, checks) are public without one.
    """
    found = []
    for source, target, name, line in imports:
        if part(source) == part(target) or target in ("modfast", f"modfast.{name}"):
            continue
        of_rooms = part(source) in ROOMS and part(target) in ROOMS
        if name.startswith("_") or (of_rooms and name not in public_names(part(target))):
            found.append(f"{source}:{line} imports {name or 'all'} of {target}")
    return found


def test_every_module_has_a_layer() -> None:
    unknown = {part(name) for name in MODULES} - RANKS.keys()
    assert not unknown, f"name their layers in {Path(__file__).name}"


def test_no_circle_of_imports() -> None:
    assert circles(arrows_between(IMPORTS)) == []


def test_arrows_point_to_lower_layers() -> None:
    assert upward(IMPORTS) == []


def test_parts_take_public_names_from_each_other() -> None:
    assert inner_names(IMPORTS) == []


def test_files_can_be_read_at_one_sitting() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES.values()}
    assert [path.relative_to(ROOT) for path, n in lines.items() if n > MOST_LINES] == []


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("def f():\n    from modfast import circuits", "upward"),
        ("from modfast.information import mutual_information", "upward"),
        ("from ..tasks import distinct", "upward"),
        ("import modfast.network.run", "upward"),
        ("if TYPE_CHECKING:\n    from modfast.demo import DemoResult", "upward"),
        ("from modfast.checks import _rule", "inner"),
    ],
)
def test_what_is_forbidden_is_seen(text: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / "style.py"
    path.write_text(text)
    (found,) = imports_of("modfast.plots.style", path)
    assert inner_names([found]) if what == "inner" else upward([found])


def test_circles_are_seen() -> None:
    arrows = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"e"}}
    assert circles(arrows) == [["b", "c"], ["e"]]


def test_inner_names_of_rooms_are_seen() -> None:
    def taken(module: str, name: str) -> list[str]:
        return inner_names([Import("modfast.tasks.study", f"modfast.{module}", name, 1)])

    assert taken("clusters.labels", "Clusters") == taken("checks", "count") == []
    assert taken("clusters.labels", "checked_labels")
    assert taken("clusters", "labels")
    assert taken("ops", "_names")
