"""Is a network more modular than its shuffles?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from modfast import checks
from modfast.plots.style import INK, NETWORK_COLORS, cluster_color, require_plotly, styled

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def modularity_report(
    value: float,
    null: Tensor,
    layers: Sequence[str],
    z: Mapping[str, Tensor],
    title: str = "The n-cut among those of shuffled weights",
) -> Figure:
    """A value in the histogram of shuffled networks', and z by layer.

    Args:
        value: of the network.
        null: of its shuffles, `[n]`.
        layers: their names, `[l]`.
        z: by measure, of each layer, `[l]`.
        title: what the figure is called.

    Raises:
        TypeError: no tensors.
        ValueError: other shapes, values that are not finite.
    """
    value = checks.finite_number("value", value)
    checks.floating("null", null)
    checks.finite("null", null)
    if null.dim() != 1 or not len(null):
        raise ValueError(f"null must be [n], got shape {tuple(null.shape)}")
    for name, each in z.items():
        checks.floating(f"z[{name!r}]", each)
        if each.shape != (len(layers),):
            raise ValueError(
                f"z[{name!r}] must be one for each of {len(layers)} layers, "
                f"got shape {tuple(each.shape)}"
            )
    require_plotly()
    from plotly.subplots import make_subplots

    figure = make_subplots(1, 2, column_widths=[0.5, 0.5], horizontal_spacing=0.12)
    figure.add_histogram(
        x=null.cpu().numpy(), marker_color=cluster_color(-1), name="shuffled", row=1, col=1
    )
    figure.add_vline(x=value, line={"color": INK, "width": 2}, row=1, col=1)
    for i, (name, each) in enumerate(z.items()):
        figure.add_scatter(
            x=list(layers),
            y=each.cpu().numpy(),
            mode="lines+markers",
            name=name,
            line_color=NETWORK_COLORS[(i + 1) % len(NETWORK_COLORS)],
            row=1,
            col=2,
        )
    figure = styled(figure, title, 360)
    figure.update_xaxes(title_text="n-cut (line: the network)", row=1, col=1)
    figure.update_yaxes(title_text="shuffled networks", row=1, col=1)
    figure.update_xaxes(title_text="layer", type="category", row=1, col=2)
    figure.update_yaxes(title_text="z", row=1, col=2)
    return figure
