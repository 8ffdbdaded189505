"""Which weights does a behavior need, and how many?"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import TYPE_CHECKING

import torch

from modfast.circuits.result import Circuit, CircuitSizes
from modfast.plots.style import NETWORK_COLORS, by_name, cluster_color, require_plotly, styled

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_MOST_POINTS = 2000


def circuit(result: Circuit) -> Figure:
    """The loss over the visits of weights, and the share of weights kept in each layer.

    A long path is drawn at evenly spaced visits.
    """
    require_plotly()
    from plotly.subplots import make_subplots

    titles = ["Loss while pruning", "Weights kept"]
    figure = make_subplots(cols=2, column_widths=[0.7, 0.3], subplot_titles=titles)
    figure.update_annotations(font_size=13)
    styled(figure, f"Circuit of {result.kept:,} of {result.total:,} weights", 320)
    path = torch.cat([result.original_loss.view(1), result.loss_path])
    visits = torch.linspace(0, len(path) - 1, min(len(path), _MOST_POINTS)).round().long()
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
    for margins in list(result.margins.values())[:-1]:
        visited += int((~margins.isnan()).sum())
        figure.add_vline(visited, line={"color": "#9aa1ab", "width": 1, "dash": "dot"}, col=1)
    figure.add_bar(
        x=list(result.mask),
        y=[float(mask.double().mean()) for mask in result.mask.values()],
        text=[f"{int(mask.sum()):,}" for mask in result.mask.values()],
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


def circuit_sizes(results: CircuitSizes | Mapping[str, CircuitSizes]) -> Figure:
    """Weights in the circuits over thresholds: a thin line for each label, a thick one the mean.

    Several results, given by name, are overlaid.

    Raises:
        TypeError: other values.
        ValueError: no results.
    """
    named = by_name("results", results, CircuitSizes)
    require_plotly()
    from plotly.graph_objects import Figure

    figure = styled(Figure(), "Effective circuit size", 360)
    for color, (name, sizes) in zip(cycle(NETWORK_COLORS), named.items(), strict=False):
        of = f"{name}, " if name else ""
        lines = {f"{of}label {label}": sizes.kept[:, i] for i, label in enumerate(sizes.labels)}
        lines[f"{of}mean"] = sizes.kept.double().mean(1)
        for line, kept in lines.items():
            is_mean = line == f"{of}mean"
            figure.add_scatter(
                x=sizes.thresholds.numpy(),
                y=kept.numpy(),
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
