"""What do units, or groups of them, tell about each other?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from modfast.plots.style import Named, by_name, require_plotly, styled, takes_tensors

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_NATS = {"title": {"text": "nats", "side": "right"}, "thickness": 12}


@takes_tensors
def pairwise_information(
    mi: Tensor,
    p_value: Tensor | None = None,
    q_value: Tensor | None = None,
    null_mean: Tensor | None = None,
    alpha: float = 0.05,
) -> Figure:
    """Information of every pair as a heat map; pairs that may be due to chance are left blank.

    Args:
        mi: `[dx, dy]`, in nats.
        p_value: of each pair; without it, all pairs are drawn.
        q_value: of each pair, given with the p-values.
        null_mean: mean information of the nulls, given with the p-values.
        alpha: the rate of false discoveries above which a pair's q-value leaves it blank.

    Raises:
        ValueError: `alpha` is not between 0 and 1.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be between 0 and 1, got {alpha}")
    require_plotly()
    from plotly import graph_objects

    values, told, title, customdata = mi, "", "Mutual information of each pair", None
    if p_value is not None and q_value is not None and null_mean is not None:
        significant = q_value <= alpha
        values = torch.where(significant, mi, torch.nan)
        customdata = torch.stack([p_value, q_value, null_mean], -1).cpu().numpy()
        told = ", null %{customdata[2]:.4f}<br>p %{customdata[0]:.3g}, q %{customdata[1]:.3g}"
        found = f"{int(significant.sum())} of {significant.numel()} pairs"
        title = f"Mutual information: {found}, q ≤ {alpha}"
    heat = graph_objects.Heatmap(
        z=values.cpu().numpy(),
        customdata=customdata,
        colorscale="Blues",
        zmin=0,
        colorbar=_NATS,
        hovertemplate=f"x %{{y}}, y %{{x}}<br>%{{z:.4f}} nats{told}<extra></extra>",
    )
    figure = styled(graph_objects.Figure(heat), title, 480)
    figure.update_xaxes(title_text="feature of y", showgrid=False)
    figure.update_yaxes(title_text="feature of x", showgrid=False, autorange="reversed")
    return figure


@takes_tensors
def joint_information(counts: Tensor, mutual_information: Tensor) -> Figure:
    """The table of counts as a heat map; of a table for each pair, the matrix of information.

    Args:
        counts: `[bins, bins]`, or `[dx, dy, bins, bins]` of pairs.
        mutual_information: a scalar, or `[dx, dy]`, in nats.
    """
    require_plotly()
    from plotly import graph_objects

    pairs = counts.dim() == 4
    values = mutual_information if pairs else counts
    what, kind = ("nats", "feature") if pairs else ("samples", "bin")
    heat = graph_objects.Heatmap(
        z=values.cpu().numpy(),
        colorscale="Blues",
        zmin=0,
        colorbar={**_NATS, "title": {"text": what, "side": "right"}},
        hovertemplate=f"x %{{y}}, y %{{x}}<br>%{{z}} {what}<extra></extra>",
    )
    title = "Mutual information of each pair"
    if not pairs:
        title = f"Joint counts: I(x; y) = {float(mutual_information):.4f} nats"
    figure = styled(graph_objects.Figure(heat), title, 480)
    figure.update_xaxes(title_text=f"{kind} of y", showgrid=False)
    figure.update_yaxes(title_text=f"{kind} of x", showgrid=False, autorange="reversed")
    return figure


@takes_tensors
def modularity_measures(
    c1: Named[Tensor], c2: Named[Tensor], c3: Named[Tensor], pairs: Sequence[tuple[str, str]]
) -> Figure:
    """C1, C2 and C3 of networks, such as trained against untrained, as heat maps with values.

    One map for each measure, with a row for each network and a column for each pair of sites.

    Args:
        c1: `[pairs]`, or `[modules, pairs]`, whose sums over modules are drawn; one network's, or
            several networks' by name.
        c2: of the same networks.
        c3: of the same networks.
        pairs: the sites' names.

    Raises:
        ValueError: none, or of other networks.
    """
    named = by_name(c1=c1, c2=c2, c3=c3)
    require_plotly()
    from plotly.subplots import make_subplots

    titles = {
        "c1": "C1 = H(second | l1 without P) - H(second)",
        "c2": "C2 = H(second | l1) - H(second | l1 in P)",
        "c3": "C3 = H(second | l1) - H(second | l1 without P)",
    }
    figure = make_subplots(
        rows=3, shared_xaxes=True, vertical_spacing=0.14, subplot_titles=list(titles.values())
    )
    figure.update_annotations(font_size=13)
    styled(figure, "Modularity measures, nats", 240 + 90 * len(named))
    for row, measure in enumerate(titles):
        values = torch.stack(
            [
                each[row].detach().reshape(-1, len(pairs)).sum(0).cpu().double()
                for each in named.values()
            ]
        )
        # Each measure has its own size: red for negative, white for zero, blue for positive.
        largest = float(values.abs().max()) or 1.0
        figure.add_heatmap(
            z=values.numpy(),
            x=[" → ".join(pair) for pair in pairs],
            y=list(named),
            texttemplate="%{z:.3f}",
            colorscale="RdBu",
            zmin=-largest,
            zmax=largest,
            showscale=False,
            xgap=1,
            ygap=1,
            hovertemplate=f"{measure.upper()}<br>%{{y}}, %{{x}}<br>%{{z:.5f}} nats<extra></extra>",
            row=row + 1,
            col=1,
        )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(type="category", showgrid=False)
    return figure
