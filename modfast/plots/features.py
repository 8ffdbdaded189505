"""What does a unit respond to?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from itertools import cycle
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modfast import checks
from modfast.plots.style import (
    INK,
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
_LONGEST = 12  # letters of a token


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


def top_contexts(
    values: Tensor,
    indices: Tensor,
    positions: Tensor,
    tokens: Tensor,
    activations: Tensor,
    units: Sequence[int] | Tensor | None = None,
    n_samples: int = 10,
    tokenizer: Any = None,
) -> Figure:
    """The tokens around the largest activations of some units, a row for each, strongest on top.

    A token is the darker the larger the unit's activation is, relative to the unit's largest;
    activations below 0 are white, as 0 is.

    Args:
        values: the largest activations of each unit, strongest first: `[d, k]`.
        indices: of their samples, `[d, k]`.
        positions: of their tokens in the sample, `[d, k]`.
        tokens: theirs and those around, `[d, k, w]`; -1 where there is none.
        activations: the unit's at each of these, `[d, k, w]`.
        units: by default the first eight that are not dead.
        n_samples: of each unit, at most k.
        tokenizer: has `decode` or `convert_ids_to_tokens`, as tokenizers do, or is a function of a
            token that gives a string. By default tokens are shown as numbers.

    Raises:
        TypeError: a tokenizer of another kind, or that gives no strings; units or `n_samples` that
            are no integers.
        ValueError: units out of range, or none.
    """
    shown = min(checks.count("n_samples", n_samples), tokens.shape[1])
    chosen = _chosen(values[:, 0], units)
    read = _reader(tokenizer)
    words = {token: read(token) for token in tokens[chosen, :shown].unique().tolist() if token >= 0}
    require_plotly()
    from plotly import graph_objects

    height, width = shown + 1, tokens.shape[2]  # a gap below each unit
    gap, blank = torch.full((1, width), torch.nan), [""] * width
    shades, text, told = [], [], []
    for unit in chosen:
        here = activations[unit, :shown].double()
        shades += [here / values[unit, 0].double().clamp(min=1e-300), gap]
        for i in range(shown):
            row = tokens[unit, i].tolist()
            sample, first = int(indices[unit, i]), int(positions[unit, i]) - width // 2
            text.append([_word(words.get(token, ""), _LONGEST) for token in row])
            told.append(
                [
                    f"{_word(words.get(token, ''))}<br>activation {value:.4g}<br>"
                    f"sample {sample}, token {at}"
                    for at, (token, value) in enumerate(
                        zip(row, here[i].tolist(), strict=True), first
                    )
                ]
            )
        text.append(blank)
        told.append(blank)
    figure = styled(
        graph_objects.Figure(), "Tokens where units are most active", 120 + 20 * len(text)
    )
    figure.add_heatmap(
        z=torch.cat(shades)[:-1].numpy(),
        x=list(range(-(width // 2), width // 2 + 1)),
        zmin=0,
        zmax=1,
        colorscale=[[0, "white"], [1, "#f5a04c"]],
        showscale=False,
        text=text[:-1],
        texttemplate="%{text}",
        textfont={"color": INK, "size": 11},
        customdata=told[:-1],
        hovertemplate="%{customdata}<extra></extra>",
        hoverongaps=False,
        xgap=1,
        ygap=1,
    )
    names = [f"unit {unit}<br>{float(values[unit, 0]):.3g}" for unit in chosen]
    middles = [height * i + (shown - 1) / 2 for i in range(len(chosen))]
    figure.update_yaxes(
        autorange="reversed", tickvals=middles, ticktext=names, showgrid=False, showline=False
    )
    return figure.update_xaxes(
        title_text="tokens before and after", showgrid=False, showline=False, dtick=1 + width // 12
    )


def _reader(tokenizer: Any) -> Callable[[int], str]:
    """How a token reads."""
    if tokenizer is None:
        return str
    one: Callable[[int], Any]
    if hasattr(tokenizer, "decode"):
        one = lambda token: tokenizer.decode([token])  # noqa: E731
    elif hasattr(tokenizer, "convert_ids_to_tokens"):
        one = lambda token: tokenizer.convert_ids_to_tokens([token])[0]  # noqa: E731
    elif callable(tokenizer):
        one = tokenizer
    else:
        raise TypeError(
            "tokenizer must have decode or convert_ids_to_tokens, or be a function, got "
            f"{checks.shown(tokenizer)}"
        )

    def read(token: int) -> str:
        found = one(token)
        if not isinstance(found, str):
            raise TypeError(f"tokenizer must give strings, got {checks.shown(found)}")
        return found

    return read


def _word(text: str, most: int | None = None) -> str:
    """A token as plotly is to show it: what looks like HTML or TeX is none."""
    text = text.replace("\n", "\u21b5").replace("\t", "\u21e5")
    if most is not None and len(text) > most:
        text = f"{text[: most - 1]}\u2026"
    return escape(text, quote=False).replace("$", "&#36;")


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
