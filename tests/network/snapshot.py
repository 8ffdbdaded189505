"""A model, its inputs and the global state at one time, and what has changed since."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Snapshot:
    """A model, its inputs and the global state at one time."""

    def __init__(self, model: nn.Module | None, inputs: Any = None) -> None:
        self.seen: dict[str, Any] = {}
        self._visited: dict[int, Any] = {}
        for name, module in (
            model.named_modules(remove_duplicate=False) if model is not None else ()
        ):
            self._module(name or "model", module)
        self._walk("inputs", inputs)
        if model is not None:
            self.seen |= _globals()

    def changes(self, model: nn.Module, inputs: Any = None) -> list[str]:
        """What is no longer as it was: one line each."""
        return self.until(Snapshot(model, inputs))

    def until(self, later: Snapshot) -> list[str]:
        """What another snapshot has otherwise: one line each."""
        now = later.seen
        gone = [f"{path} is gone" for path in self.seen if path not in now]
        new = [f"{path} is new" for path in now if path not in self.seen]
        both = [path for path in self.seen if path in now]
        moved = [f"{path} changed" for path in both if not _same(self.seen[path], now[path])]
        return gone + new + moved

    def _module(self, name: str, module: nn.Module) -> None:
        self.seen[f"{name}: identity"] = module
        self.seen[f"{name}: class"] = type(module)
        for key, value in vars(module).items():
            self._walk(f"{name}.{key}", value)

    def _walk(self, path: str, value: Any) -> None:
        if isinstance(value, Tensor):
            self.seen[path] = value
            if type(value).__name__ in ("UninitializedParameter", "FakeTensor"):
                return
            self.seen[f"{path}: value"] = value.detach().clone()
            self.seen[f"{path}: place"] = value.data_ptr()
            self.seen[f"{path}: requires_grad"] = value.requires_grad
            if value.is_leaf and value.grad is not None:
                self._walk(f"{path}.grad", value.grad)
            return
        if isinstance(value, (bool, int, float, str, bytes, type(None))):
            self.seen[path] = value
            return
        self.seen[path] = value
        if id(value) in self._visited or isinstance(value, (nn.Module, type)):
            return
        self._visited[id(value)] = value
        if isinstance(value, Mapping):
            self.seen[f"{path}: keys"] = list(value)
            for key, each in value.items():
                self._walk(f"{path}[{key!r}]", each)
        elif isinstance(value, (list, tuple, set, frozenset)):
            self.seen[f"{path}: length"] = len(value)
            for i, each in enumerate(value):
                self._walk(f"{path}[{i}]", each)
        elif not callable(value) and type(value).__module__.split(".")[0] != "torch":
            for key, each in getattr(value, "__dict__", {}).items():
                self._walk(f"{path}.{key}", each)


def _globals() -> dict[str, Any]:
    return {
        "torch's random state": torch.get_rng_state(),
        "Python's random state": hash(random.getstate()),
        "numpy's random state": np.random.get_state()[1].tobytes(),  # noqa: NPY002
        "default dtype": str(torch.get_default_dtype()),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "encoder fast path": torch.backends.mha.get_fastpath_enabled(),
        "function modes": torch._C._len_torch_function_stack(),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
        "nn.Module.__call__": nn.Module.__call__,
        "nn.Module.__setattr__": nn.Module.__setattr__,
        "nn.Module.__getattr__": nn.Module.__getattr__,
        "global hooks": [len(h) for h in _GLOBAL_HOOKS],
        "compiler's stance": repr(torch._dynamo.eval_frame._stance),
        "threads": torch.get_num_threads(),
    }


_GLOBAL_HOOKS = (
    nn.modules.module._global_forward_hooks,
    nn.modules.module._global_forward_pre_hooks,
)


def _same(before: Any, now: Any) -> bool:
    if before is now:
        return True
    if isinstance(before, Tensor):
        if not isinstance(now, Tensor) or isinstance(before, nn.Parameter):
            return False
        same = before.dtype == now.dtype and before.shape == now.shape
        return same and before.requires_grad == now.requires_grad and _equal(before, now)
    plain = (bool, int, float, str, bytes, list)
    return isinstance(before, plain) and type(before) is type(now) and before == now


def _equal(before: Tensor, now: Tensor) -> bool:
    return bool(((before == now) | (before.isnan() & now.isnan())).all())
