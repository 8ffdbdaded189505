"""Where in a network? Places by name, and which dimension of what is found there are its units.

"h.3.mlp"                    what a module returns
"h.3.attn.c_proj:input"      its first input; ":input[1]", ":input[name]" for others
"h.3.attn[0]"                an item of an output that is a tuple, a mapping or a dataclass
"relu#1"                     the second call of a module that is called several times
"layer1/add#0"               the first call of torch's `add` made directly in layer1's forward
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from modfast import checks
from modfast.network.names import WRAPPED, check_patterns, nearest, unwrapped

Key = int | str

_KEY = r"\[(?P<{}>\d+|\w+|'[^']*'|\"[^\"]*\")\]"
_SITE = re.compile(
    r"(?P<module>[^/:]*?)(?:/(?P<function>\w+)|(?P<input>:input)(?:"
    + _KEY.format("key")
    + ")?)?(?:"
    + _KEY.format("item")
    + r")?(?:#(?P<call>\d+))?"
)
_NODE = re.compile(r"(?P<name>[A-Za-z]\w*?)(?:_(?P<call>\d+))?")  # of a torch.fx graph


@dataclass(frozen=True)
class Site:
    """A place in a network."""

    name: str
    module: str
    """Its dotted name; "" is the model itself."""
    of_input: bool = False
    key: Key = 0
    """Which input."""
    function: str | None = None
    """A torch function called in the module's forward."""
    item: Key | None = None
    call: int | None = None
    """Which call; None where there must be one."""
    raw: bool = False
    """Of an output: before the user's hooks on the module change it."""
    by_pattern: bool = False
    """Whether it is one of those that a pattern matches, and may be left out."""


def parse_site(model: nn.Module, site: str, argument: str = "site") -> Site:
    """The place that a name says.

    Raises:
        TypeError: it is no string.
        ValueError: no such module (the nearest are listed).

    Example:
        >>> from modfast.models import MLP
        >>> parse_site(MLP([4, 3, 2]), "fc2:input").module
        'fc2'
    """
    if not isinstance(site, str):
        raise TypeError(f"{argument} must be a name, got {checks.shown(site)}")
    checks.python_module("model", model)
    if site.isidentifier() and site in unwrapped(model)._modules:
        return Site(site, site)  # the commonest case, at once
    found = resolve_sites(model, [site], argument, patterns=False)
    return found[0]


def resolve_sites(
    model: nn.Module,
    sites: str | Sequence[str],
    argument: str = "sites",
    patterns: bool = True,
) -> list[Site]:
    """The places that names or patterns say, each once, in the order in which modules register.

    A pattern of :mod:`fnmatch` is of the module's name: ``"h.*.mlp"``, ``"h.*.mlp:input"``.

    Raises:
        TypeError: no module, no names.
        ValueError: none, or one that matches no module (the nearest are listed).
    """
    wanted = [sites] if isinstance(sites, str) else sites
    checks.python_module("model", model)
    check_patterns(wanted, argument)
    modules = dict(unwrapped(model).named_modules(remove_duplicate=False))
    found: dict[tuple[Any, ...], tuple[int, Site]] = {}
    order = {name: i for i, name in enumerate(modules)}
    for text in wanted:
        for site in _matches(text, modules, argument, patterns):
            # One module under two names is one place, unless both are named exactly.
            place = (modules[site.module], *[getattr(site, f.name) for f in fields(site)[2:-1]])
            exact = (*place, site.name)
            if not site.by_pattern:
                found.pop(place, None)
                found[exact] = order[site.module], site
            elif not any(key[: len(place)] == place for key in found):
                found[place] = order[site.module], site
    return [site for _, site in sorted(found.values(), key=lambda each: each[0])]


def _matches(
    text: str, modules: Mapping[str, nn.Module], argument: str, patterns: bool
) -> Iterator[Site]:
    if WRAPPED.rstrip(".") not in modules:
        text = text.removeprefix(WRAPPED)  # as named_modules() of the wrapper has it
    if text in modules and text:
        yield Site(text, text)
        return
    if text == "input":  # unless a module has that name
        yield Site(text, "", of_input=True)
        return
    parts = _SITE.fullmatch(text)
    if parts is not None and (parts["module"] or parts["function"] or parts["input"]):
        names = [parts["module"]] if parts["module"] in modules else []
        if patterns and not names:
            names = [name for name in modules if name and fnmatchcase(name, parts["module"])]
        for name in names:
            yield Site(
                name + text[len(parts["module"]) :],
                name,
                parts["input"] is not None,
                _key(parts["key"]) if parts["key"] else 0,
                parts["function"],
                _key(parts["item"]) if parts["item"] else None,
                int(parts["call"]) if parts["call"] else None,
                by_pattern=name != parts["module"],
            )
        if names:
            return
    names = [n for n in modules if n and fnmatchcase(n, text)] if patterns else []
    yield from (Site(name, name, by_pattern=True) for name in names)
    if names:
        return
    wrong = text if parts is None else parts["module"] or text
    known = [name for name in dict.fromkeys(modules) if name]
    node = _NODE.fullmatch(text)
    if node is not None and not patterns:
        # Before sites named functions, nodes of a torch.fx graph did: "add", "add_1".
        yield Site(text, "", function=node["name"], call=int(node["call"] or 0), key=-1)
        return
    raise unknown(argument, text, wrong, known)


def unknown(argument: str, site: str, name: str, known: Iterable[str]) -> ValueError:
    """The error for a site of no module."""
    return ValueError(f"{argument}={site!r}: no such module; {nearest(name, known)}")


def _key(text: str) -> Key:
    return int(text) if text.isdigit() else text.strip("'\"")


def plain_name(func: Any) -> str:
    """What a torch function is called in the name of a site: `add` for +, += and add_ as well."""
    name = str(getattr(func, "__name__", "")).strip("_")
    return _OPERATORS.get(name, name)


_OPERATORS = {
    prefix + name: name
    for name in ("add", "sub", "mul", "matmul", "truediv", "pow")
    for prefix in ("i", "r")
} | {"truediv": "div", "itruediv": "div", "rtruediv": "div"}


def heads(width: int, n_heads: int) -> list[list[int]]:
    """The units of each attention head, as groups: for the *input* of the output projection.

    Args:
        width: of the input of the output projection, a multiple of `n_heads`.
        n_heads: how many heads.

    Raises:
        TypeError: not integers.
        ValueError: below 1, or a width that is no multiple.

    Example:
        >>> import modfast
        >>> modfast.heads(6, 3)
        [[0, 1], [2, 3], [4, 5]]
    """
    width, n_heads = checks.count("width", width), checks.count("n_heads", n_heads)
    checks.room("width", 64 * width)
    if width % n_heads:
        raise ValueError(f"width must be a multiple of n_heads={n_heads}, got {width}")
    size = width // n_heads
    return [list(range(i, i + size)) for i in range(0, width, size)]
