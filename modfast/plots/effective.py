"""How much information does the wiring carry, layer by layer and pair by pair?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modfast.effective import EffectiveInformation, PerturbationalInformation
from modfast.plots.style import INK, NETWORK_COLORS, require_plotly, styled

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def effective_information(result: EffectiveInformation) -> Figure:
    """Determinism, degeneracy and their difference, EI, of each layer in the order of use.

    Args:
        result: of `modfast.effective_information`.
    """
    require_plotly()
    from plotly.graph_objects import Figure

    title = (
        f"Effective information: {result.ei:.3f} bits = degeneracy {result.degeneracy:.3f} "
        f"- determinism {result.determinism:.3f}"
    )
    figure = styled(Figure(), title, 380)
    # A layer that is used twice has two places.
    places = list(range(len(result.layers)))
    for measure, color in zip(("degeneracy", "determinism", "ei"), NETWORK_COLORS, strict=False):
        figure.add_scatter(
            x=places,
            y=[getattr(layer, measure) for layer in result.layers],
            text=[
                f"{layer.name}, {layer.kind}, {layer.n_in:,} → {layer.n_out:,}"
                for layer in result.layers
            ],
            name="EI" if measure == "ei" else measure,
            mode="lines+markers",
            line={"color": color, "width": 1.5},
            hovertemplate="%{text}<br>%{y:.4f} bits<extra>%{fullData.name}</extra>",
        )
    names = [layer.name for layer in result.layers]
    figure.update_xaxes(title_text="layer", tickvals=places, ticktext=names)
    figure.update_yaxes(title_text="bits", rangemode="tozero")
    return figure


def perturbational_information(result: PerturbationalInformation) -> Figure:
    """What each output tells about each input as a heat map; of a whole, the values by samples.

    Args:
        result: of `modfast.perturbational_ei` or `modfast.sensitivity`.
    """
    require_plotly()
    from plotly import graph_objects

    what = "Sensitivity" if result.kind == "sensitivity" else f"EI by perturbation, {result.kind}"
    ended = "" if result.converged else ", not converged"
    title = f"{what}: {result.bits:.3f} bits, {result.n_samples:,} samples{ended}"
    if result.pairs is None:
        first = result.n_samples >> (len(result.history) - 1)
        figure = styled(graph_objects.Figure(), title, 320)
        figure.add_scatter(
            x=[first << i for i in range(len(result.history))],
            y=result.history.numpy(),
            mode="lines+markers",
            line={"color": INK, "width": 1.5},
            hovertemplate="%{x:,} samples<br>%{y:.4f} bits<extra></extra>",
        )
        figure.update_xaxes(title_text="samples", type="log")
        figure.update_yaxes(title_text="bits")
        return figure
    heat = graph_objects.Heatmap(
        z=result.pairs.numpy(),
        colorscale="Blues",
        zmin=0,
        colorbar={"title": {"text": "bits", "side": "right"}, "thickness": 12},
        hovertemplate="input %{y}, output %{x}<br>%{z:.4f} bits<extra></extra>",
    )
    figure = styled(graph_objects.Figure(heat), title, 480)
    figure.update_xaxes(title_text="output", showgrid=False)
    figure.update_yaxes(title_text="input", showgrid=False, autorange="reversed")
    return figure
