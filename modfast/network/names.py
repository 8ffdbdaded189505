"""Names of modules and parameters: picked by patterns, answered in the same words when wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from fnmatch import fnmatchcase

import torch
from torch import nn

from modfast import checks
from modfast.network.interrupts import Interrupts

WRAPPED = "_orig_mod."
"""What names begin with in torch.compile's wrapper; people use them with it and without."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside of torch.compile's wrapper."""
    if isinstance(model, torch.jit.ScriptModule):
        return model
    inner = model._modules.get(WRAPPED.rstrip("."))
    return model if inner is None else inner


def nearest(name: str, names: Iterable[str]) -> str:
    """Words for an error message: the names nearest to a wrong one.

    Up to three of `names`, nearest first; the first five where none is near.

    Example:
        >>> from modfast.network.names import nearest
        >>> nearest("fc3", ["fc1", "act1", "fc2"])
        "did you mean: 'fc2', 'fc1'?"
        >>> nearest("encoder", ["fc1", "act1", "fc2"])
        "there are: 'fc1', 'act1', 'fc2'"
        >>> nearest("fc1", [])
        'there are: none'
    """
    known = list(names)
    if near := get_close_matches(name, known):
        return f"did you mean: {', '.join(map(repr, near))}?"
    more = ", ..." if len(known) > 5 else ""
    return f"there are: {', '.join(map(repr, known[:5])) or 'none'}{more}"


def match_names(
    names: Iterable[str],
    patterns: str | Sequence[str],
    argument: str = "layers",
    kind: str = "module",
) -> list[str]:
    """Those of `names`, of modules or parameters, that any pattern matches, in their order.

    A pattern is an exact name or one of :mod:`fnmatch` for the whole name, case-sensitive, whose
    ``*`` matches dots too. What torch.compile's wrapper adds to names need not be in it. Messages
    say `argument` of the patterns and `kind` of what has the names.

    Raises:
        TypeError: patterns that are no string or sequence of strings.
        ValueError: no patterns, or one that matches nothing.

    Example:
        >>> from modfast.network.names import match_names
        >>> match_names(["fc1.weight", "fc1.bias", "fc2.weight"], "*.weight")
        ['fc1.weight', 'fc2.weight']
    """
    known = list(names)
    wanted = [patterns] if isinstance(patterns, str) else patterns
    check_patterns(wanted, argument)
    picked: set[str] = set()
    for pattern in wanted:
        # An exact name first: a name may itself hold a sign that a pattern reads otherwise.
        found = [pattern] if pattern in known else []
        if not found:
            bare = pattern.removeprefix(WRAPPED)
            short = {name: name.removeprefix(WRAPPED) for name in known}
            found = [name for name in known if short[name] == bare]
            found = found or [name for name in known if fnmatchcase(short[name], bare)]
        if not found:
            hint = nearest(bare, short.values())
            raise ValueError(f"{argument}={pattern!r}: no such {kind}; {hint}")
        picked.update(found)
    return [name for name in dict.fromkeys(known) if name in picked]


def resolve_modules(
    model: nn.Module,
    patterns: str | Sequence[str],
    argument: str = "layers",
    predicate: Callable[[nn.Module], bool] | None = None,
) -> dict[str, nn.Module]:
    """A model's submodules that `match_names` picks, by name, in the order of registration.

    Of a compiled model they have the names of the module inside. A `predicate` says whether a
    module can be picked at all. One known by several of the picked names is given once, under the
    first.

    Raises:
        TypeError: no module; as `match_names`.
        ValueError: as `match_names`; the nearest names are listed.

    Example:
        >>> from modfast.models import MLP
        >>> from modfast.network.names import resolve_modules
        >>> list(resolve_modules(MLP([4, 3, 3, 2]), ["fc3", "act*"]))
        ['act1', 'act2', 'fc3']
    """
    checks.module("model", model)
    # Without remove_duplicate=False a shared module's other names would be called unknown.
    modules = {
        name: module
        for name, module in unwrapped(model).named_modules(remove_duplicate=False)
        if name and (predicate is None or predicate(module))
    }
    kind = "module" if predicate is None else "suitable module"
    first_names: dict[nn.Module, str] = {}
    for name in match_names(modules, patterns, argument, kind):
        first_names.setdefault(modules[name], name)
    return {name: module for module, name in first_names.items()}


def modules_of(model: nn.Module) -> list[nn.Module]:
    """A model and all its submodules, each once, in a tenth of the time of ``model.modules()``.

    Example:
        >>> from modfast.models import MLP
        >>> from modfast.network.names import modules_of
        >>> model = MLP([4, 2])
        >>> modules_of(model) == [model, model.fc1]
        True
    """
    found, seen = [model], {model}
    for module in found:  # which grows meanwhile
        for child in module._modules.values():
            if child is not None and child not in seen:
                seen.add(child)
                found.append(child)
    return found


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Puts a model in training or eval mode for a ``with`` block.

    Every submodule's own training flag is put back afterwards, also on an exception.

    Raises:
        TypeError: ``model`` is no torch.nn.Module.

    Example:
        >>> from modfast.models import MLP
        >>> from modfast.network.names import in_mode
        >>> with in_mode(model := MLP([4, 2]), training=False):
        ...     model.training
        False
    """
    checks.module("model", model)
    # model.train() afterwards would wake modules that the caller had frozen.
    flags = [(module, module.training) for module in modules_of(model)]
    with Interrupts():
        try:
            if any(module.training != training for module, _ in flags):
                model.train(training)
            yield
        finally:
            for module, before in flags:
                if module.training != before:  # nn.Module's own way takes ten times as long
                    object.__setattr__(module, "training", before)


def check_patterns(patterns: object, argument: str) -> None:
    """Refuses what is no sequence of at least one name.

    Raises:
        TypeError, ValueError: it is none of strings; it is empty.
    """
    if not isinstance(patterns, Sequence) or not all(isinstance(name, str) for name in patterns):
        raise TypeError(f"{argument}={patterns!r}: must be a name or a sequence of names")
    if not patterns:
        raise ValueError(f"{argument}={patterns!r}: must hold at least one name")
