"""Printed numbers beside measured ones, as text, as markup and as plain values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from string import Template
from typing import Any

import torch
from torch import Tensor

import modfast

HEADS = ("", "printed", "as the notebook", "correct")


@dataclass(frozen=True)
class Row:
    """One quantity.

    Example:
        >>> row = Row("H(fc1)", 1.4756, torch.tensor([1.4, 1.6]), None, "same rule")
        >>> row.cells()
        ('H(fc1)', '1.4756', '1.5 ± 0.14', '–')
    """

    quantity: str
    printed: float | None
    """By the notebook; None where it printed nothing."""
    notebook: Tensor | None
    """modfast by the notebook's rules, one a seed: `[seeds]`."""
    correct: Tensor | None
    """modfast by the correct ones: `[seeds]`."""
    difference: str
    """What explains it, in one line; shown once for rows in a row that share it."""

    def cells(self) -> tuple[str, str, str, str]:
        """What stands in the table."""
        printed = "–" if self.printed is None else f"{self.printed:g}"
        return self.quantity, printed, spread(self.notebook), spread(self.correct)


@dataclass(frozen=True)
class Section:
    """One notebook's numbers."""

    title: str
    settings: str
    """What was run, in a sentence."""
    rows: tuple[Row, ...]
    finding: str = ""
    """What the numbers say, in a few sentences."""
    seconds: float = math.nan

    @property
    def differences(self) -> list[str]:
        """Of the rows, empty where the row before has the same."""
        found = [row.difference for row in self.rows]
        shown = zip(found, ["", *found], strict=False)
        return ["" if this == before else this for this, before in shown]


def spread(values: Tensor | None) -> str:
    """Mean ± standard deviation over seeds, to the digits that the deviation leaves."""
    if values is None:
        return "–"
    mean = float(values.double().mean())
    if values.numel() < 2 or not math.isfinite(mean):
        return _rounded(mean, 4)
    deviation = float(values.double().std())
    if deviation <= 1e-12 * abs(mean) or deviation == 0:
        return _rounded(mean, 4)
    decimals = max(0, 1 - math.floor(math.log10(deviation)))
    digits = max(2, decimals + math.floor(math.log10(max(abs(mean), deviation))) + 1)
    return f"{mean:.{digits}g} ± {_rounded(deviation, 2)}"


def _rounded(value: float, digits: int) -> str:
    """To so many digits; whole where an exponent would stand in their place."""
    return f"{value:.0f}" if 10**digits <= abs(value) < 1e9 else f"{value:.{digits}g}"


def text(sections: Sequence[Section]) -> str:
    """Tables for a terminal."""
    lines = []
    for section in sections:
        rows = [row.cells() for row in section.rows]
        widths = [max(map(len, column)) for column in zip(HEADS, *rows, strict=True)]
        lines += [f"{section.title} ({section.seconds:.0f} s)", section.settings, ""]
        for cells, why in zip([HEADS, *rows], ["", *section.differences], strict=True):
            first, *others = (f"{cell:<{w}}" for cell, w in zip(cells, widths, strict=True))
            lines.append("  ".join([first, *others]).rstrip())
            lines += [f"    {why}"] if why else []
        lines += ["", section.finding, ""] if section.finding else [""]
    return "\n".join(lines)


def numbers(sections: Sequence[Section]) -> dict[str, Any]:
    """Plain values for JSON: each quantity's printed number, and modfast's for each seed."""

    def values(found: Tensor | None) -> list[float | None] | None:
        if found is None:
            return None
        return [x if math.isfinite(x) else None for x in found.double().flatten().tolist()]

    return {
        "modfast": modfast.__version__,
        "torch": torch.__version__,
        "sections": [
            {
                "title": section.title,
                "settings": section.settings,
                "finding": section.finding,
                "seconds": section.seconds,
                "rows": [
                    {
                        "quantity": row.quantity,
                        "printed": row.printed,
                        "notebook": values(row.notebook),
                        "correct": values(row.correct),
                        "difference": row.difference,
                    }
                    for row in section.rows
                ],
            }
            for section in sections
        ],
    }


def page(sections: Sequence[Section]) -> str:
    """One HTML page that opens offline."""
    parts = []
    for section in sections:
        head = "".join(f"<th>{escape(name)}</th>" for name in (*HEADS, "difference"))
        body = "\n".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in (*row.cells(), why)) + "</tr>"
            for row, why in zip(section.rows, section.differences, strict=True)
        )
        finding = f'<p class="finding">{escape(section.finding)}</p>' if section.finding else ""
        parts.append(
            f"<section><h2>{escape(section.title)}</h2><p>{escape(section.settings)}</p>{finding}"
            f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></section>"
        )
    return _PAGE.substitute(sections="\n".join(parts))


_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>modfast: the notebooks' numbers, reproduced</title>
<style>
body { margin: 0 auto; max-width: 1120px; padding: 32px 20px 64px; background: #f6f7f9;
  color: #1f2937; font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Helvetica, sans-serif; }
h1 { font-size: 28px; }
h2 { font-size: 19px; margin: 0 0 6px; }
section { background: #fff; border: 1px solid #e5e7eb; border-radius: 10px; padding: 20px 22px;
  margin-top: 18px; overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: 6px 22px 6px 0;
  border-bottom: 1px solid #e5e7eb; }
th { font-weight: 500; color: #5b6472; }
th, td:nth-child(2), td:nth-child(3), td:nth-child(4) { white-space: nowrap; }
.finding { border-left: 3px solid #d55e00; padding-left: 14px; }
</style>
</head>
<body>
<h1>The notebooks' numbers, reproduced</h1>
<p>Printed: what the source notebook shows. As the notebook: modfast by the notebook's own rules,
mean ± standard deviation over seeds. Correct: modfast by the rules that its documentation
states.</p>
$sections
</body>
</html>
""")
