"""What does a unit respond to?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modfast import checks
from modfast.plots.style import (
    NETWORK_COLORS,
    Named,
    by_name,
    require_plotly,
    styled,
    takes_tensors,
)

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_UNITS = 8


@takes_tensors
def top_inputs(
    indices: Tensor,
    values: Tensor,
    inputs: Any,
    units: Sequence[int] | Tensor | None = None,
    n_samples: int = 10,
) -> Figure:
    """The inputs that activate some units most, a row for each unit, strongest first.

    Images `[h, w]`, `[1, h, w]` or `[3, h, w]` lie side by side; other inputs are heat strips, one
    below the other.

    Args:
        indices: of each unit's samples in the data set, strongest first: `[d, k]`.
        values: their activations, `[d, k]`.
        inputs: the data set's inputs, a tensor `[n, ...]`, or anything whose items are inputs or
            pairs of an input and a target.
        units: by default the first eight that are not dead.
        n_samples: of each unit, at most k.

    Raises:
        TypeError: inputs that are no tensors; units or `n_samples` that are no integers.
        ValueError: units out of range, or none.
    """
    shown = min(checks.count("n_samples", n_samples), indices.shape[1])
    chosen = _chosen(values[:, 0], units)
    samples = [[_sample(inputs, int(i)) for i in indices[unit, :shown]] for unit in chosen]
    require_plotly()
    from plotly import graph_objects

    image = _is_image(samples[0][0])
    rows = [_row(row, image) for row in samples]
    mosaic = torch.cat(rows, -2)[..., :-1, :]
    row_pixels = rows[0].shape[-2]
    per_row = 70 if image else 12 * shown
    title = f"Inputs that activate units most, strongest {'left' if image else 'on top'}"
    figure = styled(graph_objects.Figure(), title, 100 + per_row * len(chosen))
    if mosaic.dim() == 3:
        low, high = mosaic.nan_to_num().amin(), mosaic.nan_to_num().amax()
        scaled = (mosaic - low) / (high - low).clamp(min=1e-12) * 255
        figure.add_image(z=scaled.nan_to_num(255).movedim(0, -1).byte().numpy())
    else:
        figure.add_heatmap(
            z=mosaic.numpy(),
            colorscale="Greys",
            showscale=False,
            hovertemplate="%{z:.3g}<extra></extra>",
        )
        figure.update_yaxes(autorange="reversed")
    names = [f"unit {unit}<br>{float(values[unit, 0]):.3g}" for unit in chosen]
    middles = [row_pixels * i + (row_pixels - 1) / 2 for i in range(len(chosen))]
    figure.update_yaxes(
        tickvals=middles, ticktext=names, ticklabelstandoff=6, showgrid=False, showline=False
    )
    figure.update_xaxes(visible=False)
    if image:
        figure.update_yaxes(scaleanchor="x", constrain="domain")
        figure.update_xaxes(constrain="domain")
    return figure


def _chosen(largest: Tensor, units: Sequence[int] | Tensor | None) -> list[int]:
    if units is None:
        alive = (largest > 0).nonzero()[:_UNITS, 0].tolist()
        return alive or list(range(min(_UNITS, len(largest))))
    chosen = checks.integers("units", units)
    if chosen.numel() == 0:
        raise ValueError("units must not be empty")
    if chosen.dim() != 1:
        raise TypeError(f"units must be a list of integers, got shape {tuple(chosen.shape)}")
    outside = chosen[(chosen < 0) | (chosen >= len(largest))]
    if len(outside):
        raise ValueError(f"units must be from 0 to {len(largest) - 1}, got {outside[0].item()}")
    found: list[int] = chosen.tolist()
    return found


def _sample(inputs: Any, index: int) -> Tensor:
    if not (hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__")):
        raise TypeError(f"inputs must be a tensor or a data set, got {checks.shown(inputs)}")
    if isinstance(inputs, Tensor):
        checks.dense("inputs", inputs)
        inputs = inputs if inputs.dim() else inputs[None]
    if not 0 <= index < len(inputs):
        raise ValueError(f"inputs must be the data set's, got {len(inputs)}, without {index}")
    item: Any = inputs[index]
    item = item[0] if isinstance(item, (tuple, list)) and item else item
    checks.dense("inputs", item)
    found: Tensor = item.detach().cpu().float()
    return found[0] if found.dim() == 3 and len(found) == 1 else found


def _is_image(sample: Tensor) -> bool:
    return sample.dim() == 2 or (sample.dim() == 3 and len(sample) == 3)


def _row(samples: list[Tensor], image: bool) -> Tensor:
    """A unit's samples side by side, or one below the other, with a gap after each and below."""
    if not image:
        strips = torch.stack([sample.flatten() for sample in samples])
        return torch.nn.functional.pad(strips, (0, 0, 0, 1), value=torch.nan)
    padded = [torch.nn.functional.pad(each, (0, 1, 0, 1), value=torch.nan) for each in samples]
    return torch.cat(padded, -1)


@takes_tensors
def label_purity(histogram: Named[Tensor], survival: Named[Tensor], score: Named[float]) -> Figure:
    """How many distinct labels the samples of each unit have: histogram and survival curve.

    Those of several networks, given by name, are overlaid.

    Args:
        histogram: how many units have 1, 2, ..., c distinct labels: `[c]`.
        survival: the share of units that have more than 0, 1, ..., c: `[c + 1]`.
        score: the purity.

    Raises:
        ValueError: no values, or other names for one than for another.
    """
    named = by_name(histogram=histogram, survival=survival, score=score)
    require_plotly()
    from plotly.subplots import make_subplots

    figure = make_subplots(cols=2, horizontal_spacing=0.12)
    told = ", ".join(f"{name} {each:.4f}".strip() for name, (*_, each) in named.items())
    styled(figure, f"Label purity: {told}", 320)
    for color, (name, (units, share, _)) in zip(cycle(NETWORK_COLORS), named.items(), strict=False):
        c = len(units)
        look = {"name": name, "legendgroup": name}
        figure.add_bar(
            x=list(range(1, c + 1)),
            y=units.numpy(),
            marker_color=color,
            showlegend=bool(name),
            row=1,
            col=1,
            **look,
        )
        figure.add_scatter(
            x=list(range(c + 1)),
            y=share.numpy(),
            mode="lines",
            line={"color": color, "width": 2, "shape": "hv"},
            showlegend=False,
            row=1,
            col=2,
            **look,
        )
    figure.update_xaxes(title_text="distinct labels", dtick=1, col=1)
    figure.update_yaxes(title_text="units", col=1)
    figure.update_xaxes(title_text="more distinct labels than", col=2)
    figure.update_yaxes(title_text="share of units", range=[0, 1.02], col=2)
    return figure
