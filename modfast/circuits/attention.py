"""Attention among recorded calls: its queries, keys and values, and what it does with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from modfast.circuits.linear import places
from modfast.network.calls import Call, Slot, slots_in
from modfast.network.whole import Whole

_PRODUCTS = frozenset("matmul __matmul__ bmm baddbmm".split())
_FUSED = "scaled_dot_product_attention"
SPLIT = _PRODUCTS | {_FUSED}
"""The last calls of attention whose output has a dimension for heads."""

By = Mapping[int, Call]


@dataclass(frozen=True)
class Attention:
    """A part of a run that is attention."""

    slots: tuple[int, int, int]
    """Of queries, keys and values."""
    calls: list[Call]
    """From these to what attention gives."""


def producers(tape: Whole) -> dict[int, Call]:
    """By slot, the call that returned it."""
    return {slot: call for call in tape.calls for slot in slots_in(call.outs)}


def attention_of(tape: Whole, by_out: By, call: Call) -> Attention | None:
    """The attention that a call is the last one of, if it is.

    Raises:
        ValueError: it is, but of something else than queries, keys and values.
    """
    if call.name in (_FUSED, "multi_head_attention_forward"):
        return Attention(_three(call), [call])
    if call.name not in _PRODUCTS or len(set(places(call))) != 2:
        return None
    weights, values = call.slots()[-2:]
    softmax, after = _softmax(by_out, weights)
    if softmax is None:
        return None
    product, before = _product(by_out, softmax)
    if product is None:
        raise ValueError(
            "model must have attention whose softmax is of a product of queries and keys, got "
            f"another before {call.name!r} in {tape.places[call][0]!r}"
        )
    q, k = product.slots()[-2:]
    return Attention((q, k, values), [*before, *after, call])


def separate(tape: Whole, by_out: By, call: Call) -> bool:
    """Gives queries, keys and values a slot each, where one value is several; whether it was."""
    found = attention_of(tape, by_out, call)
    if found is None or len(set(found.slots)) == 3:
        return False
    first, last = found.calls[0], found.calls[-1]
    at = places(first)[:3] if first is last else [*places(first)[-2:], places(last)[-1]]
    seen: set[int] = set()
    for slot, reader, place in zip(found.slots, (first, first, last), at, strict=True):
        if slot in seen:
            new, tape.n = tape.n, tape.n + 1
            tape.values[new] = tape.values[slot]
            copy = Call(torch.clone, "clone", [Slot(slot)], {}, Slot(new), None, call.cast, None)
            tape.places[copy], tape.rounds[copy] = tape.places[call], tape.rounds[call]
            tape.calls.insert(tape.calls.index(reader), copy)
            arguments = reader.args if isinstance(place, int) else reader.kwargs
            arguments[place], reader.places = Slot(new), None
        seen.add(slot)
    return True


def _softmax(by_out: By, slot: int) -> tuple[Call | None, list[Call]]:
    """The softmax that a value comes from, and the calls from there."""
    calls: list[Call] = []
    while (call := by_out.get(slot)) is not None and len(set(call.slots())) == 1:
        calls.insert(0, call)
        if call.name == "softmax":
            return call, calls
        slot = call.slots()[0]
    return None, calls


def _product(by_out: By, softmax: Call) -> tuple[Call | None, list[Call]]:
    """The product that a softmax is of, and the calls from it to the softmax."""
    calls: list[Call] = []
    slot = softmax.slots()[0]
    while (call := by_out.get(slot)) is not None:
        calls.insert(0, call)
        if call.name in _PRODUCTS and len(places(call)) == 2:
            return call, calls
        if len(set(call.slots())) != 1:
            break
        slot = call.slots()[0]
    return None, calls


def _three(call: Call) -> tuple[int, int, int]:
    """Queries, keys and values of one call."""
    names = ("query", "key", "value")
    found: Sequence[list[int]] = [
        *(slots_in(x) for x in call.args[:3]),
        *(slots_in(call.kwargs[name]) for name in names[len(call.args) :] if name in call.kwargs),
    ]
    if len(found) != 3 or not all(len(each) == 1 for each in found):
        raise ValueError(
            f"model must take queries, keys and values from its inputs, got {call.name!r} of others"
        )
    q, k, v = (each[0] for each in found)
    return q, k, v
