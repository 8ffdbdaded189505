"""Which recorded calls are linear in what they take, and what they make of a change of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from modfast.network.calls import Call, filled, slots_in
from modfast.network.whole import Values, Whole

Stacks: TypeAlias = dict[int, Tensor]
"""By slot: what each of several changes adds to it, `[changes, ...]`."""

LAYOUT = frozenset(
    "view reshape view_as reshape_as transpose permute movedim moveaxis swapaxes swapdims t "
    "contiguous clone detach alias __getitem__ select narrow index_select split chunk unbind "
    "tensor_split flatten unflatten ravel squeeze unsqueeze expand expand_as broadcast_to repeat "
    "repeat_interleave tile flip roll __get__:T __get__:mT".split()
)
"""Values as they are, in other places."""
_SAME = frozenset("to type type_as float double dropout dropout1d dropout2d dropout3d".split())
"""Values as they are; dropout, as a tape has none that is on."""
ADDITIONS = frozenset(
    "add __add__ __radd__ __iadd__ add_ sub subtract __sub__ __rsub__ __isub__ sub_".split()
)
_JOINS = frozenset("cat concat concatenate stack".split())
_FIRST = frozenset(
    "div true_divide __truediv__ __itruediv__ div_ mean sum linear conv1d conv2d conv3d "
    "conv_transpose1d conv_transpose2d conv_transpose3d avg_pool1d avg_pool2d avg_pool3d "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d pad masked_fill tril triu".split()
)
"""Linear in their first argument, the others being constants."""
_ONE = frozenset(
    "mul multiply __mul__ __rmul__ __imul__ mul_ matmul __matmul__ __rmatmul__ bmm mm "
    "einsum".split()
)
"""Linear in one argument, the others being constants."""


def places(call: Call) -> list[Any]:
    """Which of its arguments hold values that depend on the inputs."""
    found: list[Any] = [i for i, each in enumerate(call.args) if slots_in(each)]
    return found + [key for key, each in call.kwargs.items() if slots_in(each)]


def is_linear(call: Call, values: Values) -> bool:
    """Whether what a call returns is linear, but for a constant, in all that depends."""
    outs, ins = slots_in(call.outs), call.slots()
    kinds = {values[slot].dtype for slot in (*ins, *outs)}
    if len(kinds) > 1 or not next(iter(kinds)).is_floating_point:
        return False  # rounding is not linear, and a norm that computes in float32 begins so
    name, at = call.name, places(call)
    first = at in ([0], ["input"])
    if name in LAYOUT or name in _SAME or name in _JOINS:
        return first or at == ["tensors"]
    if name in ADDITIONS or name in ("neg", "negative", "__neg__"):
        return True
    if name in _ONE:
        return len(ins) == 1
    if name == "where":
        return bool(at) and set(at) <= {1, 2, "input", "other"}
    if name == "addmm":
        return at == [1]
    if name == "batch_norm":
        return first and not call.kwargs.get(
            "training", call.args[5] if len(call.args) > 5 else False
        )
    return name in _FIRST and first


def is_sum(call: Call) -> bool:
    """Whether a call adds."""
    return call.name in ADDITIONS


def carry(tape: Whole, calls: Iterable[Call], stacks: Stacks) -> Stacks:
    """What changes at some slots add to all slots behind, by linear calls."""
    for call in calls:
        ins = [slot for slot in dict.fromkeys(call.slots()) if slot in stacks]
        if not ins:
            continue
        for slot, stack in zip(slots_in(call.outs), _moved(tape, call, ins, stacks), strict=True):
            stacks[slot] = stack
    return stacks


def _moved(tape: Whole, call: Call, ins: Sequence[int], stacks: Stacks) -> list[Tensor]:
    name = call.name
    if len(ins) == 1:
        x = stacks[ins[0]]
        if name in ADDITIONS and not call.kwargs and call.slots().count(ins[0]) == 1:
            return [_added(tape, call, ins[0], x)]
        if name == "linear":
            weight = call.args[1] if len(call.args) > 1 else call.kwargs["weight"]
            return [functional.linear(x, _plain(weight))]
        if name == "addmm" and len(call.args) == 3 and not call.kwargs:
            return [x @ _plain(call.args[2])]
        if name in ("conv1d", "conv2d", "conv3d"):
            args, kwargs = list(call.args), {k: v for k, v in call.kwargs.items() if k != "bias"}
            args[2:3] = [None] * len(args[2:3])
            args[0] = x.flatten(0, 1)
            return [call.func(*args, **kwargs).unflatten(0, x.shape[:2])]
    # Each by itself; a constant goes by the difference from what zeros give.
    outs: list[list[Tensor]] = []
    pure = name in LAYOUT or name in _SAME
    base = None if pure else _called(tape, call, {})
    for i in range(len(stacks[ins[0]])):
        found = _called(tape, call, {slot: stacks[slot][i] for slot in ins})
        if base is not None:
            found = [each - zero for each, zero in zip(found, base, strict=True)]
        outs.append(found)
    return [torch.stack(each) for each in zip(*outs, strict=True)]


def _added(tape: Whole, call: Call, slot: int, x: Tensor) -> Tensor:
    shape = tape.values[slots_in(call.outs)[0]].shape
    if x.shape[1:] != shape:
        ones = [1] * (len(shape) + 1 - x.dim())
        x = x.reshape(len(x), *ones, *x.shape[1:]).expand(len(x), *shape)
    first = slots_in(call.args[0]) == [slot]
    if "sub" not in call.name:
        return x
    return -x if first == (call.name == "__rsub__") else x


def _plain(weight: Tensor) -> Tensor:
    return weight.detach()


def _called(tape: Whole, call: Call, values: Values) -> list[Tensor]:
    """What a call returns for some values, and zeros for all others that depend."""
    look: Any = _Zeros(values, tape.values)
    args, kwargs = filled(list(call.args), look), filled(call.kwargs, look)
    func: Callable[..., Any] = torch.Tensor.reshape if call.name == "view" else call.func
    if call.writes:
        args[0] = args[0].clone()
    found = func(*args, **kwargs)
    if isinstance(found, Tensor):
        return [found]
    return [x for x in _flat(found) if isinstance(x, Tensor)]


def _flat(value: Any) -> list[Any]:
    return (
        [x for each in value for x in _flat(each)] if isinstance(value, (tuple, list)) else [value]
    )


class _Zeros:
    def __init__(self, new: Values, old: Values) -> None:
        self.new, self.old = new, old

    def __getitem__(self, slot: int) -> Tensor:
        return self.new[slot] if slot in self.new else torch.zeros_like(self.old[slot])


def same_parts(tape: Whole, calls: Sequence[Call], target: int, dim: int, n: int) -> Tensor:
    """Which of n parts of a value along a dimension are copies of each other: int64 `[n]`.

    Found from the calls before it that only put values elsewhere, such as the repetition of keys
    for several heads. Parts come several in one where they lie in rows, as part i % n of each.
    """
    by_out = {slot: call for call in calls for slot in slots_in(call.outs)}
    way: list[Call] = []
    slot = target
    while slot in by_out:
        call = by_out[slot]
        if (call.name not in LAYOUT and call.name not in _SAME) or len(call.slots()) != 1:
            break
        way.append(call)
        slot = call.slots()[0]
    number = torch.arange(tape.values[slot].numel(), device=tape.values[slot].device)
    values = {slot: number.view(tape.values[slot].shape).double()}
    for call in reversed(way):
        outs = slots_in(call.outs)
        moved = _called(tape, call, {call.slots()[0]: values[call.slots()[0]]})
        values |= dict(zip(outs, moved, strict=True))
    found = values[target].movedim(dim, 0)
    rows = found.reshape(len(found) // n, n, -1).transpose(0, 1).flatten(1)
    seen: dict[tuple[float, ...], int] = {}
    labels = [seen.setdefault(tuple(row.tolist()), len(seen)) for row in rows]
    return torch.tensor(labels, dtype=torch.int64, device="cpu")
