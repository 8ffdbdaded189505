"""What does each cluster, unit, direction or group do?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from modfast import checks
from modfast.plots.style import (
    NETWORK_COLORS,
    Named,
    by_name,
    cluster_color,
    require_plotly,
    styled,
    takes_tensors,
)

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_MOST_COLUMNS_WITH_VALUES = 24


@takes_tensors
def cluster_evaluation(
    accuracy: Tensor,
    class_accuracy: Tensor,
    off_accuracy: Tensor,
    off_class_accuracy: Tensor,
    on_accuracy: Tensor,
    on_class_accuracy: Tensor,
    score: str = "accuracy",
    class_names: Sequence[str] | None = None,
) -> Figure:
    """What the network can do whole, without each cluster, and with each cluster alone.

    Heat maps with values: a column for all samples and one for each class; a class without
    samples has a dash. Values below 0, which an R² can have, have the color of 0.

    Args:
        accuracy: of the whole network: scalar; k clusters, c classes.
        class_accuracy: the same by class: `[c]`.
        off_accuracy: without cluster i: `[k]`.
        off_class_accuracy: the same by class: `[k, c]`.
        on_accuracy: with cluster i alone: `[k]`.
        on_class_accuracy: the same by class: `[k, c]`.
        score: what the accuracy is called; "R²" for a regression.
        class_names: `[c]`, by default "class 0", ...

    Raises:
        ValueError: another number of names than classes.
    """
    k, c = off_class_accuracy.shape
    checks.text("score", score)
    names = [f"class {i}" for i in range(c)]
    if class_names is not None:
        names = [checks.text("class_names", x) for x in checks.several("class_names", class_names)]
    if len(names) != c:
        raise ValueError(f"class_names must be {c} names, got {len(names)}")
    require_plotly()
    from plotly.subplots import make_subplots

    each = [f"cluster {i}" for i in range(k)]
    panels = {
        "Whole network": (["all on"], accuracy[None], class_accuracy[None]),
        "One cluster off": (each, off_accuracy, off_class_accuracy),
        "One cluster alone on": (each, on_accuracy, on_class_accuracy),
    }
    around, gap, cell = 120, 34, 28  # pixels
    inside = cell * (2 * k + 1) + 2 * gap
    figure = make_subplots(
        rows=3,
        shared_xaxes=True,
        row_heights=[1, k, k],
        vertical_spacing=gap / inside,
        subplot_titles=list(panels),
    )
    figure.update_annotations(font_size=13)
    styled(figure, f"{score[:1].upper()}{score[1:]} with clusters off and on", inside + around)
    for row, (panel, (labels, overall, split)) in enumerate(panels.items(), start=1):
        values = torch.cat([overall[:, None], split], dim=1)
        figure.add_heatmap(
            z=values.numpy(),
            x=["all", *names],
            y=labels,
            text=[["–" if math.isnan(v) else f"{v:.2f}" for v in line] for line in values.tolist()],
            texttemplate="%{text}" if c < _MOST_COLUMNS_WITH_VALUES else None,
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
            hovertemplate=f"{panel}<br>%{{y}}, %{{x}}<br>{score} %{{text}}<extra></extra>",
            row=row,
            col=1,
        )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(type="category", showgrid=False)
    bar = {"title": {"text": score, "side": "right"}, "thickness": 12}
    scale = {"colorscale": "Blues", "cmin": 0, "cmax": 1, "colorbar": bar}
    figure.update_layout(coloraxis=scale)
    return figure


_WORDS = {
    "entropy_difference": "H(original) - H(ablated), nats",
    "kl_ablated_original": "KL(ablated | original), nats",
    "kl_original_ablated": "KL(original | ablated), nats",
    "loss": "loss, nats",
    "accuracy": "accuracy",
}


@takes_tensors
def ablation_lines(
    values: Named[Tensor],
    labels: Named[Sequence[str]],
    measure: str = "kl_ablated_original",
) -> Figure:
    """One measure over the ablations, in their order and sorted, as the notebook draws it.

    Args:
        values: means over the samples, `[a]`; several, given by name, are overlaid.
        labels: what each ablation is called.
        measure: which of an `AblationResult` the values are, or the name of a metric.

    Raises:
        ValueError: no values, or labels of other names.
    """
    checks.text("measure", measure)
    named = by_name(values=values, labels=labels)
    require_plotly()
    from plotly.subplots import make_subplots

    figure = make_subplots(cols=2, shared_yaxes=True, subplot_titles=["In order", "Sorted"])
    figure.update_annotations(font_size=13)
    styled(figure, "What each ablation does", 320)
    for color, (name, (line, texts)) in zip(cycle(NETWORK_COLORS), named.items(), strict=False):
        order = line.argsort(descending=True)
        for col, rows in enumerate((range(len(line)), order.tolist()), start=1):
            figure.add_scatter(
                y=line[list(rows)].numpy(),
                text=[texts[i] for i in rows],
                name=name,
                legendgroup=name,
                mode="lines",
                line={"color": color, "width": 1.5},
                hovertemplate="%{text}<br>%{y:.4g}<extra>%{fullData.name}</extra>",
                showlegend=bool(name) and col == 1,
                row=1,
                col=col,
            )
    word = _WORDS.get(measure, f"change of {measure}")
    figure.update_yaxes(title_text=f"mean {word}", col=1)
    figure.update_xaxes(title_text="ablation", col=1)
    figure.update_xaxes(title_text="rank", col=2)
    return figure


@takes_tensors
def ablation_map(
    values: Tensor,
    rows: Sequence[str],
    columns: str = "unit",
    measure: str = "kl_ablated_original",
) -> Figure:
    """One measure as a heat map: layers and heads, layers and positions, units and positions.

    Args:
        values: `[r, c]`, NaN where a row has no such column; of both signs, drawn around 0.
        rows: the name of each row.
        columns: what the columns are.
        measure: which of an `AblationResult` the values are, or the name of a metric.

    Raises:
        ValueError: another number of names than rows.
    """
    checks.text("measure", measure)
    checks.text("columns", columns)
    names = [checks.text("rows", name) for name in checks.several("rows", rows)]
    if values.dim() != 2 or len(names) != len(values):
        raise ValueError(f"rows must name {len(values)} rows of a matrix, got {len(names)} names")
    require_plotly()
    from plotly.graph_objects import Figure

    word = _WORDS.get(measure, f"change of {measure}")
    figure = styled(Figure(), "What each ablation does", 120 + 22 * max(6, min(len(names), 40)))
    finite = values[values.isfinite()]
    signed = bool((finite < 0).any()) if finite.numel() else False
    figure.add_heatmap(
        z=values.numpy(),
        y=names,
        colorscale="RdBu" if signed else "Blues",
        zmid=0 if signed else None,
        zmin=None if signed else 0,
        colorbar={"title": {"text": word, "side": "right"}, "thickness": 12},
        hovertemplate=f"%{{y}}, {columns} %{{x}}<br>%{{z:.4g}}<extra></extra>",
    )
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category")
    figure.update_xaxes(title_text=columns, showgrid=False)
    return figure


@takes_tensors
def screening(estimate: Tensor, units: Tensor, drawn: Tensor) -> Figure:
    """The absolute estimates of all units `[d]`, most first, and which units were ablated.

    Args:
        estimate: one for each unit.
        units: those that it puts first.
        drawn: those that were drawn at random.
    """
    require_plotly()
    from plotly.graph_objects import Figure

    figure = styled(Figure(), "What was estimated, and what was ablated", 320)
    sizes, order = estimate.abs().sort(descending=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    figure.add_scatter(y=sizes.numpy(), mode="lines", name="estimate, all units")
    for name, chosen in (("ablated", units), ("drawn at random", drawn)):
        figure.add_scatter(
            x=rank[chosen].numpy(),
            y=estimate.abs()[chosen].numpy(),
            mode="markers",
            name=name,
            text=[f"unit {i}" for i in chosen.tolist()],
            hovertemplate="%{text}<br>%{y:.4g}<extra></extra>",
        )
    figure.update_yaxes(title_text="|estimate|", type="log")
    figure.update_xaxes(title_text="rank")
    return figure


@takes_tensors
def direction_search(history: Tensor) -> Figure:
    """How far each restart came, step by step: KL(ablated | original) in nats, `[steps, r]`."""
    require_plotly()
    from plotly.graph_objects import Figure

    figure = styled(Figure(), "Search for the most informative direction", 320)
    for i, line in enumerate(history.unbind(1)):
        figure.add_scatter(
            y=line.numpy(), mode="lines", name=f"restart {i}", line={"color": cluster_color(i)}
        )
    figure.update_yaxes(title_text="KL(ablated | original), nats")
    figure.update_xaxes(title_text="step")
    return figure
