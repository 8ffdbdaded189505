"""What may be done to an argument: each mutation has a name and makes another value of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzz import odd_models
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import modfast

Change = Callable[[Any], Any]
Choose = Callable[[Sequence[Any]], Any]
HUGE = (2**31, 2**63, 2**64, 10**1000)

ANYTHING: dict[str, Change] = {
    f"{value!r:.30}": lambda _, value=value: copy.copy(value)  # type: ignore[misc]
    for value in (
        *(None, True, False, -1, 0, 1, 1.5, math.nan, math.inf, -math.inf, 1e308, 5e-324, 1j),
        *("", "abc", "é*[\0", "mean", b"ab", [], (), {}, set(), [None], [[]], {0: None}, range(3)),
        *(int, torch.float32, torch.device("cpu"), Path("no/such"), ["a", 1], (1, 2, 3), slice(2)),
        *(np.int64(2), np.float32(0.5), np.array([1, 2]), np.array(["a"]), np.zeros((2, 0))),
        *(torch.tensor(2), torch.tensor(0.5), torch.ones(3), torch.zeros(0), torch.eye(2).bool()),
    )
}
ANYTHING |= {f"10**{len(str(value)) - 1}": lambda _, value=value: value for value in HUGE}
ANYTHING |= {
    "an object": lambda _: object(),
    "a function": lambda _: lambda *args: None,
    "a generator": lambda _: (i for i in range(2)),
    "a module": lambda _: nn.Linear(2, 2),
    "clusters": lambda _: modfast.Clusters.equal(3, 3, 2),
    "sparse": lambda _: torch.eye(3).to_sparse(),
    "meta": lambda _: torch.empty(3, 3, device="meta"),
    "nested": lambda _: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "a loader": lambda _: DataLoader(TensorDataset(torch.ones(4, 5)), 2),
}

DTYPES = (
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64, torch.complex128),
    *(torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn),
)


def _with(value: float | int) -> Change:
    """One entry of a copy is set."""

    def change(x: Tensor) -> Tensor:
        found = x.detach().clone()
        found.view(-1)[-1] = value
        return found

    return change


def _conjugate(x: Tensor) -> Tensor:
    return torch.complex(x.float(), x.float()).conj()


def _quantized(x: Tensor) -> Tensor:
    return torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8)


def _nested(x: Tensor) -> Tensor:
    return torch.nested.nested_tensor(list(x))


def _jagged(x: Tensor) -> Tensor:
    return torch.nested.nested_tensor(list(x), layout=torch.jagged)


def _inference(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.clone()


def _strided(x: Tensor) -> Tensor:
    wide = torch.empty(*x.shape, 2, dtype=x.dtype)
    wide[..., 0] = x
    return wide[..., 0]


LAYOUTS: dict[str, Change] = {
    "sparse COO": lambda x: x.to_sparse(),
    "sparse CSR": lambda x: x.to_sparse_csr(),
    "mkldnn": lambda x: x.float().to_mkldnn(),
    "quantized": _quantized,
    "nested": _nested,
    "jagged": _jagged,
    "meta": lambda x: x.to("meta"),
    "not contiguous": _strided,
    "transposed in memory": lambda x: x.mT.contiguous().mT,
    "expanded": lambda x: x[:1].expand_as(x),
    "negative view": lambda x: torch._neg_view(-x),
    "conjugate view": _conjugate,
    "imaginary part": lambda x: _conjugate(x).imag,
    "needs a gradient": lambda x: x.detach().clone().requires_grad_(),
    "in a graph": lambda x: x.detach().clone().requires_grad_() * 1,
    "a parameter": lambda x: nn.Parameter(x.detach().clone(), requires_grad=x.is_floating_point()),
    "of inference mode": _inference,
    "an array": lambda x: x.numpy(),
    "a list": lambda x: x.tolist(),
}
VALUES: dict[str, Change] = {
    "a NaN": _with(math.nan),
    "an inf": _with(math.inf),
    "a -inf": _with(-math.inf),
    "a large value": lambda x: _with(torch.finfo(x.dtype).max)(x),
    "all large": lambda x: torch.full_like(x, torch.finfo(x.dtype).max),
    "all NaN": lambda x: torch.full_like(x, math.nan),
    "tiny": lambda x: x * 1e-38,
    "a -1": _with(-1),
    "a -100": _with(-100),
    "a 1000": _with(1000),
    "2**62": _with(2**62),
    "-2**63": _with(-(2**63)),
    "zeros": torch.zeros_like,
    "ones": torch.ones_like,
    "negated": lambda x: -x,
}
SHAPES: dict[str, Change] = {
    "0-d": lambda x: x.reshape(-1)[0],
    "1-d": lambda x: x.reshape(-1),
    "one row": lambda x: x[:1],
    "no rows": lambda x: x[:0],
    "no columns": lambda x: x[..., :0],
    "empty": lambda x: x.new_empty(0),
    "a row less": lambda x: x[:-1],
    "a row more": lambda x: torch.cat([x, x[:1]]),
    "a column less": lambda x: x[..., :-1],
    "a column more": lambda x: torch.cat([x, x[..., :1]], -1),
    "one column": lambda x: x[..., :1],
    "transposed": lambda x: x.mT,
    "a dimension more": lambda x: x[None],
    "a last dimension more": lambda x: x[..., None],
    "five dimensions": lambda x: x.reshape(*x.shape, *[1] * (5 - x.dim())),
}
NUMBERS: dict[str, Change] = {
    "one more": lambda x: x + 1,
    "one less": lambda x: x - 1,
    "negative": lambda x: -x,
    "a string of it": str,
    "of NumPy": lambda x: np.float64(x) if isinstance(x, float) else np.int64(x),
    "a float": float,
    "half": lambda x: x / 2,
    "2**15": lambda _: 2**15,
    "2**20": lambda _: 2**20,
    "-10**1000": lambda _: -(10**1000),
}
STRINGS: dict[str, Change] = {
    "upper case": str.upper,
    "longer": lambda x: x + "x",
    "with a call": lambda x: x + "#7",
    "of input": lambda x: x + ":input[3]",
    "very long": lambda x: x[:40] * 2000,
    "a star": lambda _: "*",
    "a bracket": lambda _: "[",
    "bytes": str.encode,
    "in a list": lambda x: [x],
}
SEQUENCES: dict[str, Change] = {
    "one item less": lambda x: x[:-1],
    "an item twice": lambda x: type(x)([*x, *x[:1]]),
    "reversed": lambda x: x[::-1],
    "a tuple": tuple,
    "as a list": list,
    "an iterator": iter,
    "in another": lambda x: [x],
    "with None": lambda x: type(x)([*x, None]),
}
MAPPINGS: dict[str, Change] = {
    "one key less": lambda x: dict(list(x.items())[:-1]),
    "an unknown key": lambda x: {**x, "no such": next(iter(x.values()), None)},
    "a key of a number": lambda x: {**x, 7: next(iter(x.values()), None)},
    "its items": lambda x: list(x.items()),
    "its values": lambda x: list(x.values()),
}
CLUSTERS: dict[str, Change] = {
    "transposed": lambda c: modfast.Clusters(c.cols, c.rows, c.n_clusters),
    "of no units": lambda c: modfast.Clusters([], [], 1),
    "in no cluster": lambda c: modfast.Clusters(c.rows * 0 - 1, c.cols * 0 - 1, 1),
    "one cluster": lambda c: modfast.Clusters(c.rows * 0, c.cols * 0),
    "many clusters": lambda c: modfast.Clusters(c.rows, c.cols, 2**31),
    "one unit less": lambda c: modfast.Clusters(c.rows[:-1], c.cols),
}


def mutations(value: Any) -> dict[str, tuple[Change, bool]]:
    """What can be done to a value: the change, and whether it only makes it misfit the others."""
    found: dict[str, tuple[Change, bool]] = {name: (f, False) for name, f in ANYTHING.items()}
    of_kind: dict[str, Change] = {}
    if isinstance(value, Tensor) and value.layout is torch.strided:
        dtypes: dict[str, Change] = {f"to {d}": lambda x, d=d: x.to(d) for d in DTYPES}  # type: ignore[misc]
        of_kind = dtypes | LAYOUTS | VALUES | SHAPES
    elif isinstance(value, bool) or value is None:
        pass
    elif isinstance(value, (int, float)):
        of_kind = NUMBERS
    elif isinstance(value, str):
        of_kind = STRINGS
    elif isinstance(value, (list, tuple)):
        of_kind = SEQUENCES
    elif isinstance(value, Mapping):
        of_kind = MAPPINGS
    elif isinstance(value, modfast.Clusters):
        of_kind = CLUSTERS
    elif isinstance(value, nn.Module):
        of_kind = {name: lambda _, f=f: f() for name, f in odd_models.ODD.items()}  # type: ignore[misc]
    # Twice as likely as those that are of no use in any place.
    return {name: (f, True) for name, f in of_kind.items()} | found


def mutate(value: Any, choose: Choose) -> tuple[str, Any, bool] | None:
    """A mutation by choice: its name, what it gives, whether it is one of the value's own kind."""
    items = list(value.items()) if isinstance(value, Mapping) else None
    if isinstance(value, (list, tuple)) and value and not hasattr(value, "_fields"):
        items = list(enumerate(value))
    if items and choose((True, False)):
        place, item = choose(items)
        found = mutate(item, choose)
        if found is None:
            return None
        name, changed, kind = found
        if isinstance(value, Mapping):
            whole: Any = {**value, place: changed}
        else:
            whole = type(value)(changed if i == place else x for i, x in enumerate(value))
        return f"[{place!r}] {name}", whole, kind or type(changed) is type(item)
    every = mutations(value)
    of_kind = [name for name, (_, kind) in every.items() if kind]
    names = of_kind if of_kind and choose((True, True, False)) else list(every)
    name = choose(names)
    change, kind = every[name]
    try:
        changed = change(value)
    except (TypeError, ValueError, RuntimeError, IndexError, NotImplementedError, OverflowError):
        return None  # no such thing of this value
    modules = isinstance(value, nn.Module) and isinstance(changed, nn.Module)
    return name, changed, kind or modules or type(changed) is type(value)
