"""The one look of all figures."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar

from modfast._renamed import warn_renamed
from modfast.results import Result

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

P = ParamSpec("P")
T = TypeVar("T")
Named: TypeAlias = T | Mapping[str, T]
"""One, or several by name, to be laid over each other."""

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


def by_name(**values: Any) -> dict[str, tuple[Any, ...]]:
    """By name, the value of each argument; what is given alone has the empty name.

    Raises:
        ValueError: no values, or arguments of other names than the first's.
    """
    named = {
        argument: dict(value) if isinstance(value, Mapping) else {"": value}
        for argument, value in values.items()
    }
    names = list(next(iter(named.values())))
    for argument, each in named.items():
        if not each or each.keys() != set(names):
            wanted = f"values for {names}" if names else "at least one value"
            raise ValueError(f"{argument} must hold {wanted}, got {list(each)}")
    return {name: tuple(each[name] for each in named.values()) for name in names}


def takes_tensors(function: Callable[P, Figure]) -> Callable[P, Figure]:
    """Lets a figure take a result, or results by name, for one release more; they draw themselves.

    A DeprecationWarning says how.
    """
    name = f"plots.{function.__name__}"

    @functools.wraps(function)
    def draw(*args: P.args, **kwargs: P.kwargs) -> Figure:
        first = args[0] if args else next(iter(kwargs.values()), None)
        one = next(iter(first.values()), None) if isinstance(first, Mapping) else first
        if not isinstance(one, Result):
            return function(*args, **kwargs)
        rest = kwargs if args else dict(list(kwargs.items())[1:])
        if first is one:
            warn_renamed(f"{name}(result)", "result.plot()")
            return one.plot(*args[1:], **rest)
        several: Any = type(one)
        warn_renamed(f"{name}(results)", f"{several.__name__}.overlay(results)")
        return several.overlay(first, *args[1:], **rest)

    return draw


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
