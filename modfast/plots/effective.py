"""How much information does the wiring carry, layer by layer and pair by pair?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from modfast.plots.style import INK, NETWORK_COLORS, require_plotly, styled, takes_tensors

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@takes_tensors
def effective_information(
    determinism: Sequence[float],
    degeneracy: Sequence[float],
    names: Sequence[str],
    whole: tuple[float, float],
    about: Sequence[str] | None = None,
) -> Figure:
    """Determinism, degeneracy and their difference, EI, of each layer in the order of use.

    Args:
        determinism: of each layer, in bits.
        degeneracy: of each layer.
        names: the layers'.
        whole: determinism and degeneracy of the whole network.
        about: what else there is to say about each layer; by default its name.
    """
    measures = {
        "degeneracy": degeneracy,
        "determinism": determinism,
        "EI": [out - inside for out, inside in zip(degeneracy, determinism, strict=True)],
    }
    require_plotly()
    from plotly.graph_objects import Figure

    title = (
        f"Effective information: {whole[1] - whole[0]:.3f} bits = "
        f"degeneracy {whole[1]:.3f} - determinism {whole[0]:.3f}"
    )
    figure = styled(Figure(), title, 380)
    # A layer that is used twice has two places.
    places = list(range(len(names)))
    for (measure, values), color in zip(measures.items(), NETWORK_COLORS, strict=False):
        figure.add_scatter(
            x=places,
            y=list(values),
            text=list(about or names),
            name=measure,
            mode="lines+markers",
            line={"color": color, "width": 1.5},
            hovertemplate="%{text}<br>%{y:.4f} bits<extra>%{fullData.name}</extra>",
        )
    figure.update_xaxes(title_text="layer", tickvals=places, ticktext=list(names))
    figure.update_yaxes(title_text="bits", rangemode="tozero")
    return figure


@takes_tensors
def perturbational_information(
    bits: float,
    pairs: Tensor | None,
    n_samples: int,
    history: Tensor,
    kind: str,
    converged: bool = True,
) -> Figure:
    """What each output tells about each input as a heat map; of a whole, the values by samples.

    Args:
        bits: the whole information.
        pairs: of each input with each output, `[n_in, n_out]`; None draws the history.
        n_samples: how many were drawn in the end.
        history: `bits` after each doubling of the samples.
        kind: "parts", "whole" or "sensitivity".
        converged: whether the last doubling changed little.
    """
    require_plotly()
    from plotly import graph_objects

    what = "Sensitivity" if kind == "sensitivity" else f"EI by perturbation, {kind}"
    ended = "" if converged else ", not converged"
    title = f"{what}: {bits:.3f} bits, {n_samples:,} samples{ended}"
    if pairs is None:
        first = n_samples >> (len(history) - 1)
        figure = styled(graph_objects.Figure(), title, 320)
        figure.add_scatter(
            x=[first << i for i in range(len(history))],
            y=history.numpy(),
            mode="lines+markers",
            line={"color": INK, "width": 1.5},
            hovertemplate="%{x:,} samples<br>%{y:.4f} bits<extra></extra>",
        )
        figure.update_xaxes(title_text="samples", type="log")
        figure.update_yaxes(title_text="bits")
        return figure
    heat = graph_objects.Heatmap(
        z=pairs.numpy(),
        colorscale="Blues",
        zmin=0,
        colorbar={"title": {"text": "bits", "side": "right"}, "thickness": 12},
        hovertemplate="input %{y}, output %{x}<br>%{z:.4f} bits<extra></extra>",
    )
    figure = styled(graph_objects.Figure(heat), title, 480)
    figure.update_xaxes(title_text="output", showgrid=False)
    figure.update_yaxes(title_text="input", showgrid=False, autorange="reversed")
    return figure
