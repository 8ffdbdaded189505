"""A recorded run, cut at its further sites: what follows each is a recorded run of its own."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from modfast.network.calls import Call, Mark, Slot, rebuilt, slots_in
from modfast.network.tape import Tape


def in_parts(tape: Tape, value: Tensor) -> tuple[Tensor, list[Tape | None]]:
    """The logits for a value of the first site, and what follows each further one.

    What does not depend on a further site is computed once, here, and is a constant of its part.
    There is none for a site that does not depend on the first, that the logits do not depend on, or
    where values are written to in place; nor where a constant's origin was not seen, which may
    depend on a further site even where a changed first one shows nothing.
    """
    whole = tape.writes or tape.doubts
    found = [None if whole else _after(tape, mark) for mark in tape.marks]
    keep: dict[int, Any] = {}
    for mark, calls in zip(tape.marks, found, strict=True):
        if calls is not None:
            keep |= dict.fromkeys(_needed(mark, calls) | slots_of(mark))
    logits = tape.replay(value, keep=keep)
    pairs = zip(tape.marks, found, strict=True)
    return logits, [None if calls is None else _part(tape, m, calls, keep) for m, calls in pairs]


def slots_of(mark: Mark) -> set[int]:
    """A mark's slot, if it has one."""
    return set() if mark.slot is None else {mark.slot}


def _after(tape: Tape, mark: Mark) -> list[Call] | None:
    """The calls that depend on a site."""
    known = slots_of(mark)
    calls = []
    for call in tape.calls:
        if not known.isdisjoint(call.slots()):
            calls.append(call)
            known.update(slots_in(call.outs))
    return calls if calls and tape.out_slot in known else None


def _needed(mark: Mark, calls: Sequence[Call]) -> set[int]:
    """What they take that does not depend on the site."""
    made = {slot for call in calls for slot in slots_in(call.outs)} | slots_of(mark)
    return {slot for call in calls for slot in call.slots()} - made


def _part(tape: Tape, mark: Mark, calls: Sequence[Call], values: Mapping[int, Any]) -> Tape:
    assert mark.slot is not None
    constants = {slot: values[slot] for slot in _needed(mark, calls)}
    part = copy.copy(tape)
    part.site, part.site_slot, part.unit_dim = values[mark.slot], mark.slot, mark.unit_dim
    part.calls, part.marks = [_filled(call, constants) for call in calls], []
    part.note_last()
    return part


def _filled(call: Call, constants: Mapping[int, Any]) -> Call:
    """A call with constants in the places of some slots."""
    if constants.keys().isdisjoint(call.slots()):
        return replace(call, last=[])

    def fill(value: Any) -> Any:
        if isinstance(value, Slot):
            return constants.get(value.number, value)
        return rebuilt(value, fill)

    args, kwargs = [fill(arg) for arg in call.args], fill(call.kwargs)
    places = [(i, arg.number) for i, arg in enumerate(args) if isinstance(arg, Slot)]
    whole = len(slots_in(args)) + len(slots_in(kwargs))
    return replace(
        call, args=args, kwargs=kwargs, places=places if len(places) == whole else None, last=[]
    )
