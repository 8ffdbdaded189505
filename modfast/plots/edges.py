"""Which edges does a behavior need?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from modfast.plots.style import INK, NETWORK_COLORS, require_plotly, styled, takes_tensors

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Pair: TypeAlias = tuple[str, str]

_MOST_EDGES = 4000  # lines, of one pair of layers, that a browser draws at once
_MOST_COLS = 4
_FEW = 10  # nodes, each of which has a tick of its own


@takes_tensors
def edge_scores(scores: Mapping[Pair, Tensor], method: str) -> Figure:
    """The scores of all edges, a heat map for each pair of layers, each with its own scale.

    The full colors, blue and red, stand for minus and plus the number in the title.

    Args:
        scores: by (layer, next layer), `[senders, receivers]`.
        method: by which they were found.
    """
    require_plotly()
    from plotly.subplots import make_subplots

    largest = {pair: float(values.abs().max()) for pair, values in scores.items()}
    titles = [
        f"{sender} → {receiver}, ±{largest[sender, receiver]:.2g}" for sender, receiver in largest
    ]
    n_rows, n_cols = -(-len(titles) // _MOST_COLS), min(len(titles), _MOST_COLS)
    figure = make_subplots(
        rows=n_rows, cols=n_cols, subplot_titles=titles, vertical_spacing=0.25 / n_rows
    )
    figure.update_annotations(font_size=13)
    title = f"Rise of the metric when one edge is corrupted ({method})"
    styled(figure, title, 120 + 300 * n_rows)
    for i, ((sender, receiver), values) in enumerate(scores.items()):
        place = {"row": i // _MOST_COLS + 1, "col": i % _MOST_COLS + 1}
        limit = largest[sender, receiver] or 1.0
        figure.add_heatmap(
            z=values.numpy(),
            colorscale="RdBu",
            reversescale=True,
            zmin=-limit,
            zmax=limit,
            showscale=False,
            hovertemplate=f"{sender} %{{y}} → {receiver} %{{x}}<br>%{{z:.4g}}<extra></extra>",
            **place,
        )
        y_tick, x_tick = (1 if n <= _FEW else None for n in values.shape)
        figure.update_xaxes(title_text=receiver, showgrid=False, dtick=x_tick, **place)
        figure.update_yaxes(
            title_text=sender, showgrid=False, dtick=y_tick, autorange="reversed", **place
        )
    return figure


@takes_tensors
def edge_circuit(masks: Mapping[Pair, Tensor], n_nodes: Mapping[str, int]) -> Figure:
    """A circuit's nodes and edges, a column for each layer; nodes without edges are left out.

    Of more than a few thousand edges between two layers every so many are drawn, and how many is
    said above them.

    Args:
        masks: by (layer, next layer), bool `[senders, receivers]`.
        n_nodes: how many nodes the input and each layer have, in their order.
    """
    n_edges = sum(int(mask.sum()) for mask in masks.values())
    n_total = sum(mask.numel() for mask in masks.values())
    require_plotly()
    from plotly import graph_objects

    figure = styled(
        graph_objects.Figure(),
        f"Circuit of {n_edges:,} of {n_total:,} edges",
        480,
    )
    names = list(n_nodes)
    used = {name: torch.zeros(n, dtype=torch.bool, device="cpu") for name, n in n_nodes.items()}
    for (sender, receiver), mask in masks.items():
        used[sender] |= mask.any(1)
        used[receiver] |= mask.any(0)
    height = {name: (torch.arange(len(x), device="cpu") + 0.5) / len(x) for name, x in used.items()}
    for level, ((sender, receiver), mask) in enumerate(masks.items()):
        edges = mask.nonzero()
        shown = edges[:: max(1, -(-len(edges) // _MOST_EDGES))]
        ends = torch.stack([height[sender][shown[:, 0]], height[receiver][shown[:, 1]]], 1)
        figure.add_scatter(
            x=[level, level + 1, None] * len(shown),
            y=torch.nn.functional.pad(ends, (0, 1), value=torch.nan).flatten().numpy(),
            mode="lines",
            # Many are told apart only if each is thin.
            line={"color": NETWORK_COLORS[0], "width": min(1, 20 / max(len(shown), 1) ** 0.5)},
            opacity=0.6,
            hoverinfo="skip",
            showlegend=False,
        )
        drawn = "" if len(shown) == len(edges) else f", {len(shown):,} drawn"
        figure.add_annotation(
            x=level + 0.5,
            y=1,
            yref="paper",
            yanchor="bottom",
            showarrow=False,
            text=f"{len(edges):,} of {mask.numel():,}{drawn}",
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
    last = len(names) - 1
    figure.update_xaxes(
        tickvals=list(range(last + 1)), ticktext=names, showgrid=False, range=[-0.1, last + 0.1]
    )
    # The first node is on top, as in a heat map.
    figure.update_yaxes(visible=False, range=[1.02, -0.02])
    return figure


@takes_tensors
def faithfulness(sizes: Tensor, values: Tensor, n_total: int) -> Figure:
    """How faithful circuits of growing size are, over the share of edges.

    Args:
        sizes: how many edges each has.
        values: their faithfulness: 1 for the whole network, 0 for no edges.
        n_total: how many edges there are.
    """
    require_plotly()
    from plotly import graph_objects

    figure = styled(graph_objects.Figure(), "Faithfulness of circuits by size", 420)
    figure.add_scatter(
        x=(sizes.double() / n_total).tolist(),
        y=values.tolist(),
        mode="lines+markers",
        line={"color": NETWORK_COLORS[0]},
        showlegend=False,
    )
    figure.update_xaxes(title_text="share of edges", type="log")
    figure.update_yaxes(title_text="faithfulness")
    return figure
