"""The base of every result: how it is shown, kept in a file and drawn."""

from __future__ import annotations

import contextlib
import os
import types
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from torch import Tensor

from modfast import checks
from modfast.files import holds_no, load_values, save_values

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

R = TypeVar("R", bound="Result")

_MOST_ITEMS = 4
_MOST_CHARACTERS = 60


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """What a function found: a frozen dataclass of tensors, plain values and collections of them.

    Results are equal only to themselves. `repr` tells dtypes and shapes, not numbers. Tensors are
    on the CPU where a class does not say otherwise.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> @dataclass(frozen=True, eq=False, repr=False)
        ... class Kept(Result):
        ...     values: Tensor
        ...     share: float
        ...     backend: str = ""
        >>> kept = Kept(torch.ones(2, 3), 0.5)
        >>> kept
        Kept(values=float32[2, 3], share=0.5)
        >>> path = Path(tempfile.mkdtemp()) / "kept.safetensors"
        >>> kept.save(path)
        >>> Kept.load(path).to_dict()["values"].shape
        torch.Size([2, 3])
    """

    def __repr__(self) -> str:
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        # What was not asked for has nothing to tell.
        told = [
            f"{name}={_short(value)}"
            for name, value in values
            if value is not None and not (isinstance(value, str) and value == "")
        ]
        return f"{type(self).__name__}({', '.join(told)})"

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, tensors as they are; results among them as dicts too."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    def cpu(self: R) -> R:
        """The same with all tensors on the CPU."""
        return replace(self, **{x.name: _on_cpu(getattr(self, x.name)) for x in fields(self)})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a file of safetensors, under a temporary name first.

        Tensors that are elsewhere are saved as on the CPU.

        Raises:
            TypeError, ValueError: no path of a file.
            OSError: it cannot be written.
        """
        save_values(checks.path("path", path), type(self).__name__, self.to_dict())

    @classmethod
    def load(cls: type[R], path: str | os.PathLike[str]) -> R:
        """The result that `save` wrote, or an earlier release; no code of the file runs.

        Raises:
            OSError: there is no such file.
            ValueError: the file holds something else, or fields of other types.
        """
        values = load_values(checks.path("path", path), cls.__name__)
        try:
            found: R = _built(cls, values, "")
            return found
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{holds_no(path, cls.__name__)}: {error}") from error

    def plot(self, *args: Any, **kwargs: Any) -> Figure:
        """A plotly figure of it.

        Raises:
            ImportError: plotly is missing.
            NotImplementedError: results of this class have no figure.
        """
        raise NotImplementedError(f"there is no figure of a {type(self).__name__}")

    @classmethod
    def by_name(cls: type[R], results: Mapping[str, R]) -> dict[str, R]:
        """Several results of this class by name, checked.

        Raises:
            TypeError: no mapping, or one with other values.
            ValueError: an empty one.
        """
        if not isinstance(results, Mapping):
            raise TypeError(f"results must be a mapping, got {type(results).__name__}")
        if not results:
            raise ValueError(f"results must hold at least one {cls.__name__}, got none")
        for name, each in results.items():
            if not isinstance(each, cls):
                raise TypeError(
                    f"results[{name!r}] must be a {cls.__name__}, got {type(each).__name__}"
                )
        return dict(results)


def _short(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, Tensor):
        place = "" if value.device.type == "cpu" else f" on {value.device}"
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}{place}"
    if isinstance(value, Mapping):
        items = [f"{key!r}: {_short(each)}" for key, each in list(value.items())[:_MOST_ITEMS]]
        return f"{{{_joined(items, len(value))}}}"
    if isinstance(value, (tuple, list)):
        listed = _joined([_short(each) for each in value[:_MOST_ITEMS]], len(value))
        return f"({listed})" if isinstance(value, tuple) else f"[{listed}]"
    text = f"{value:.6g}" if isinstance(value, float) else repr(value)
    return (
        text
        if len(text) <= _MOST_CHARACTERS or isinstance(value, Result)
        else (f"{text[:_MOST_CHARACTERS]}...")
    )


def _joined(items: list[str], n: int) -> str:
    return ", ".join([*items, f"... {n} in all"] if n > len(items) else items)


def _plain(value: Any) -> Any:
    if isinstance(value, Result):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_plain(each) for each in value)
    return value


def _on_cpu(value: Any) -> Any:
    if isinstance(value, (Tensor, Result)):
        return value.cpu()
    if isinstance(value, Mapping):
        return {key: _on_cpu(each) for key, each in value.items()}
    return tuple(map(_on_cpu, value)) if isinstance(value, tuple) else value


def _built(hint: Any, value: Any, where: str) -> Any:
    """`value` as `hint` wants it, results made of their fields.

    Raises:
        TypeError: it is of another type; the message begins with `where`.
        ValueError: a result refuses its fields.
    """
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        for each in args:
            with contextlib.suppress(TypeError):
                return _built(each, value, where)
    elif origin is Literal:
        if value in args:
            return value
    elif origin is tuple:
        if isinstance(value, tuple):
            each_of = args[:1] * len(value) if args[1:] == (...,) else args
            if len(each_of) == len(value):
                pairs = enumerate(zip(each_of, value, strict=True))
                return tuple(_built(each, x, f"{where}[{i}]") for i, (each, x) in pairs)
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        if isinstance(value, Mapping):
            return {
                _built(args[0], key, f"{where}'s key"): _built(args[1], x, f"{where}[{key!r}]")
                for key, x in value.items()
            }
    elif isinstance(hint, type) and issubclass(hint, Result):
        if isinstance(value, Mapping):
            hints = get_type_hints(hint)
            prefix = f"{where}." if where else ""
            # What is no field, the class itself refuses.
            return hint(**{n: _built(hints.get(n, Any), x, prefix + n) for n, x in value.items()})
    elif hint is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif isinstance(value, hint) and isinstance(value, bool) == (hint is bool):
        return value
    wanted = hint.__name__ if isinstance(hint, type) and not args else str(hint)
    raise TypeError(f"{where} must be {wanted}, got {type(value).__name__}")
