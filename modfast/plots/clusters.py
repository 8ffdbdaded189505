"""How does a layer's weight fall into clusters?"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from modfast import checks
from modfast._renamed import warn_renamed
from modfast.plots.style import INK, cluster_color, require_plotly, styled

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Labels: TypeAlias = Tensor | Sequence[int]

_WEAKEST = 0.05  # A weaker line would look like one that matters.


def _takes_labels(function: Callable[..., Figure]) -> Callable[..., Figure]:
    """Takes a `Clusters` for its rows and columns for one release more."""

    @functools.wraps(function)
    def draw(weight: Any, *args: Any, **kwargs: Any) -> Figure:
        clusters: Any = kwargs.get("clusters", args[0] if args else None)
        if hasattr(clusters, "rows") and hasattr(clusters, "cols"):
            name = f"plots.{function.__name__}"
            warn_renamed(
                f"{name}(weight, clusters)", f"{name}(weight, clusters.rows, clusters.cols)"
            )
            rest = args if kwargs.pop("clusters", None) is not None else args[1:]
            return function(weight, clusters.rows, clusters.cols, *rest, **kwargs)
        return function(weight, *args, **kwargs)

    return draw


@_takes_labels
def weight_matrix(weight: Tensor, rows: Labels, cols: Labels, title: str | None = None) -> Figure:
    """A weight as a heat map, rows and columns ordered by cluster, clusters framed.

    Args:
        weight: `[n_out, n_in]`; a convolution's `[n_out, n_in, *kernel]` is drawn by the norm of
            each kernel.
        rows: the cluster of each output, such as `clusters.rows`; -1 for in none, drawn last.
        cols: the cluster of each input.
        title: what the figure is called.

    Raises:
        TypeError: `weight` is not a tensor, labels are no integers.
        ValueError: sizes that do not match, weights that are not finite.
    """
    matrix, of_rows, of_cols = _on_cpu(weight, rows, cols)
    rows, cols = _by_cluster(of_rows), _by_cluster(of_cols)
    require_plotly()
    from plotly import graph_objects

    values = matrix[rows][:, cols]
    largest = float(values.abs().max()) if values.any() else 1.0
    # Red for negative, white for zero, blue for positive, both ends equally strong.
    heat = graph_objects.Heatmap(
        z=values.numpy(),
        x=[str(i) for i in cols.tolist()],
        y=[str(i) for i in rows.tolist()],
        colorscale="RdBu",
        zmin=-largest,
        zmax=largest,
        colorbar={"title": {"text": "weight", "side": "right"}, "thickness": 12},
        hovertemplate="output %{y}, input %{x}<br>weight %{z:.4f}<extra></extra>",
    )
    figure = styled(graph_objects.Figure(heat), title or "The layer's weight by cluster", 480)
    tall, wide = _spans(of_rows[rows]), _spans(of_cols[cols])
    for label in sorted((tall.keys() & wide.keys()) - {-1}):
        box = {"x0": wide[label][0] - 0.5, "x1": wide[label][1] + 0.5}
        box |= {"y0": tall[label][0] - 0.5, "y1": tall[label][1] + 0.5}
        figure.add_shape(type="rect", **box, line={"color": INK, "width": 1.5})
    for update, units, spans, side in (
        (figure.update_xaxes, cols, wide, "input"),
        (figure.update_yaxes, rows, tall, "output"),
    ):
        update(
            title_text=f"cluster of the {side}",
            type="category",  # The units' numbers are names here, not places.
            tickvals=[str(int(units[(first + last) // 2])) for first, last in spans.values()],
            ticktext=["none" if label < 0 else str(label) for label in spans],
            showgrid=False,
            constrain="domain",
        )
    figure.update_yaxes(autorange="reversed")
    if 0.25 < len(rows) / max(1, len(cols)) < 4:  # Longer ones would be thin strips.
        figure.update_yaxes(scaleanchor="x")
    return figure


@_takes_labels
def bipartite(
    weight: Tensor,
    rows: Labels,
    cols: Labels,
    title: str | None = None,
    n_edges: int = 300,
) -> Figure:
    """A layer as a graph: inputs above, outputs below, its strongest weights between them.

    Weights within a cluster have its color, all others are gray; the stronger, the thicker.

    Args:
        weight: as in `weight_matrix`.
        rows: the cluster of each output; units of -1, in none, come last, in gray.
        cols: the cluster of each input.
        title: what the figure is called.
        n_edges: how many weights, the largest by absolute value, are drawn at most; those below a
            twentieth of the largest never are.

    Raises:
        TypeError: `weight` is not a tensor, labels are no integers.
        ValueError: sizes that do not match, weights that are not finite, a negative `n_edges`.
    """
    matrix, of_rows, of_cols = _on_cpu(weight, rows, cols)
    rows, cols = _by_cluster(of_rows), _by_cluster(of_cols)
    if n_edges < 0:
        raise ValueError(f"n_edges must be at least 0, got {n_edges}")
    require_plotly()
    from plotly import graph_objects

    strength, index = matrix.abs().flatten().sort(descending=True, stable=True)
    visible = int((strength > _WEAKEST * strength[:1]).sum())
    index = index[: min(n_edges, visible)]
    outputs, inputs = index // max(1, len(cols)), index % max(1, len(cols))
    level = (strength[: len(index)] / strength[:1] * 4).ceil()
    owner = torch.where(of_rows[outputs] == of_cols[inputs], of_rows[outputs], -1)
    # An argsort of an order tells each unit's place in it.
    x_out = (rows.argsort() + 0.5) / max(1, len(rows))
    x_in = (cols.argsort() + 0.5) / max(1, len(cols))
    title = title or f"The layer's {len(index)} strongest weights"
    figure = styled(graph_objects.Figure(), title, 400)
    # A plotly line has one width, so there are a few classes of strength; gray ones lie below.
    for cluster, strong in torch.stack([owner, level], 1).unique(dim=0).int().tolist():
        chosen = (owner == cluster) & (level == strong)
        ends = torch.stack([x_in[inputs[chosen]], x_out[outputs[chosen]]], dim=1)
        figure.add_scatter(
            x=torch.nn.functional.pad(ends, (0, 1), value=math.nan).flatten().numpy(),
            y=[1, 0, None] * len(ends),
            mode="lines",
            line={"color": cluster_color(cluster), "width": 0.3 + 0.45 * strong},
            opacity=0.1 + 0.2 * strong,
            hoverinfo="skip",
            showlegend=False,
        )
    shown: set[int] = set()
    for side, labels, x in (("input", of_cols, x_in), ("output", of_rows, x_out)):
        for cluster in labels.unique().tolist():
            members = (labels == cluster).nonzero()[:, 0]
            name = "in no cluster" if cluster < 0 else f"cluster {cluster}"
            figure.add_scatter(
                x=x[members].numpy(),
                y=[1 if side == "input" else 0] * len(members),
                mode="markers",
                marker={
                    "color": cluster_color(cluster),
                    "size": max(3, min(9, 320 // len(labels))),
                },
                name=name,
                legendgroup=name,
                showlegend=cluster not in shown,
                customdata=members.numpy(),
                hovertemplate=f"{side} %{{customdata}}, {name}<extra></extra>",
            )
            shown.add(cluster)
    figure.update_xaxes(visible=False, range=[-0.01, 1.01])
    figure.update_yaxes(tickvals=[1, 0], ticktext=["inputs", "outputs"], range=[-0.08, 1.08])
    figure.update_yaxes(showgrid=False, showline=False)
    return figure.update_layout(margin_b=10)


def _on_cpu(weight: Tensor, rows: Labels, cols: Labels) -> tuple[Tensor, Tensor, Tensor]:
    """The weight as a float32 matrix, and labels that fit it, all on the CPU."""
    checks.some_tensor("weight", weight)
    if weight.dim() < 2:
        raise ValueError(f"weight must have at least two dimensions, got {tuple(weight.shape)}")
    weight = weight.detach().cpu().float()
    checks.finite("weight", weight)
    labels = []
    for argument, values, size in zip(("rows", "cols"), (rows, cols), weight.shape, strict=False):
        if not isinstance(values, (Tensor, Sequence)):
            raise TypeError(f"{argument} must be labels, got {values!r}")
        found = torch.as_tensor(values, device="cpu")
        if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
            raise TypeError(f"{argument} must be integer labels, got {found.dtype}")
        if found.shape != (size,):
            raise ValueError(f"{argument} must be {size} labels, got {list(found.shape)}")
        labels.append(found)
    matrix = weight if weight.dim() == 2 else weight.flatten(2).norm(dim=2)
    return matrix, labels[0], labels[1]


def _by_cluster(labels: Tensor) -> Tensor:
    """Indices sorted by label, -1 last; members of a cluster keep their order."""
    return torch.where(labels < 0, 2**31, labels.long()).argsort(stable=True)


def _spans(labels: Tensor) -> dict[int, tuple[int, int]]:
    """First and last place of each label in sorted labels."""
    spans: dict[int, tuple[int, int]] = {}
    for place, label in enumerate(labels.tolist()):
        spans[label] = (spans.get(label, (place, place))[0], place)
    return spans
