"""What do units, or groups of them, tell about each other?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from modfast.information import JointInformation, ModularityMeasures, PairwiseInformation
from modfast.plots.style import require_plotly, styled

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_NATS = {"title": {"text": "nats", "side": "right"}, "thickness": 12}


def pairwise_information(result: PairwiseInformation, alpha: float = 0.05) -> Figure:
    """Information of every pair as a heat map; pairs that may be due to chance are left blank.

    Args:
        result: of `modfast.pairwise_mutual_information` with permutations; `[dx, dy]`.
        alpha: the rate of false discoveries above which a pair's q-value leaves it blank.

    Raises:
        ValueError: `alpha` is not between 0 and 1.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be between 0 and 1, got {alpha}")
    require_plotly()
    from plotly import graph_objects

    significant = result.q_value <= alpha
    heat = graph_objects.Heatmap(
        z=torch.where(significant, result.mi, torch.nan).cpu().numpy(),
        customdata=torch.stack([result.p_value, result.q_value, result.null_mean], -1)
        .cpu()
        .numpy(),
        colorscale="Blues",
        zmin=0,
        colorbar=_NATS,
        hovertemplate="x %{y}, y %{x}<br>%{z:.4f} nats, null %{customdata[2]:.4f}<br>"
        "p %{customdata[0]:.3g}, q %{customdata[1]:.3g}<extra></extra>",
    )
    title = (
        f"Mutual information: {int(significant.sum())} of {significant.numel()} pairs, q ≤ {alpha}"
    )
    figure = styled(graph_objects.Figure(heat), title, 480)
    figure.update_xaxes(title_text="feature of y", showgrid=False)
    figure.update_yaxes(title_text="feature of x", showgrid=False, autorange="reversed")
    return figure


def joint_information(result: JointInformation) -> Figure:
    """The table of counts as a heat map; of a table for each pair, the matrix of information.

    Args:
        result: of `modfast.JointHistogram.compute`.
    """
    require_plotly()
    from plotly import graph_objects

    pairs = result.counts.dim() == 4
    values = result.mutual_information if pairs else result.counts
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
        title = f"Joint counts: I(x; y) = {float(result.mutual_information):.4f} nats"
    figure = styled(graph_objects.Figure(heat), title, 480)
    figure.update_xaxes(title_text=f"{kind} of y", showgrid=False)
    figure.update_yaxes(title_text=f"{kind} of x", showgrid=False, autorange="reversed")
    return figure


def modularity_measures(measures: Mapping[str, ModularityMeasures]) -> Figure:
    """C1, C2 and C3 of networks, such as trained against untrained, as heat maps with values.

    One map for each measure, with a row for each network and a column for each pair of sites. Of a
    list of modules the sums over modules are drawn.

    Args:
        measures: results of `modfast.modularity_measures` by the networks' names.

    Raises:
        TypeError: other values.
        ValueError: none, or results for different pairs of sites.
    """
    for name, each in measures.items():
        if not isinstance(each, ModularityMeasures):
            raise TypeError(
                f"measures {name!r} must be a ModularityMeasures, got {type(each).__name__}"
            )
    all_pairs = {each.pairs for each in measures.values()}
    if len(all_pairs) != 1:
        raise ValueError(f"measures must be for one list of pairs, got {sorted(all_pairs)}")
    require_plotly()
    from plotly.subplots import make_subplots

    (pairs,) = all_pairs
    titles = {
        "c1": "C1 = H(second | l1 without P) - H(second)",
        "c2": "C2 = H(second | l1) - H(second | l1 in P)",
        "c3": "C3 = H(second | l1) - H(second | l1 without P)",
    }
    figure = make_subplots(
        rows=3, shared_xaxes=True, vertical_spacing=0.14, subplot_titles=list(titles.values())
    )
    figure.update_annotations(font_size=13)
    styled(figure, "Modularity measures, nats", 240 + 90 * len(measures))
    for row, measure in enumerate(titles, start=1):
        values = torch.stack(
            [
                getattr(each, measure).detach().reshape(-1, len(pairs)).sum(0).cpu().double()
                for each in measures.values()
            ]
        )
        # Each measure has its own size: red for negative, white for zero, blue for positive.
        largest = float(values.abs().max()) or 1.0
        figure.add_heatmap(
            z=values.numpy(),
            x=[" → ".join(pair) for pair in pairs],
            y=list(measures),
            texttemplate="%{z:.3f}",
            colorscale="RdBu",
            zmin=-largest,
            zmax=largest,
            showscale=False,
            xgap=1,
            ygap=1,
            hovertemplate=f"{measure.upper()}<br>%{{y}}, %{{x}}<br>%{{z:.5f}} nats<extra></extra>",
            row=row,
            col=1,
        )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(type="category", showgrid=False)
    return figure
