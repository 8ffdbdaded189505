"""Where a site holds queries or keys: attention's softmax is done again instead of linearized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from modfast.ablation.changes import Changes
from modfast.network.calls import name_of
from modfast.network.inputs import tensors_in
from modfast.network.resume import Start

ATTENTION = frozenset({"softmax", "scaled_dot_product_attention"})
_LAYERS = frozenset(
    "linear addmm matmul __matmul__ mm bmm einsum embedding conv1d conv2d conv3d layer_norm".split()
)


@dataclass
class Attention(TorchFunctionMode):
    """Finds which sites are queries or keys: they reach a softmax through no layer with weights."""

    outputs: dict[str, Tensor] = field(default_factory=dict)
    """By site: what the softmax, or attention as a whole, gives."""
    _sites: dict[int, tuple[Any, frozenset[str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def note(self, name: str, value: Tensor) -> None:
        """Takes a site's value."""
        self._sites[id(value)] = ref(value), frozenset([name])

    def over(self) -> None:
        """Ends it: what is made of the logits is no attention."""
        self._sites.clear()

    def _of(self, values: Any) -> frozenset[str]:
        found: frozenset[str] = frozenset()
        for tensor in tensors_in(values):
            kept, names = self._sites.get(id(tensor), (None, found))
            if kept is not None and kept() is tensor:
                found = found | names
        return found

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        names = self._of((args, kwargs)) if self._sites else frozenset()
        if not names:
            return output
        name = name_of(func)
        if name in ATTENTION:
            for site in self._of((args[:2], kwargs.get("query"), kwargs.get("key"))):
                if isinstance(output, Tensor):
                    self.outputs.setdefault(site, output)
        elif name not in _LAYERS or not any(
            isinstance(x, nn.Parameter) for x in tensors_in((args, kwargs))
        ):
            for tensor in tensors_in(output):
                self._sites[id(tensor)] = ref(tensor), names | self._of(tensor)
        return output


def correction(start: Start, changes: Changes, slopes: list[Tensor]) -> list[Tensor]:
    """What is missing in gradient times change, by sample and change `[n, a]`, for each gradient.

    With S what the softmax gives and G the metric's gradient for it: G · (S(a') - S(a)) minus
    G · (dS/da) (a' - a), for each of the changes.

    Args:
        start: the run, recorded from the site on.
        changes: of the site.
        slopes: gradients for S.
    """
    tape = start.tape
    assert tape is not None
    calls = [i for i, call in enumerate(tape.calls) if call.name in ATTENTION]
    if not calls:  # the logits do not depend on it
        return [
            torch.zeros(len(start.site), len(changes), dtype=torch.float64, device=slope.device)
            for slope in slopes
        ]
    stop = calls[0] + 1

    def attention(site: Tensor) -> Tensor:
        return tape.replay(site, stop=stop)

    def by_sample(values: Tensor) -> Tensor:
        return values.flatten(1).sum(1, dtype=torch.float64)

    with torch.enable_grad():
        site = start.site.detach().clone().requires_grad_()
        before = attention(site)
        linear = [
            torch.autograd.grad(before, site, slope, retain_graph=True)[0].movedim(start.dim, -1)
            for slope in slopes
        ]
    before = before.detach()
    columns: list[list[Tensor]] = [[] for _ in slopes]
    for i in range(len(changes)):
        changed = changes.apply(start.features, slice(i, i + 1))[0]
        moved = attention(changed.movedim(-1, start.dim)) - before
        for column, slope, first in zip(columns, slopes, linear, strict=True):
            column.append(by_sample(slope * moved) - by_sample(first * (changed - start.features)))
    return [torch.stack(column, 1) for column in columns]
