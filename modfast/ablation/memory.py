"""How much memory a computation takes."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modfast.network.state import place_of


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that live at once among those made in a `with` block."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._bytes = 0
        self._owners: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {place_of(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._made(tensor, place_of(tensor) in given)
        return result

    def _made(self, tensor: Tensor, is_view: bool) -> None:
        place = place_of(tensor)
        if place < 0:  # a sparse one has no memory of its own
            return
        size = tensor.untyped_storage().nbytes()
        if place not in self._owners:
            if is_view:  # of something made outside
                return
            self._bytes += size
            self.peak = max(self.peak, self._bytes)
        self._owners[place] = self._owners.get(place, 0) + 1
        weakref.finalize(tensor, self._gone, place, size)

    def _gone(self, place: int, size: int) -> None:
        self._owners[place] -= 1
        if self._owners[place] == 0:
            del self._owners[place]
            self._bytes -= size
