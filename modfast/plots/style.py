"""The one look of all figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Result = TypeVar("Result")

# Okabe and Ito's colors, which color-blind readers can tell apart, without the yellow that is too
# pale for lines. Networks take other ones than clusters, so that no color means two things.
NETWORK_COLORS = ("#4d5666", "#d55e00", "#7b3fa0", "#00695c")
_CLUSTER_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#8c6d31")
INK, _GRAY, _FAINT = "#1f2937", "#9aa1ab", "#e5e7eb"
_FONT = "system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"


def require_plotly() -> None:
    """Raises ImportError, naming the extra to install, where plotly is missing."""
    try:
        import plotly.graph_objects  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'figures need plotly ({error}); install it with: pip install "modfast[report]"'
        ) from error


def by_name(
    argument: str, results: Result | Mapping[str, Result], kind: type[Result]
) -> dict[str, Result]:
    """Results by name; one that is given alone has the empty name.

    Raises:
        TypeError: not of this kind, or a mapping with other values.
        ValueError: an empty mapping.
    """
    named = dict(results) if isinstance(results, Mapping) else {"": results}
    if not named:
        raise ValueError(f"{argument} must hold at least one {kind.__name__}, got none")
    for name, each in named.items():
        if not isinstance(each, kind):
            which = f"{argument} {name!r}" if name else argument
            raise TypeError(f"{which} must be a {kind.__name__}, got {type(each).__name__}")
    return named


def cluster_color(cluster: int) -> str:
    """A cluster's color, gray for -1; they come round again after six."""
    return _GRAY if cluster < 0 else _CLUSTER_COLORS[cluster % len(_CLUSTER_COLORS)]


def styled(figure: Figure, title: str, height: int) -> Figure:
    """Gives a figure its title, its height in pixels and the look of all figures."""
    axis: dict[str, Any] = {"showline": True, "linecolor": _GRAY, "gridcolor": _FAINT}
    axis |= {"zeroline": False, "ticks": "", "automargin": True, "title_font_size": 12}
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    return figure.update_layout(
        template="none",
        title={"text": title, "x": 0, "xref": "paper", "font": {"size": 15}},
        font={"family": _FONT, "size": 12, "color": INK},
        height=height,
        autosize=True,
        margin={"l": 60, "r": 20, "t": 70, "b": 50},
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
        hoverlabel={"bgcolor": "white"},
    )
