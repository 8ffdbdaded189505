"""How did training go?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import cycle
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modfast.plots.style import NETWORK_COLORS, by_name, require_plotly, styled
from modfast.training import History

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_MOST_POINTS = 400  # A curve of more is no clearer, and makes a page heavy.


def history(history: History | Mapping[str, History], score: str = "accuracy") -> Figure:
    """Loss, clusterability and test accuracy over the steps of training, one below the other.

    Runs of more than a few hundred steps are drawn as means over as many steps as the loss axis
    says. What no history holds (clusterability without a regularizer, accuracy without test data)
    has no panel. Several layers' clusterabilities are told apart by dashes.

    Args:
        history: of one training run, or of several by name, to be laid over each other.
        score: what the accuracy is called; "R²" for a regression.

    Raises:
        TypeError: not a `History`, or a mapping with other values.
        ValueError: an empty mapping.
    """
    runs = by_name("history", history, History)
    require_plotly()
    from plotly.subplots import make_subplots

    window = max(1, math.ceil(max(len(run.loss) for run in runs.values()) / _MOST_POINTS))
    panels = ("loss", "clusterability", f"test {score}")
    curves: dict[str, list[tuple[str, dict[str, Any], Tensor, Tensor]]] = {p: [] for p in panels}
    for (name, run), color in zip(runs.items(), cycle(NETWORK_COLORS)):
        line = {"color": color, "width": 2}
        steps = _means(torch.arange(len(run.loss)), window)
        curves["loss"].append((name, line, steps, _means(run.loss, window)))
        for i, layer in enumerate(run.clusterability.T):
            several = len(run.clusterability.T) > 1
            label = f"{name} layer {i}".strip() if several else name
            dashed = {**line, "dash": ("solid", "dash", "dot", "dashdot")[i % 4]}
            curves["clusterability"].append((label, dashed, steps, _means(layer, window)))
        if run.accuracy.numel():
            curves[panels[2]].append((name, line, run.accuracy_steps, run.accuracy))

    curves = {panel: found for panel, found in curves.items() if found}
    figure = make_subplots(rows=len(curves), shared_xaxes=True, vertical_spacing=0.06)
    styled(figure, "Training, step by step", 120 + 190 * len(curves))
    named = {""}
    for row, (panel, found) in enumerate(curves.items(), start=1):
        for label, line, x, y in found:
            figure.add_scatter(
                x=x.numpy(),
                y=y.numpy(),
                mode="lines+markers" if len(x) < 50 else "lines",
                marker={"size": 5},
                line=line,
                name=label,
                legendgroup=label,
                showlegend=label not in named,
                hovertemplate=f"{label}<br>step %{{x}}<br>{panel} %{{y:.4g}}<extra></extra>",
                row=row,
                col=1,
            )
            named.add(label)
        figure.update_yaxes(title_text=panel, row=row, col=1)
        if panel == "clusterability":
            figure.update_yaxes(range=[0, 1.05], row=row, col=1)
    notes = [f"mean of {window} steps"] if window > 1 else []
    losses = torch.cat([y for *_, y in curves["loss"]])
    # Less than a decade or so reads better on a linear axis, and 0 has no place on the other.
    if len(losses) and 0 < 30 * float(losses.min()) < float(losses.max()):
        figure.update_yaxes(type="log", dtick=1, row=1, col=1)
        notes.append("log scale")
    figure.update_yaxes(title_text="<br>".join(["loss", *notes]), row=1, col=1)
    figure.update_xaxes(title_text="training step", row=len(curves), col=1)
    return figure


def _means(values: Tensor, window: int) -> Tensor:
    """Float64 means over consecutive windows, the last one of which may be shorter."""
    parts = values.double().split(window)
    return torch.stack([part.mean() for part in parts]) if len(values) else values
