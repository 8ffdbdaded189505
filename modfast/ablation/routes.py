"""How to run a network up to a site once, and from there on many times.

A route is found for a model and a site. Its `start` runs the model on one batch and gives what all
ablations of that batch share: a `Start`.

- `Split` cuts the graph that torch.fx traces at the site, into a prefix and a suffix. Where the
  suffix is a chain of linear layers, `Start.chain` holds them, for the fused operators.
- `Hooks` takes any module: those that finished before the site hand back what they returned, so
  that the model's own forward pass does nothing again that comes before the site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from modfast.ablation.chain import Chain
from modfast.clusters.weights import has_weight, input_first

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Follower:
    """A linear layer that takes the site as it is, so that a unit changes its outputs by rank 1."""

    weight: Tensor
    """`[m, d]`."""
    output: Tensor
    """`[..., m]`."""

    def changed(self, scales: Tensor, updates: Tensor) -> Tensor:
        """Its outputs after changes by scales `[n, a]` times updates `[a, m]`: `[a, ..., m]`."""
        before = self.output.flatten(0, -2)
        after = torch.addcmul(before, scales.T[..., None], updates[:, None])
        return after.reshape(-1, *self.output.shape)


@dataclass(frozen=True)
class Start:
    """One batch, run once."""

    site: Tensor
    output: Any
    """Of the whole model."""
    resume: Callable[..., Any]
    """The model's output for another value of the site, and with a `follower` perhaps one of that;
    it may be batched by torch.vmap."""
    chain: Chain | None = None
    outputs: Sequence[Tensor] = ()
    """Of the chain's layers."""
    follower: Follower | None = None
    by_channel: Callable[[Tensor], Tensor] | None = None
    """What follows a site `[n, channels, h, w]` and takes each channel for itself, ..."""
    resume_after: Callable[[Tensor], Any] | None = None
    """... and the model's output for another value of what that returns."""


class Route(Protocol):
    """How to run a model in two parts."""

    def start(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Start:
        """Runs the model on one batch."""


class Watch:
    """Tells whether tensors that are kept were worked on in place since."""

    def __init__(self) -> None:
        self.kept: list[tuple[Tensor, int]] = []

    def keep(self, value: Any) -> Any:
        """Watches a value from now on, and returns it."""
        self.kept += [(x, x._version) for x in tree_leaves(value) if isinstance(x, Tensor)]
        return value

    def changed(self) -> bool:
        """Whether any was."""
        return any(x._version != version for x, version in self.kept)


def copied(value: Any) -> Any:
    """A value with copies of its tensors."""
    return tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, value)


