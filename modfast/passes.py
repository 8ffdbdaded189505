"""Running a model to see what some of its modules return."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from modfast import checks
from modfast.sites import in_mode, resolve_modules

__all__ = ["capture", "check_batch_first", "run_passes", "watching"]


def capture(
    model: nn.Module,
    inputs: Tensor | tuple[Any, ...] | Mapping[str, Any],
    sites: str | Sequence[str],
    batch_size: int | None = None,
) -> dict[str, Tensor]:
    """Runs a model and returns the outputs of chosen modules.

    The model runs in eval mode and without gradients; its training flags, buffers and hooks are
    left as they were. The results are copies: what the model later does to an output in place
    (``ReLU(inplace=True)``) does not show in them.

    Args:
        model: The model.
        inputs: The model's input, a tuple of positional inputs, or a mapping of keyword inputs, on
            the model's device. Floating tensors must be finite.
        sites: Names or patterns of the modules; see :func:`modfast.sites.resolve_modules`.
        batch_size: Rows in one pass; by default one pass takes them all. If given, all tensors
            among the inputs are cut along dimension 0, everything else goes into each pass as it
            is, and the outputs, which must be batch-first, are concatenated.

    Returns:
        Each site's output by name, in the order in which the model registers them: for a linear
        layer after ``[n, ...]`` flattened inputs ``[n, d]``, for a convolution ``[n, c, h, w]``.

    Raises:
        TypeError: ``inputs`` or ``sites`` has a wrong type, or a site returned something other
            than a tensor.
        ValueError: A site is unknown, was not called, or was called several times in one pass;
            inputs are NaN or infinite; ``batch_size`` is no integer of at least 1, or is given
            though the inputs differ in rows or an output is not batch-first.

    Source: The specification's conventions define a site.

    Example:
        >>> import torch
        >>> from modfast.models import MLP
        >>> from modfast.passes import capture
        >>> out = capture(MLP([8, 5, 3]), torch.zeros(100, 8), ["fc*"], batch_size=32)
        >>> {name: tuple(value.shape) for name, value in out.items()}
        {'fc1': (100, 5), 'fc2': (100, 3)}
    """
    modules = resolve_modules(model, sites, argument="sites")
    parts: dict[str, list[Tensor]] = {name: [] for name in modules}

    def keep(_: object, outputs: Mapping[str, Tensor]) -> None:
        for name, output in outputs.items():
            parts[name].append(output)

    with torch.no_grad():
        run_passes(model, inputs, modules, keep, batch_size)
    # One part is left as it is: it may be a scalar, which cannot be concatenated.
    return {name: torch.cat(each) if each[1:] else each[0] for name, each in parts.items()}


def run_passes(
    model: nn.Module,
    inputs: Tensor | tuple[Any, ...] | Mapping[str, Any],
    modules: Mapping[str, nn.Module],
    visit: Callable[[Any, dict[str, Tensor]], None],
    batch_size: int | None = None,
) -> None:
    """Runs a model in eval mode, and after each pass shows its result and the modules' outputs.

    Where gradients are on, the outputs stand in the autograd graph of the result, and require a
    gradient whatever the parameters do; otherwise they are copies. Either way, what the model later
    does to them in place does not show. Its training flags, buffers and hooks are left as they
    were.

    Args:
        model: The model.
        inputs: As :func:`capture`'s.
        modules: The modules by name, as of :func:`modfast.sites.resolve_modules`.
        visit: Called after each pass with what the model returned, and each module's output.
        batch_size: As :func:`capture`'s.

    Raises:
        TypeError, ValueError: As :func:`capture`.
    """
    entries = _entries(inputs)
    tensors = {name: value for name, value in entries.items() if isinstance(value, Tensor)}
    for name, tensor in tensors.items():
        checks.finite(name, tensor)
    outputs: dict[str, list[Tensor]] = {name: [] for name in modules}
    with ExitStack() as stack:
        stack.enter_context(in_mode(model, training=False))
        for name, module in modules.items():
            hook = partial(_keep_output, name, outputs[name])
            stack.enter_context(module.register_forward_hook(hook))
        for rows in _row_slices(tensors, batch_size):
            values = [
                value[rows] if rows and isinstance(value, Tensor) else value
                for value in entries.values()
            ]
            if isinstance(inputs, Mapping):
                result = model(**dict(zip(inputs, values, strict=True)))
            else:
                result = model(*values)
            for name, parts in outputs.items():
                _check_calls(name, len(parts))
                if rows is not None:
                    n_rows = rows.stop - rows.start
                    check_batch_first(name, parts[-1], n_rows, "with batch_size, ")
            visit(result, {name: parts.pop() for name, parts in outputs.items()})


def _keep_output(
    name: str, parts: list[Tensor], module: nn.Module, args: object, output: object
) -> Tensor | None:
    found = _tensor(name, module, output)
    # Copies, because the modules that follow may work in place.
    if not torch.is_grad_enabled():
        parts.append(found.detach().clone())
        return None
    if not found.requires_grad and found.is_floating_point():
        # Not the output itself: it may be the caller's input.
        found = found.detach().requires_grad_()
    parts.append(found)
    return found.clone()


def _tensor(name: str, module: nn.Module, output: object) -> Tensor:
    if not isinstance(output, Tensor):
        raise TypeError(
            f"sites={name!r}: the {type(module).__name__} returned a {type(output).__name__}, not "
            "a tensor; name a module inside or after it that returns one"
        )
    return output


def _check_calls(name: str, n_calls: int) -> None:
    if n_calls == 0:
        raise ValueError(
            f"sites={name!r}: the model never called this module (a module whose weights or "
            "forward method another one uses directly is not called)"
        )
    if n_calls > 1:
        raise ValueError(
            f"sites={name!r}: called {n_calls} times in one pass, so it has no one output"
        )


class _AllSeenError(BaseException):
    """Ends a forward pass; no error to a model that goes on after an Exception of a submodule."""


@contextmanager
def watching(
    model: nn.Module, modules: Mapping[str, nn.Module], see: Callable[[str, Tensor], None]
) -> Iterator[Callable[..., None]]:
    """Shows the outputs of some modules, in a ``with`` block that leaves the model as it was.

    The block gets a function that runs the model once, in eval mode and without gradients, on the
    arguments that it is given. It raises TypeError where a module returns no tensor, and ValueError
    where one is not called, or several times. After a first pass has shown that each is called just
    once, a pass ends where all have been seen, and what would follow them is spared.

    Args:
        model: The model.
        modules: Some of its modules by name, as :func:`modfast.sites.resolve_modules` gives them.
        see: Is called with the name and the output of each. It must not keep the output: what
            follows may work on it in place.

    Example:
        >>> import torch
        >>> from modfast.models import MLP
        >>> from modfast.passes import watching
        >>> model = MLP([8, 5, 3])
        >>> with watching(model, {"fc1": model.fc1}, lambda name, x: print(name, x.shape)) as run:
        ...     run(torch.zeros(2, 8))
        fc1 torch.Size([2, 5])
    """
    n_calls = dict.fromkeys(modules, 0)
    each_once = False

    def hook(name: str, module: nn.Module, args: object, output: object) -> None:
        found = _tensor(name, module, output)
        n_calls[name] += 1
        if n_calls[name] == 1:
            see(name, found.detach())
        if each_once and all(n_calls.values()):
            raise _AllSeenError

    def run(*args: Any, **kwargs: Any) -> None:
        nonlocal each_once
        n_calls.update(dict.fromkeys(modules, 0))
        try:
            model(*args, **kwargs)
        except _AllSeenError:
            return
        for name, n in n_calls.items():
            _check_calls(name, n)
        each_once = True

    with ExitStack() as stack:
        stack.enter_context(in_mode(model, training=False))
        stack.enter_context(torch.no_grad())
        for name, module in modules.items():
            stack.enter_context(module.register_forward_hook(partial(hook, name)))
        yield run


def check_batch_first(name: str, output: Tensor, n_rows: int, why: str = "") -> None:
    """Refuses a site's output that has not one row for each of the input's.

    Raises:
        ValueError: It has another number of rows.
    """
    if output.shape[:1] != (n_rows,):
        raise ValueError(
            f"sites={name!r}: {why}outputs must be batch-first; {n_rows} rows gave shape "
            f"{list(output.shape)}"
        )


def _entries(inputs: object) -> dict[str, Any]:
    """A model's inputs, each under its name in an error message."""
    if isinstance(inputs, Tensor):
        return {"inputs": inputs}
    if isinstance(inputs, tuple):
        return {f"inputs[{i}]": value for i, value in enumerate(inputs)}
    if isinstance(inputs, Mapping):
        return {f"inputs[{key!r}]": value for key, value in inputs.items()}
    raise TypeError(
        f"inputs is a {type(inputs).__name__}: must be a tensor, a tuple of positional inputs or a "
        "mapping of keyword inputs"
    )


def _row_slices(tensors: Mapping[str, Tensor], batch_size: int | None) -> list[slice | None]:
    """The rows of each pass; None stands for inputs that are not cut."""
    if batch_size is None:
        return [None]
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r}: must be an integer of at least 1")
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    lengths = {tuple(shape[:1]) for shape in shapes.values()}
    if len(lengths) != 1 or () in lengths:
        raise ValueError(
            f"batch_size={batch_size}: needs tensors with one number of rows, got shapes {shapes}"
        )
    ((n,),) = lengths
    # No rows still make one pass, which gives the outputs their shapes.
    starts = range(0, max(n, 1), batch_size)
    return [slice(start, min(start + batch_size, n)) for start in starts]
