"""Cutting a traced model at a site, and remembering the cut."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from modfast.ablation.chain import Chain, by_channel, read_chain
from modfast.ablation.routes import Hooks, Route, Split, check_calls
from modfast.network.names import modules_of, nearest

PATHS = ("fused", "split", "hooks")
_PLAIN = frozenset({bool, int, float, str, type(None)})

# Tracing takes milliseconds, a sweep less. The first entry tells whether the model is the same.
_known: WeakKeyDictionary[nn.Module, dict[Any, tuple[Any, Split | None]]] = WeakKeyDictionary()


def find_route(
    model: nn.Module,
    site: str,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    path: str | None = None,
) -> Route:
    """The fastest way to run a model, in eval mode, in two parts at a site.

    Raises:
        TypeError: the site is no string.
        ValueError: no such site (the nearest are listed), one that is not reached or called
            several times, an unknown `path`, or one that cannot be taken.
    """
    if path is not None and path not in PATHS:
        raise ValueError(f"path must be one of {PATHS} or None, got {path!r}")
    if not isinstance(site, str):
        raise TypeError(f"site must be a name, got {site!r}")
    split = None if path == "hooks" else _split(model, site, args, kwargs)
    if isinstance(split, Split):
        return split
    modules = dict(model.named_modules(remove_duplicate=False))
    module = modules.get(site) if site else None
    if module is None:
        known = [*filter(None, modules), *(split or [])]
        raise ValueError(f"site={site!r}: no such module or graph node; {nearest(site, known)}")
    if path in ("fused", "split"):
        raise ValueError(f"path={path!r}: the model cannot be split at {site!r}")
    return Hooks(model, site, module)


def _split(
    model: nn.Module, site: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Split | list[str] | None:
    """A split; or else the names of the graph's nodes; None where the model cannot be traced."""
    key, mark = (site, len(args), *kwargs), _fingerprint(model)
    known = _known.setdefault(model, {})
    if key in known and known[key][0] == mark:
        return known[key][1]
    found = _traced(model, site, args, kwargs)
    if not isinstance(found, list):  # an unknown site raises, so it need not be remembered
        known[key] = mark, found
    return found


def _fingerprint(model: nn.Module) -> tuple[object, ...]:
    """What a forward pass's course may hang on: the modules, and their plain attributes."""
    return tuple(
        (
            id(module),
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            *[value for value in module.__dict__.values() if type(value) in _PLAIN],
        )
        for module in modules_of(model)
    )


class _Tracer(fx.Tracer):
    """Looks into every module that holds the site, and into none that is it."""

    def __init__(self, site: str) -> None:
        super().__init__()
        self.site = site

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name == self.site:
            return True
        holds = self.site.startswith(f"{module_qualified_name}.")
        return not holds and super().is_leaf_module(m, module_qualified_name)


def _traced(
    model: nn.Module, site: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Split | list[str] | None:
    before = set(model.__dict__)
    try:
        parameters = inspect.signature(model.forward).parameters
        given = inspect.signature(model.forward).bind(*args, **kwargs).arguments
        variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        if any(p.kind in variable for p in parameters.values()):
            return None
        defaults = {name: p.default for name, p in parameters.items() if name not in given}
        graph = _Tracer(site).trace(model, concrete_args=defaults or None)
        nodes = [n for n in graph.nodes if n.op == "call_module" and n.target == site]
        if len(nodes) > 1:
            check_calls(site, len(nodes))
        nodes = nodes or [n for n in graph.nodes if n.name == site and n.op != "output"]
        if not nodes:
            return [node.name for node in graph.nodes if node.op != "output"]
        split = _cut(model, graph, nodes[0], list(parameters), defaults)
        return (
            split if same_output(split.start(args, kwargs).output, model(*args, **kwargs)) else None
        )
    except ValueError as error:
        if "times in one pass" in str(error):
            raise
        return None
    except Exception:  # whatever a model does that a tracer cannot follow
        return None
    finally:
        for name in set(model.__dict__) - before:  # constants that the tracer puts there
            del model.__dict__[name]


def _cut(
    model: nn.Module, graph: fx.Graph, site: fx.Node, names: list[str], defaults: dict[str, Any]
) -> Split:
    nodes = list(graph.nodes)
    place = nodes.index(site) + 1
    # Placeholders may follow a site that is one itself.
    before = nodes[:place] + [n for n in nodes[place:] if n.op == "placeholder"]
    after = [n for n in nodes[place:] if n.op != "placeholder"]
    shared = [n for n in before if n is not site and any(user in after for user in n.users)]

    copies: dict[fx.Node, fx.Node] = {}
    prefix = fx.Graph()
    for node in before:
        copies[node] = prefix.node_copy(node, copies.__getitem__)
    prefix.output(tuple(copies[node] for node in [site, *shared]))

    suffix = fx.Graph()
    copies = {node: suffix.placeholder(node.name) for node in [site, *shared]}
    for node in after:
        copies[node] = suffix.node_copy(node, copies.__getitem__)
    chain: Chain | None = read_chain(model, suffix)
    parts = fx.GraphModule(model, prefix), fx.GraphModule(model, suffix)
    middle = by_channel(model, site)
    if not middle:
        return Split(names, defaults, *parts, chain)
    return Split(names, defaults, *parts, chain, _middle(model, site, middle, shared, after))


def _middle(
    model: nn.Module,
    site: fx.Node,
    middle: list[fx.Node],
    shared: list[fx.Node],
    after: list[fx.Node],
) -> tuple[nn.Module, nn.Module]:
    """What works channel by channel after a site, and what follows that."""
    by_channel = fx.Graph()
    copies = {site: by_channel.placeholder(site.name)}
    for node in middle:
        copies[node] = by_channel.node_copy(node, copies.__getitem__)
    by_channel.output(copies[middle[-1]])
    rest = fx.Graph()
    copies = {node: rest.placeholder(node.name) for node in [middle[-1], *shared]}
    for node in after:
        if node not in middle:
            copies[node] = rest.node_copy(node, copies.__getitem__)
    return fx.GraphModule(model, by_channel), fx.GraphModule(model, rest)


def same_output(a: Any, b: Any) -> bool:
    """Whether the traced model computes what the model does."""
    for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True):
        if isinstance(x, Tensor) and not torch.allclose(x, y, rtol=1e-3, atol=1e-4, equal_nan=True):
            return False
    return True
