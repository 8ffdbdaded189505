"""How did training go?"""

from __future__ import annotations

import math
from itertools import cycle
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modfast.plots.style import (
    NETWORK_COLORS,
    Named,
    by_name,
    require_plotly,
    styled,
    takes_tensors,
)

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_MOST_POINTS = 400  # A curve of more is no clearer, and makes a page heavy.


@takes_tensors
def history(
    loss: Named[Tensor],
    clusterability: Named[Tensor],
    accuracy: Named[Tensor],
    accuracy_steps: Named[Tensor],
    score: str = "accuracy",
) -> Figure:
    """Loss, clusterability and test accuracy over the steps of training, one below the other.

    Runs of more than a few hundred steps are drawn as means over as many steps as the loss axis
    says. What no run has (clusterability without a regularizer, accuracy without test data) has no
    panel. Several layers' clusterabilities are told apart by dashes.

    Args:
        loss: before each step, `[steps]`; of one run, or of several by name, overlaid.
        clusterability: of each layer before each step, `[steps, layers]`.
        accuracy: on the test data, `[evaluations]`.
        accuracy_steps: how many steps had been taken at each evaluation.
        score: what the accuracy is called; "R²" for a regression.

    Raises:
        ValueError: no values, or other names for one than for another.
    """
    runs = by_name(
        loss=loss, clusterability=clusterability, accuracy=accuracy, accuracy_steps=accuracy_steps
    )
    require_plotly()
    from plotly.subplots import make_subplots

    window = max(1, math.ceil(max(len(losses) for losses, *_ in runs.values()) / _MOST_POINTS))
    panels = ("loss", "clusterability", f"test {score}")
    curves: dict[str, list[tuple[str, dict[str, Any], Tensor, Tensor]]] = {p: [] for p in panels}
    for (name, run), color in zip(runs.items(), cycle(NETWORK_COLORS)):
        losses, shares, scores, evaluated = run
        line = {"color": color, "width": 2}
        steps = _means(torch.arange(len(losses), device="cpu"), window)
        curves["loss"].append((name, line, steps, _means(losses, window)))
        for i, layer in enumerate(shares.T):
            several = len(shares.T) > 1
            label = f"{name} layer {i}".strip() if several else name
            dashed = {**line, "dash": ("solid", "dash", "dot", "dashdot")[i % 4]}
            curves["clusterability"].append((label, dashed, steps, _means(layer, window)))
        if scores.numel():
            curves[panels[2]].append((name, line, evaluated, scores))

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
    drawn = torch.cat([y for *_, y in curves["loss"]])
    # Less than a decade or so reads better on a linear axis, and 0 has no place on the other.
    if len(drawn) and 0 < 30 * float(drawn.min()) < float(drawn.max()):
        figure.update_yaxes(type="log", dtick=1, row=1, col=1)
        notes.append("log scale")
    figure.update_yaxes(title_text="<br>".join(["loss", *notes]), row=1, col=1)
    figure.update_xaxes(title_text="training step", row=len(curves), col=1)
    return figure


def _means(values: Tensor, window: int) -> Tensor:
    """Float64 means over consecutive windows, the last one of which may be shorter."""
    parts = values.double().split(window)
    return torch.stack([part.mean() for part in parts]) if len(values) else values
