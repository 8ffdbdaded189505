"""Every function's result is read back as it was saved, and a field of another type is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from state.cases import CALLS, CASES, Case, differences, mlp

import modfast
from modfast.files import load_values, save_values


def results(found: Any) -> Iterator[modfast.Result]:
    """Those in what a function returns."""
    if isinstance(found, modfast.Result):
        yield found
    elif isinstance(found, Mapping):
        for each in found.values():
            yield from results(each)


@pytest.mark.parametrize("case", [case for case in CASES if case.make is mlp], ids=str)
def test_of_models(case: Case, tmp_path: Path) -> None:
    for result in results(case.call(case.make())):
        check(result, tmp_path)


@pytest.mark.parametrize("name", CALLS)
def test_of_tensors(name: str, tmp_path: Path) -> None:
    for result in results(CALLS[name]()):
        check(result, tmp_path)


def check(result: modfast.Result, folder: Path) -> None:
    path, kind = folder / "result", type(result)
    result.save(path)
    assert differences(result, kind.load(path)) == []
    values = load_values(path, kind.__name__)
    for field in fields(result):
        save_values(path, kind.__name__, {**values, field.name: [1]})  # no field is a list
        with pytest.raises(
            ValueError, match=rf"result' holds no {kind.__name__} .*: {field.name} "
        ):
            kind.load(path)
