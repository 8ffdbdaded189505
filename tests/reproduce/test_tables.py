from __future__ import annotations

import json
import math

import pytest
import torch

from modfast import _extension
from modfast.reproduce import NEEDS_MNIST, Row, Section, numbers, page, run, text
from modfast.reproduce.tables import spread

SECTION = Section(
    "N9: a <title>",
    "Settings & more.",
    (
        Row("H", 1.4756, torch.tensor([1.0, 2.0]), torch.tensor([1.5, 1.5]), "a <reason>"),
        Row("I", None, None, torch.tensor([math.nan, 1.0]), "none"),
    ),
    "H is <more>.",
    seconds=3.2,
)


def test_spread_keeps_the_digits_that_the_deviation_leaves() -> None:
    assert spread(None) == "–"
    assert spread(torch.tensor([0.5])) == "0.5"
    assert spread(torch.tensor([2.0, 2.0])) == "2"
    assert spread(torch.tensor([-0.04, -0.06])) == "-0.05 ± 0.014"
    assert spread(torch.tensor([0.99981, 0.99983])) == "0.99982 ± 1.4e-05"
    assert spread(torch.tensor([190.0, 230.0])) == "210 ± 28"
    assert spread(torch.tensor([1e-4, -1e-4])) == "0 ± 0.00014"
    assert spread(torch.tensor([53000.0, 54000.0])) == "53500 ± 707"
    assert spread(torch.tensor([53734.25])) == "53734"
    assert spread(torch.tensor([math.inf, 1.0])) == "inf"


def test_text_page_and_numbers_hold_every_row() -> None:
    lines = text([SECTION]).splitlines()
    assert lines[0] == "N9: a <title> (3 s)"
    assert lines[4].split() == ["H", "1.4756", "1.5", "±", "0.71", "1.5"]
    assert lines[5].strip() == "a <reason>"
    assert "H is <more>." in lines
    markup = page([SECTION])
    assert "<td>a &lt;reason&gt;</td>" in markup
    assert "Settings &amp; more." in markup
    assert "H is &lt;more&gt;." in markup
    found = json.loads(json.dumps(numbers([SECTION]), allow_nan=False))
    assert found["sections"][0]["finding"] == "H is <more>."
    first, second = found["sections"][0]["rows"]
    assert first["notebook"] == [1.0, 2.0]
    assert second["notebook"] is None
    assert second["correct"] == [None, 1.0]


def test_a_difference_that_rows_share_stands_once() -> None:
    values = torch.tensor([1.0, 2.0])
    why = {"H": "a reason", "I": "a reason", "J": "another", "K": ""}
    rows = tuple(Row(name, 1.0, values, values, each) for name, each in why.items())
    section = Section("N9", "Settings.", rows)
    lines = text([section]).splitlines()
    firsts = [line.split()[0] for line in lines[3:] if line]
    assert firsts == ["printed", "H", "a", "I", "J", "another", "K"]
    assert page([section]).count("<td>a reason</td>") == 1
    assert page([section]).count("<td></td>") == 2


def test_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="studies must be of .*'metrics'"):
        run(["metrics"])
    for study in sorted(NEEDS_MNIST):
        with pytest.raises(ValueError, match="root must name the folder that holds MNIST"):
            run(["tasks", study])
    with monkeypatch.context() as patch:
        patch.setattr(_extension, "library", None)
        with pytest.raises(ValueError, match="'circuits' needs the compiled library"):
            run(["circuits"], root="anywhere")
    with pytest.raises(ValueError, match="seeds must be at least 1, got 0"):
        run([], seeds=0)
