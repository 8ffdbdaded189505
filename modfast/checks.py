"""Checks of arguments, in the same words everywhere: the argument, its value, the rule."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn

_MEMORY = (
    os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**36
)


def integer(argument: str, value: SupportsIndex) -> int:
    """`value` as an int (NumPy's integers are welcome, booleans are not).

    Raises:
        TypeError: not an integer.
    """
    if type(value) is int:  # at once, as a protocol's isinstance costs microseconds
        return value
    try:
        if not isinstance(value, bool) and isinstance(value, SupportsIndex):
            return value.__index__()
    except (TypeError, RuntimeError, NotImplementedError):  # a tensor of several, say
        pass
    raise TypeError(f"{argument} must be an integer, got {shown(value)}")


def count(argument: str, value: SupportsIndex) -> int:
    """`value` as an int of at least 1 that int64 holds.

    Raises:
        TypeError: not an integer.
        ValueError: less than 1, or 2^63 and more.
    """
    found = integer(argument, value)
    if found < 1:
        raise ValueError(f"{argument} must be at least 1, got {value!r}")
    if found >= 2**63:
        raise ValueError(f"{argument} must be below 2**63, got {value!r:.40}")
    return found


def seed(argument: str, value: SupportsIndex) -> int:
    """`value` as a seed that torch's random generators take.

    Raises:
        TypeError: not an integer.
        ValueError: not from -2^63 to 2^64 - 1.
    """
    found = integer(argument, value)
    if not -(2**63) <= found < 2**64:
        raise ValueError(f"{argument} must be from -2^63 to 2^64 - 1, got {value!r}")
    return found


def finite_number(argument: str, value: float) -> float:
    """`value` as a finite float.

    Raises:
        TypeError: not a number.
        ValueError: NaN or infinite.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{argument} must be a number, got {shown(value)}")
    try:
        found = float(value)
    except OverflowError:  # of a large integer
        found = math.inf
    if not math.isfinite(found):
        raise ValueError(f"{argument} must be finite, got {value!r:.40}")
    return found


def flag(argument: str, value: bool) -> bool:
    """`value` as a bool.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{argument} must be True or False, got {shown(value)}")
    return value


def module(argument: str, value: Any) -> None:
    """Refuses what is no torch.nn.Module.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(value, nn.Module):
        raise TypeError(f"{argument} must be a torch.nn.Module, got {type(value).__name__}")


def python_module(argument: str, value: Any) -> None:
    """Refuses what is no module whose code is Python's.

    Raises:
        TypeError: it is none.
    """
    module(argument, value)
    if isinstance(value, torch.jit.ScriptModule):
        raise TypeError(f"{argument} must be a module of Python, got a scripted or traced one")


def text(argument: str, value: Any) -> str:
    """`value` as a string.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(value, str):
        raise TypeError(f"{argument} must be a string, got {shown(value)}")
    return value


def index(argument: str, value: SupportsIndex, n: int) -> int:
    """`value` as the place of one of n items; a negative one counts from the last.

    Raises:
        TypeError: not an integer.
        ValueError: there is none.
    """
    found = integer(argument, value)
    if not -n <= found < n:
        raise ValueError(f"{argument} must be from {-n} to {n - 1}, got {value!r:.40}")
    return found


def room(argument: str, size: int) -> None:
    """Refuses what takes more bytes than the machine has.

    Raises:
        ValueError: it does.
    """
    if size > _MEMORY:
        raise ValueError(f"{argument} must fit into memory, got what takes {size:,} bytes"[:200])


def choice(argument: str, value: object, options: Iterable[object]) -> None:
    """Refuses a value that is not one of `options`.

    Raises:
        ValueError: it is none of them.
    """
    known = tuple(options)
    # Compared by identity or type first: a tensor compared with a name gives a tensor.
    if not any(value is each or (type(value) is type(each) and value == each) for each in known):
        names = ", ".join(map(repr, known))
        raise ValueError(f"{argument} must be one of {names}, got {value!r}")


def estimator(value: object, *names: str) -> None:
    """Refuses what is neither a function nor one of the names.

    Raises:
        TypeError: it is none of them.
    """
    if not (callable(value) or (isinstance(value, str) and value in names)):
        known = ", ".join(map(repr, names))
        raise TypeError(f"estimator must be {known} or a function of (x, y), got {value!r:.60}")


def takes_pair(argument: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuses a function that cannot be called as `function(x, y, **options)`.

    Raises:
        TypeError: it has other parameters.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of C, which tells nothing
        return
    try:
        signature.bind(None, None, **options)
    except TypeError as error:
        raise TypeError(
            f"{argument} must take (x, y) and the options {[*options]}: {error}"
        ) from None


def scalar(argument: str, value: Any) -> Tensor:
    """What a function such as an estimator gave, as a tensor without dimensions.

    Raises:
        TypeError: no number.
        ValueError: more than one number, or none.
    """
    if not isinstance(value, Tensor):
        try:
            value = torch.as_tensor(value, dtype=torch.float64, device="cpu")
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"{argument} must give a scalar, got {type(value).__name__}") from None
    if value.numel() != 1:
        raise ValueError(f"{argument} must give a scalar, got shape {tuple(value.shape)}")
    found: Tensor = value.reshape(())
    return found


def integers(argument: str, values: Any) -> Tensor:
    """Integers of any kind as int64 `[...]`, where they are.

    Raises:
        TypeError: no integers.
        ValueError: some that int64 does not hold.
    """
    try:
        found = values if isinstance(values, Tensor) else torch.as_tensor(values, device="cpu")
    except (OverflowError, RuntimeError, TypeError, ValueError):
        rule = "integer labels from -2**63 to 2**63 - 1"
        if isinstance(values, Sequence) and all(isinstance(x, SupportsIndex) for x in values):
            raise ValueError(f"{argument} must be {rule}, got {values!r:.60}") from None
        raise TypeError(f"{argument} must be {rule}, got {values!r:.60}") from None
    dense(argument, found)
    counted = not (found.is_floating_point() or found.is_complex()) and found.dtype != torch.bool
    if not counted and (found.numel() or found.dtype == torch.bool):
        raise TypeError(f"{argument} must be integer labels, got {found.dtype}")
    wide = found.to(torch.int64)
    if found.dtype == torch.uint64 and wide.numel() and int(wide.min()) < 0:
        raise ValueError(f"{argument} must be below 2**63, got larger ones")
    return wide


def device(argument: str, value: Any) -> torch.device:
    """`value` as a device.

    Raises:
        TypeError: no device, name or number of one.
        ValueError: a name that no device here has.
    """
    if not isinstance(value, (torch.device, str, int)) or isinstance(value, bool):
        raise TypeError(f"{argument} must be a torch.device, got {value!r}")
    try:
        found = torch.device(value)
        if found.type != "cpu":
            torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError, ValueError, OverflowError):
        raise ValueError(
            f"{argument} must be the name of a device that there is, got {value!r:.60}"
        ) from None
    return found


def pair(argument: str, data: Any) -> tuple[Tensor, Tensor]:
    """`data` as (samples, targets).

    Raises:
        TypeError: not a pair of tensors.
    """
    if isinstance(data, (tuple, list)) and len(data) == 2:
        x, y = data
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            return x, y
    raise TypeError(
        f"{argument} must be a pair of tensors (samples, targets), got {type(data).__name__}"
    )


def several(argument: str, values: Any) -> list[Any]:
    """`values` as a list.

    Raises:
        TypeError: a single value, or a string.
    """
    if isinstance(values, Tensor):
        dense(argument, values)
    scalar = getattr(values, "ndim", 1) == 0  # of torch or NumPy
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable) or scalar:
        raise TypeError(f"{argument} must be several, as a list, got {shown(values)}")
    return list(values)


def path(argument: str, value: Any, folder: bool = False) -> Path:
    """`value` as a path of a file, or of a folder.

    Raises:
        TypeError: it is none.
        ValueError: one without a name, or with a null byte.
    """
    try:
        found = Path(value)
    except TypeError:
        raise TypeError(f"{argument} must be a path, got {shown(value)}") from None
    if not (value if folder else found.name) or "\0" in str(found):
        kind = "folder" if folder else "file"
        raise ValueError(f"{argument} must be the path of a {kind}, got {str(value)!r}")
    return found


def tensor(argument: str, value: Any, *dtypes: torch.dtype) -> None:
    """Refuses what is no `dense` tensor of one of these types.

    Raises:
        TypeError: it is none.
    """
    dense(argument, value)
    if dtypes and value.dtype not in dtypes:
        words = " or ".join(str(each).removeprefix("torch.") for each in dtypes)
        raise TypeError(f"{argument} must be {words}, got {value.dtype}")


def floating(argument: str, value: Any) -> None:
    """Refuses what is no dense tensor of floating values that can be computed with.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{argument} must be a floating tensor, got {type(value).__name__}")
    dense(argument, value)
    if not value.is_floating_point() or value.itemsize < 2:
        raise TypeError(f"{argument} must be a floating tensor, got {value.dtype}")


def shown(value: object) -> str:
    """A value as messages show it: its type, where that tells more than many numbers."""
    plain = isinstance(value, (bool, int, float, complex, str, bytes, type(None)))
    return f"{value!r:.60}" if plain else type(value).__name__


def is_negated(tensor: Tensor) -> bool:
    """Whether a tensor lies in memory negated; torch.compile makes none, and cannot tell."""
    return not torch.compiler.is_compiling() and tensor.is_neg()


def some_tensor(argument: str, value: Any) -> None:
    """Refuses what is no tensor; its memory may be of any kind.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{argument} must be a tensor, got {type(value).__name__}")


def dense(argument: str, tensor: Tensor) -> None:
    """Refuses tensors without plain memory: sparse, nested, quantized, on the meta device.

    Raises:
        TypeError: it is one, or no tensor.
    """
    some_tensor(argument, tensor)
    if (
        tensor.layout is not torch.strided
        or tensor.is_nested
        or tensor.is_quantized
        or tensor.is_meta
    ):
        raise TypeError(f"{argument} must be a dense tensor in memory, got {_layout(tensor)}")


def _layout(tensor: Tensor) -> str:
    kinds = {"nested": tensor.is_nested, "quantized": tensor.is_quantized, "meta": tensor.is_meta}
    found = [name for name, yes in kinds.items() if yes]
    return f"a {found[0]} tensor" if found else f"one of layout {tensor.layout}"


def finite(argument: str, values: Tensor) -> None:
    """Refuses NaN and infinite values, counting them.

    Raises:
        ValueError: there are some.
    """
    if not values.is_floating_point() or values.numel() == 0:
        return
    # The quickest single pass: NaN and infinity spread to the sum. Finite values may overflow it.
    total = values.sum() if values.itemsize >= 4 else values.sum(dtype=torch.float32)
    if math.isfinite(total.item()):
        return
    n_bad = int(values.isfinite().logical_not().sum())
    if n_bad:
        raise ValueError(
            f"{argument} must be finite, got {n_bad} of {values.numel()} values NaN or infinite"
        )
