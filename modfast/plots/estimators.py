"""How far off are estimators of information?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from modfast.plots.style import cluster_color, require_plotly, styled, takes_tensors

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@takes_tensors
def calibration(
    bias: Tensor,
    spread: Tensor,
    names: Sequence[str],
    dims: Sequence[int],
    samples: Sequence[int],
    truth: float,
) -> Figure:
    """Bias against the number of samples, the spread over seeds as bars; a panel per dimension.

    Args:
        bias: in nats, `[estimators, dims, samples]`.
        spread: over seeds, of the same shape.
        names: the estimators'.
        dims: units in each group.
        samples: numbers of samples.
        truth: the information that they estimate.
    """
    require_plotly()
    from plotly.subplots import make_subplots

    titles = [f"{d} + {d} units" for d in dims]
    figure = make_subplots(cols=len(titles), shared_yaxes=True, subplot_titles=titles)
    figure.update_annotations(font_size=13)
    styled(figure, f"Errors of estimators of {truth:g} nats", 380)
    # A factor beside each other, so that bars of the same number of samples do not hide each other.
    steps = [1.03 ** (i - len(names) / 2) for i in range(len(names))]
    for i, name in enumerate(names):
        for col in range(len(titles)):
            figure.add_scatter(
                x=[n * steps[i] for n in samples],
                y=bias[i, col].numpy(),
                error_y={"type": "data", "array": spread[i, col].numpy(), "thickness": 1},
                customdata=list(samples),
                mode="lines+markers",
                name=name,
                legendgroup=name,
                showlegend=col == 0,
                line={"color": cluster_color(i), "width": 1.5},
                hovertemplate=f"{name}, %{{customdata:,}} samples<br>%{{y:+.4f}} nats"
                "<extra></extra>",
                row=1,
                col=col + 1,
            )
    figure.update_xaxes(type="log", title_text="samples", tickvals=list(samples))
    figure.update_yaxes(title_text="bias, nats", col=1)
    figure.add_hline(y=0, line={"color": "black", "width": 1})
    return figure
