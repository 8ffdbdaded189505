"""Which edges does a behavior need?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from modfast.circuits import EdgeCircuit, EdgeScores
from modfast.plots.style import INK, cluster_color, require_plotly, styled

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_MOST_EDGES = 4000  # lines, of one pair of layers, that a browser draws at once


def edge_scores(scores: EdgeScores) -> Figure:
    """The scores of all edges, a heat map for each pair of layers, each with its own scale.

    Args:
        scores: of `modfast.attribute_edges`.
    """
    require_plotly()
    from plotly.subplots import make_subplots

    n = len(scores.scores)
    titles = [f"{sender} → {receiver}" for sender, receiver in scores.scores]
    figure = make_subplots(cols=n, subplot_titles=titles)
    figure.update_annotations(font_size=13)
    styled(figure, f"Rise of the metric when one edge is corrupted ({scores.method})", 420)
    for col, ((sender, receiver), values) in enumerate(scores.scores.items(), start=1):
        largest = float(values.abs().max()) or 1.0
        figure.add_heatmap(
            z=values.numpy(),
            colorscale="RdBu",
            reversescale=True,
            zmin=-largest,
            zmax=largest,
            showscale=False,
            hovertemplate=f"{sender} %{{y}} → {receiver} %{{x}}<br>%{{z:.4g}}<extra></extra>",
            row=1,
            col=col,
        )
        figure.update_xaxes(title_text=receiver, showgrid=False, col=col)
        figure.update_yaxes(title_text=sender, showgrid=False, autorange="reversed", col=col)
    return figure


def edge_circuit(circuit: EdgeCircuit) -> Figure:
    """A circuit's nodes and edges, a column for each layer; nodes without edges are left out.

    Of more than a few thousand edges between two layers every so many are drawn.

    Args:
        circuit: of `modfast.discover_circuit`.
    """
    require_plotly()
    from plotly import graph_objects

    figure = styled(
        graph_objects.Figure(),
        f"Circuit of {circuit.n_edges:,} of {circuit.n_total:,} edges",
        480,
    )
    names = list(circuit.nodes)
    used: dict[str, Tensor] = {
        name: torch.zeros(int(labels.max()) + 1, dtype=torch.bool)
        for name, labels in circuit.nodes.items()
    }
    for (sender, receiver), mask in circuit.masks.items():
        used[sender] |= mask.any(1)
        used[receiver] |= mask.any(0)
    height = {name: (torch.arange(len(x)) + 0.5) / len(x) for name, x in used.items()}
    for level, ((sender, receiver), mask) in enumerate(circuit.masks.items()):
        edges = mask.nonzero()
        shown = edges[:: max(1, -(-len(edges) // _MOST_EDGES))]
        ends = torch.stack([height[sender][shown[:, 0]], height[receiver][shown[:, 1]]], 1)
        figure.add_scatter(
            x=[level, level + 1, None] * len(shown),
            y=torch.nn.functional.pad(ends, (0, 1), value=torch.nan).flatten().numpy(),
            mode="lines",
            line={"color": cluster_color(level), "width": 0.6},
            opacity=0.4,
            name=f"{sender} → {receiver}: {len(edges):,} of {mask.numel():,}",
            hoverinfo="skip",
        )
    for level, name in enumerate(names):
        members = used[name].nonzero()[:, 0]
        figure.add_scatter(
            x=[level] * len(members),
            y=height[name][members].numpy(),
            mode="markers",
            marker={"color": INK, "size": max(3, min(9, 320 // len(used[name])))},
            customdata=members.numpy(),
            hovertemplate=f"{name} %{{customdata}}<extra></extra>",
            showlegend=False,
        )
    figure.update_xaxes(tickvals=list(range(len(names))), ticktext=names, showgrid=False)
    figure.update_yaxes(visible=False, autorange="reversed")
    return figure