class Split:
    """A prefix that returns the site and what else is needed, and a suffix that takes them."""

    def __init__(
        self,
        names: Sequence[str],
        defaults: Mapping[str, Any],
        prefix: nn.Module,
        suffix: nn.Module,
        chain: Chain | None,
        middle: tuple[nn.Module, nn.Module] | None = None,
    ) -> None:
        self.middle = middle
        self.names, self.defaults = names, defaults
        self.prefix, self.suffix, self.chain = prefix, suffix, chain

    def start(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Start:
        """Runs prefix and suffix."""
        given = {**self.defaults, **dict(zip(self.names, args, strict=False)), **kwargs}
        inputs = [given[name] for name in self.names]
        # Not the module's call, which looks for hooks: the graph has none of its own.
        site, *shared = self.prefix.forward(*inputs)
        if self.chain is not None:
            outputs = self.chain.outputs(site)
            return Start(site, outputs[-1], self.suffix.forward, self.chain, outputs)
        watch = Watch()
        watch.keep(shared)
        output = self.suffix(site.clone(), *shared)
        if not watch.changed():
            start = Start(site, output, lambda x: self.suffix(x, *shared))
            if self.middle is None or site.dim() != 4:
                return start
            by_channel, rest = self.middle
            return replace(
                start,
                by_channel=lambda x: by_channel(x.clone()),
                resume_after=lambda x: rest(x, *shared),
            )
        # The suffix works on them in place, so each run needs its own.
        site, *shared = self.prefix(*inputs)
        return Start(site, output, lambda x: self.suffix(x, *copied(shared)))


class Hooks:
    """The model's own forward pass, with the outputs of what came before the site handed back.

    Forward methods are replaced while it runs, and put back. A module of which another one uses the
    weights or calls `forward` directly is not seen, and simply runs again.
    """

    def __init__(self, model: nn.Module, name: str, site: nn.Module) -> None:
        self.model, self.name, self.site = model, name, site

    def start(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Start:
        """Runs the model, and keeps what its modules return up to the site."""
        recording = self._record(args, kwargs, copies=False)
        if recording.watch.changed():
            recording = self._record(args, kwargs, copies=True)

        def resume(site: Tensor, followed: Tensor | None = None) -> Any:
            values = {self.site: site}
            if followed is not None:
                values[recording.followers[0][0]] = followed
            with _forwards(recording.replays(values)):
                return self.model(*args, **kwargs)

        return Start(recording.value, recording.output, resume, follower=recording.follower())

    def _record(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], copies: bool) -> _Recording:
        recording = _Recording(self.site, copies)
        modules = [m for m in self.model.modules() if m is not self.model]
        with _forwards({module: recording.recorder(module) for module in modules}):
            recording.output = self.model(*args, **kwargs)
        if recording.n_calls != 1:
            check_calls(self.name, recording.n_calls)
        if not isinstance(recording.value, Tensor):
            raise TypeError(
                f"site={self.name!r}: the {type(self.site).__name__} returned a "
                f"{type(recording.value).__name__}, not a tensor; name a module inside or after it "
                "that returns one"
            )
        return recording


def check_calls(name: str, n_calls: int) -> None:
    """Refuses a site that has no one output.

    Raises:
        ValueError: it was not called, or several times.
    """
    if n_calls == 0:
        raise ValueError(
            f"site={name!r}: not reached, the model never called this module (a module whose "
            "weights or forward method another one uses directly is not called)"
        )
    if n_calls > 1:
        raise ValueError(
            f"site={name!r}: called {n_calls} times in one pass, so it has no one output"
        )


class _Recording:
    """What modules returned before the site did."""

    def __init__(self, site: nn.Module, copies: bool) -> None:
        self.site, self.copies = site, copies
        self.watch = Watch()
        self.finished: dict[nn.Module, list[Any]] = {}
        self.value: Any = None
        self.output: Any = None
        self.n_calls = 0
        self.followers: list[tuple[nn.Module, Any]] = []

    def recorder(self, module: nn.Module) -> Callable[..., Any]:
        forward = module.forward

        def record(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            if self.n_calls and args and args[0] is self.value:
                self.followers.append((module, self.watch.keep(output)))
            if module is self.site:
                self.n_calls += 1
                self.value = self.watch.keep(copied(output) if self.copies else output)
            elif self.n_calls == 0:
                kept = copied(output) if self.copies else output
                self.finished.setdefault(module, []).append(self.watch.keep(kept))
            return output

        return record

    def follower(self) -> Follower | None:
        """The one module that took the site's own output, if it is a linear layer."""
        if len(self.followers) != 1:
            return None
        module, output = self.followers[0]
        conv1d = has_weight(module) and input_first(module)  # transformers'
        weight = module.weight if type(module) is nn.Linear or conv1d else None
        if not isinstance(weight, Tensor) or weight.dim() != 2:
            return None
        if not weight.dtype == output.dtype == self.value.dtype:
            return None
        matrix = weight.detach().T if conv1d else weight.detach()
        return Follower(matrix, output)

    def replays(self, values: Mapping[nn.Module, Tensor]) -> dict[nn.Module, Callable[..., Any]]:
        found = {module: self._replay(module, kept) for module, kept in self.finished.items()}
        return found | {
            module: lambda *args, value=value, **kwargs: value for module, value in values.items()
        }

    def _replay(self, module: nn.Module, kept: list[Any]) -> Callable[..., Any]:
        # A module that is called again after the site runs then.
        left, forward = iter(kept), module.forward

        def replay(*args: Any, **kwargs: Any) -> Any:
            for output in left:
                return copied(output) if self.copies else output
            return forward(*args, **kwargs)

        return replay


@contextmanager
def _forwards(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Gives modules other forward methods for a `with` block."""
    own = {module: module.__dict__.get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.__dict__["forward"] = forward
        yield
    finally:
        for module, before in own.items():
            if before is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = before
