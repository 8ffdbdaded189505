"""Which directions of a layer do the tasks use, and which of them share?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from modfast.plots.style import (
    INK,
    NETWORK_COLORS,
    cluster_color,
    require_plotly,
    styled,
    takes_tensors,
)

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@takes_tensors
def task_comparison(
    variances: Tensor, norms: Tensor, capture: Tensor, n_distinct: Sequence[int]
) -> Figure:
    """Each task's variance along each distinct gradient as bars, the gradients' norms as points.

    The gradients of the first task come first, each task's most frequent ones first; the norms have
    an axis of their own, on the right.

    Args:
        variances: of each of t tasks' activations along k gradients, `[t, k]`.
        norms: the gradients', `[k]`.
        capture: the tasks': scalar.
        n_distinct: how many of the gradients are each task's, `[t]`.
    """
    require_plotly()
    from plotly.subplots import make_subplots

    figure = make_subplots(specs=[[{"secondary_y": True}]])
    title = f"Variance along the tasks' gradients (capture {float(capture):.3f})"
    styled(figure, title, 360)
    labels = [f"task {task}, {i}" for task, n in enumerate(n_distinct) for i in range(n)]
    for task, each in enumerate(variances):
        figure.add_bar(
            x=labels,
            y=each.cpu().numpy(),
            name=f"task {task}",
            marker_color=cluster_color(task),
        )
    figure.add_scatter(
        x=labels,
        y=norms.cpu().numpy(),
        name="norm of the gradient",
        mode="markers",
        marker={"color": INK, "symbol": "diamond", "size": 7},
        secondary_y=True,
    )
    figure.update_xaxes(title_text="distinct gradients, by task")
    figure.update_yaxes(title_text="variance of activations", rangemode="tozero")
    figure.update_yaxes(title_text="norm", showgrid=False, secondary_y=True)
    return figure


@takes_tensors
def task_similarity(matrix: Tensor, cosine: Tensor) -> Figure:
    """The cosines between two tasks' distinct gradients: blue -1, white 0, red 1.

    Args:
        matrix: of each gradient of the one with each of the other, `[a, b]`.
        cosine: between their mean gradients: scalar.
    """
    require_plotly()
    from plotly.graph_objects import Figure

    title = f"Cosine of the tasks' gradients (of their means {float(cosine):.4f})"
    figure = styled(Figure(), title, 420)
    figure.add_heatmap(
        z=matrix.cpu().numpy(),
        colorscale=[[0.0, "#2166ac"], [0.5, "#ffffff"], [1.0, "#b2182b"]],
        zmin=-1,
        zmax=1,
        colorbar={"title": {"text": "cosine", "side": "right"}, "thickness": 12},
        hovertemplate="gradient %{y} of a, %{x} of b<br>cosine %{z:.3f}<extra></extra>",
    )
    figure.update_xaxes(title_text="distinct gradients of b", showgrid=False)
    figure.update_yaxes(title_text="distinct gradients of a", autorange="reversed", showgrid=False)
    return figure


@takes_tensors
def task_comparisons(capture: Tensor, overlap: Tensor, sites: Sequence[str]) -> Figure:
    """Each network's capture, and how far its first two tasks' gradients overlap, site by site.

    Args:
        capture: of m networks at s sites, `[m, s]`.
        overlap: the mean |cosine| between tasks' gradients, `[m, s, t, t]`.
        sites: their names.
    """
    require_plotly()
    from plotly.subplots import make_subplots

    panels = {
        "task capture": capture,
        "mean |cosine| of gradients": overlap[..., 0, 1],
    }
    figure = make_subplots(cols=2, subplot_titles=list(panels))
    figure.update_annotations(font_size=13)
    styled(figure, f"Tasks in {len(capture)} networks", 360)
    for col, values in enumerate(panels.values(), start=1):
        for site, column in zip(sites, values.T, strict=True):
            figure.add_box(
                y=column.numpy(),
                name=site,
                boxpoints="all",
                jitter=0.4,
                marker={"color": NETWORK_COLORS[0], "size": 3},
                showlegend=False,
                row=1,
                col=col,
            )
    return figure


@takes_tensors
def task_study(losses: Tensor) -> Figure:
    """The networks' losses over the epochs: lowest and highest, quartiles and the median.

    Args:
        losses: mean squared errors of m networks, `[m, epochs]`.
    """
    require_plotly()
    from plotly.graph_objects import Figure

    figure = styled(Figure(), f"Training of {len(losses)} networks", 320)
    lines = {"lowest": 0.0, "quartile": 0.25, "median": 0.5, "quartile ": 0.75, "highest": 1.0}
    shares = torch.tensor(list(lines.values()), dtype=torch.float64, device="cpu")
    for name, line in zip(lines, losses.cpu().quantile(shares, dim=0), strict=True):
        middle = name == "median"
        figure.add_scatter(
            y=line.numpy(),
            name=name.strip(),
            mode="lines",
            line={"color": NETWORK_COLORS[1 if middle else 0], "width": 2 if middle else 1},
            showlegend=not name.endswith(" "),
        )
    figure.update_yaxes(title_text="mean squared error", type="log", dtick=1)
    figure.update_xaxes(title_text="epoch")
    return figure
