"""Which weights does a behavior need, and how many?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import torch
from torch import Tensor

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

_MOST_POINTS = 2000


@takes_tensors
def circuit(
    loss_path: Tensor,
    original_loss: Tensor,
    mask: Mapping[str, Tensor],
    margins: Mapping[str, Tensor],
) -> Figure:
    """The loss over the visits of weights, and the share of weights kept in each layer.

    A long path is drawn at evenly spaced visits.

    Args:
        loss_path: after each visit, `[visits]`, in nats.
        original_loss: before the first: scalar.
        mask: by parameter name, in the order of the visits: True where a weight is kept.
        margins: by the same names, NaN where a weight was not visited.
    """
    require_plotly()
    from plotly.subplots import make_subplots

    kept = sum(int(each.sum()) for each in mask.values())
    total = sum(each.numel() for each in mask.values())
    titles = ["Loss while pruning", "Weights kept"]
    figure = make_subplots(cols=2, column_widths=[0.7, 0.3], subplot_titles=titles)
    figure.update_annotations(font_size=13)
    styled(figure, f"Circuit of {kept:,} of {total:,} weights", 320)
    path = torch.cat([original_loss.view(1), loss_path])
    visits = (
        torch.linspace(0, len(path) - 1, min(len(path), _MOST_POINTS), device="cpu").round().long()
    )
    figure.add_scatter(
        x=visits.numpy(),
        y=path[visits].numpy(),
        mode="lines",
        line={"color": NETWORK_COLORS[0], "width": 1.5},
        hovertemplate="visit %{x}<br>loss %{y:.4g} nats<extra></extra>",
        row=1,
        col=1,
    )
    visited = 0
    for each in list(margins.values())[:-1]:
        visited += int((~each.isnan()).sum())
        figure.add_vline(visited, line={"color": "#9aa1ab", "width": 1, "dash": "dot"}, col=1)
    figure.add_bar(
        x=list(mask),
        y=[float(each.double().mean()) for each in mask.values()],
        text=[f"{int(each.sum()):,}" for each in mask.values()],
        marker_color=cluster_color(0),
        hovertemplate="%{x}<br>%{text} kept, %{y:.2%}<extra></extra>",
        row=1,
        col=2,
    )
    figure.update_layout(showlegend=False)
    figure.update_xaxes(title_text="visit", col=1)
    figure.update_yaxes(title_text="loss, nats", col=1)
    figure.update_yaxes(title_text="share kept", tickformat=".0%", rangemode="tozero", col=2)
    return figure


@takes_tensors
def circuit_sizes(
    thresholds: Named[Tensor], kept: Named[Tensor], labels: Named[Sequence[int]]
) -> Figure:
    """Weights in the circuits over thresholds: a thin line for each label, a thick one the mean.

    Those of several networks, given by name, are overlaid.

    Args:
        thresholds: in nats, `[t]`.
        kept: weights in each circuit, `[t, l]`.
        labels: of the l circuits.

    Raises:
        ValueError: no values, or other names for one than for another.
    """
    named = by_name(thresholds=thresholds, kept=kept, labels=labels)
    require_plotly()
    from plotly.graph_objects import Figure

    figure = styled(Figure(), "Effective circuit size", 360)
    for color, (name, (x, sizes, each)) in zip(cycle(NETWORK_COLORS), named.items(), strict=False):
        of = f"{name}, " if name else ""
        lines = {f"{of}label {label}": sizes[:, i] for i, label in enumerate(each)}
        lines[f"{of}mean"] = sizes.double().mean(1)
        for line, values in lines.items():
            is_mean = line == f"{of}mean"
            figure.add_scatter(
                x=x.numpy(),
                y=values.numpy(),
                name=line,
                legendgroup=name,
                showlegend=is_mean,
                mode="lines+markers" if is_mean else "lines",
                opacity=1.0 if is_mean else 0.35,
                line={"color": color, "width": 2.5 if is_mean else 1},
                hovertemplate=f"{line}<br>%{{x:.1e}} nats<br>%{{y:,.0f}} weights<extra></extra>",
            )
    figure.update_xaxes(title_text="threshold, nats", type="log", dtick=1, exponentformat="power")
    figure.update_yaxes(title_text="weights kept", rangemode="tozero")
    return figure
