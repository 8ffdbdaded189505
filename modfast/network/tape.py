"""What a run did from a site on, recorded as it happened, to be done again with another value.

The model's own forward pass runs under a mode that sees every call of torch with its real tensors.
Before the site only the origin of tensors is noted. From it on, each call that takes a value which
depends on the site is kept. Whatever breaks the rules that make doing it again right is said in
`Tape.why`; the run itself goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from modfast.network.calls import (
    ATTRIBUTES,
    DROPOUTS,
    DYNAMIC,
    RANDOM,
    SHAPES,
    Call,
    Mark,
    Slot,
    autocast,
    filled,
    name_of,
    rebuilt,
    slots_in,
    store,
)
from modfast.network.dims import UnitDims
from modfast.network.inputs import tensors_in
from modfast.network.state import Guard, may_write, place_of, targets_of, version_of


class Tape(TorchFunctionMode):
    """Records a run from a site on."""

    def __init__(self, guard: Guard, known: Iterable[Tensor], device_type: str) -> None:
        super().__init__()
        self.guard, self.device_type = guard, device_type
        self.units = UnitDims()
        self.why: str | None = None
        """Why the calls must not be done again."""
        self.doubts: list[str] = []
        """Constants that came from nowhere, so that they may depend on the site unseen."""
        self.calls: list[Call] = []
        self.n = 0
        """How many slots there are."""
        self.site_slot = self.out_slot = -1
        self.site: Tensor | None = None
        self.unit_dim: int | None = None
        self.marks: list[Mark] = []
        self.grad = False
        self._on = self._site_written = False
        self._known: dict[int, ref[Tensor]] = {}
        self._slots: dict[int, tuple[int, ref[Tensor], int]] = {}
        self._constants: dict[int, tuple[Tensor, int]] = {}
        self._written: dict[int, Tensor] = {}
        """By slot, what was in a constant before a call wrote to it."""
        self._dirty: set[int] = set()
        self._note(known)

    def begin(self, site: Tensor) -> Tensor:
        """Takes the site's value; the model goes on with the alias that this returns."""
        self.grad = torch.is_grad_enabled()
        with torch._C.DisableTorchFunction():
            self.unit_dim = self.units.of(site)
            # An alias, since the value may be what came before the site too: an Identity's input.
            alias = site.view_as(site)
            self.site_slot = self._new(alias)
            self.site = site.view_as(site)
        self._on = True
        return alias

    def mark(self, value: Tensor) -> Tensor:
        """Takes the value of a further site; the model goes on with the alias that this returns."""
        with torch._C.DisableTorchFunction():
            unit_dim = self.units.of(value)
        # By a call that is recorded, and that takes the value once.
        self.marks.append(Mark(value.view(value.shape), unit_dim))
        return self.marks[-1].value

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self.guard.put_back()

    def finish(self, logits: Tensor) -> None:
        """Takes what the run came to."""
        self._on = False
        found = self._slot(logits)
        self.out_slot = -1 if found is None else found
        with torch._C.DisableTorchFunction():
            if self.why is None and any(version_of(x) != v for x, v in self._constants.values()):
                self.why = "a constant was changed later"
        self._prune()
        for mark in self.marks:
            mark.slot = self._slot(mark.value)
        self._slots.clear()
        self._known.clear()
        self._constants.clear()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = name_of(func)
        if not self._on:
            if may_write(name, args, kwargs):
                self._guarded(name, args, kwargs)
            output = func(*args, **kwargs)
            if type(output) is Tensor:
                self._known[id(output)] = ref(output)
                self._note_units(func, args, output)
                if self.site is not None:  # the call's own output is the site
                    self.unit_dim = self.units.of(output)
            elif type(output) in (tuple, list):
                self._note(tensors_in(output))
            return output
        if self.why is not None:
            if may_write(name, args, kwargs):
                self._guarded(name, args, kwargs)
            return func(*args, **kwargs)
        found = tensors_in((args, kwargs) if kwargs else args)
        if any(self._slot(tensor) is not None for tensor in found):
            return self._dependent(func, name, args, kwargs, found)
        if may_write(name, args, kwargs):
            self._guarded(name, args, kwargs)
        if self._dirty and any(place_of(tensor) in self._dirty for tensor in found):
            self.why = f"{name} reads an alias of what was written to"
        output = func(*args, **kwargs)
        if all(map(self._is_known, found)):  # else what comes of it is in doubt, too
            self._note(tensors_in(output))
        return output

    def _dependent(self, func: Any, name: str, args: Any, kwargs: Any, found: list[Tensor]) -> Any:
        if name in SHAPES or (name[:8] == "__get__:" and name[8:] in ATTRIBUTES):
            return func(*args, **kwargs)
        if name == "type" and len(args) == 1:
            return func(*args, **kwargs)
        if name == "detach_":  # of the alias, which is a view, torch would refuse it
            self.why = "detach_ in the model"
            return args[0]
        if torch.is_grad_enabled() != self.grad:
            self.why = f"{name}: gradients are turned on or off inside the model"
            if may_write(name, args, kwargs):
                self._guarded(name, args, kwargs)
            return func(*args, **kwargs)
        versions = [self._read(name, tensor) for tensor in found]
        self._refuse(name, func, args, kwargs)
        target: Tensor | None = None
        if may_write(name, args, kwargs):
            self._guarded(name, args, kwargs)
            target = self._target(args, kwargs)
        output = func(*args, **kwargs)
        if self.why is not None:
            return output
        writes = False
        for tensor, version in zip(found, versions, strict=True):
            now = version_of(tensor)
            if now != version or (version < 0 and tensor is target):
                slot = self._slot(tensor)
                if slot is None:
                    self.why = f"{name} writes to a constant"
                    return output
                writes = True
                self._dirty.add(place_of(tensor))
                self._slots[id(tensor)] = slot, ref(tensor), now
        if isinstance(output, Tensor):
            self._note_units(func, args, output)
        outs = self._outputs(output)
        if outs is None and not writes:
            self.why = f"{name} looks at a value"
            return output
        shape = tuple(output.shape) if isinstance(output, Tensor) else None
        self.calls.append(self._call(func, name, args, kwargs, outs, shape, writes))
        return output

    def _guarded(self, name: str, args: Any, kwargs: Any) -> None:
        """Is told of a call that may write, before it is made."""
        with torch._C.DisableTorchFunction():
            self.guard.before(name, args, kwargs)
            if self.site is None or self._site_written:
                return
            if any(place_of(x) == place_of(self.site) for x in targets_of(args, kwargs)):
                self._site_written = True
                self.site = self.site.clone()

    def _read(self, name: str, tensor: Tensor) -> int:
        """Notes that a dependent call takes a tensor; its version."""
        version = version_of(tensor)
        slot = self._slot(tensor)
        if slot is not None:
            if self._slots[id(tensor)][2] != version:
                if place_of(tensor) in self._dirty:  # by a dependent call, through another view
                    self._slots[id(tensor)] = slot, ref(tensor), version
                else:
                    self.why = f"{name}: a value was changed unseen"
            return version
        if self._dirty and place_of(tensor) in self._dirty:
            self.why = f"{name} reads an alias of what was written to"
        if not self._is_known(tensor):
            self.doubts.append(f"{name}: a tensor {tuple(tensor.shape)} from nowhere")
        if self._constants.setdefault(id(tensor), (tensor, version))[1] != version:
            self.why = f"{name}: a constant was changed between two reads"
        return version

    def _target(self, args: Any, kwargs: Any) -> Tensor | None:
        """What a call may write to; copies what was there if it is a constant."""
        target = kwargs.get("out", args[0] if args else None)
        if not isinstance(target, Tensor):
            return None
        with torch._C.DisableTorchFunction():
            if self._slot(target) is None:
                before = target.detach().clone(memory_format=torch.preserve_format)
                self._written[self._new(target)] = before
                self._constants.pop(id(target), None)
        return target

    def _refuse(self, name: str, func: Any, args: Any, kwargs: Any) -> None:
        if name in DYNAMIC or (name == "where" and len(args) + len(kwargs) == 1):
            self.why = f"{name}: a shape that depends on values"
        elif name in ("__getitem__", "__setitem__", "index_put", "index_put_"):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            for part in index:
                slots = [self._slot(tensor) for tensor in tensors_in(part)]
                if any(slot is not None for slot in slots):
                    is_mask = isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8)
                    if isinstance(part, slice) or (is_mask and name == "__getitem__"):
                        self.why = f"{name}: a shape that depends on values"
        elif name[:7] == "__set__" or name in ("set_", "__deepcopy__", "__reduce_ex__"):
            self.why = f"{name}: replaces or copies a value as a whole"
        elif name in ("requires_grad_", "grad", "backward"):
            self.why = f"{name}: gradients inside the model"
        elif name in RANDOM:
            self.why = f"{name}: a random call on a value"
        elif name in DROPOUTS:
            if kwargs.get("training", args[2] if len(args) > 2 else True):
                self.why = f"{name}: a random call on a value"
        elif "_functorch" in (getattr(func, "__module__", None) or "") or name in (
            *("_add_batch_dim", "_remove_batch_dim", "_wrap_for_grad"),
        ):
            self.why = f"{name}: torch.func inside the model"

    def _outputs(self, output: Any) -> Any:
        if isinstance(output, Tensor):
            slot = self._slot(output)
            return Slot(self._new(output) if slot is None else slot)
        if isinstance(output, (tuple, list)) and not isinstance(output, torch.Size):
            found = [self._outputs(item) for item in output]
            return found if any(item is not None for item in found) else None
        if isinstance(output, dict):
            by_name = {key: self._outputs(item) for key, item in output.items()}
            return by_name if any(item is not None for item in by_name.values()) else None
        return None

    def _call(
        self, func: Any, name: str, args: Any, kwargs: Any, outs: Any, shape: Any, writes: bool
    ) -> Call:
        marked = [self._marked(arg) for arg in args]
        places = [(i, arg.number) for i, arg in enumerate(marked) if isinstance(arg, Slot)]
        kwargs = self._marked(kwargs) if kwargs else kwargs
        all_places = len(slots_in(marked)) + (len(slots_in(kwargs)) if kwargs else 0)
        cast = autocast(self.device_type)
        at = places if len(places) == all_places else None
        return Call(func, name, marked, kwargs, outs, at, cast, shape, writes)

    def _marked(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            slot = self._slot(value)
            return value if slot is None else Slot(slot)
        return rebuilt(value, self._marked)

    def _new(self, tensor: Tensor) -> int:
        number, self.n = self.n, self.n + 1
        # Weak, or every activation after the site would stay alive.
        self._slots[id(tensor)] = number, ref(tensor), version_of(tensor)
        return number

    def _slot(self, tensor: Tensor) -> int | None:
        entry = self._slots.get(id(tensor))
        return entry[0] if entry is not None and entry[1]() is tensor else None

    def _note_units(self, func: Any, args: Any, output: Tensor) -> None:
        """Follows which dimension holds units, where a site may come that is not known by kind."""
        with torch._C.DisableTorchFunction():
            if output.dim() > 3:
                self.units.note(func, args, output)
                if self.marks and self.marks[-1].value is output:  # the call's own output
                    self.marks[-1].unit_dim = self.units.of(output)

    def _note(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            self._known[id(tensor)] = ref(tensor)

    def _is_known(self, tensor: Tensor) -> bool:
        if type(tensor) is nn.Parameter:
            return True
        entry = self._known.get(id(tensor))
        return entry is not None and entry() is tensor and type(tensor) is Tensor

    def _prune(self) -> None:
        """Drops calls that the logits do not need, and notes where each slot is last taken."""
        if self.out_slot < 0:
            self.calls = []
            return
        need, kept = {self.out_slot}, []
        # What is written in place may be seen through an alias: then all calls stay.
        writes = any(call.writes for call in self.calls)
        for call in reversed(self.calls):
            if writes or not need.isdisjoint(slots_in(call.outs)):
                kept.append(call)
                need.update(call.slots())
        self.calls = kept[::-1]
        self.note_last()

    def note_last(self) -> None:
        """Notes with each call which slots it is the last to take."""
        last: dict[int, Call] = {}
        for call in self.calls:
            last |= dict.fromkeys((*slots_in(call.outs), *call.slots()), call)
        for slot, call in last.items():
            if slot != self.out_slot:
                call.last.append(slot)

    @property
    def writes(self) -> bool:
        """Whether calls write to what others take."""
        return bool(self._dirty or self._written)

    @property
    def constants(self) -> list[Tensor]:
        """What was in constants before calls wrote to them."""
        return list(self._written.values())

    def replay(
        self,
        value: Tensor,
        constants: Iterable[Tensor] | None = None,
        start: int = 0,
        stop: int | None = None,
        keep: dict[int, Any] | None = None,
    ) -> Tensor:
        """The logits for another value of the site, or of what call `start` takes.

        Args:
            value: the other value.
            constants: copies of `constants`, for the calls that write to them; by default made.
            start: the first call to be done; no later one may take what came before it.
            stop: the call before which to stop; what the one before it returned is the result.
            keep: filled with the values of its slots.
        """
        values: list[Any] = [None] * self.n
        if self._dirty:
            value = value.clone()
        values[self.calls[start].slots()[0] if start else self.site_slot] = value
        if self._written:
            own = [x.clone() for x in self.constants] if constants is None else constants
            for slot, constant in zip(self._written, own, strict=True):
                values[slot] = constant
        here = autocast(self.device_type)
        for call in self.calls[start:stop]:
            if call.places is not None:
                args, kwargs = call.args.copy(), call.kwargs
                for at, slot in call.places:
                    args[at] = values[slot]
            else:
                args, kwargs = filled(call.args, values), filled(call.kwargs, values)
            if call.cast == here:
                output = call.func(*args, **kwargs)
            else:
                enabled, dtype = call.cast
                with torch.autocast(self.device_type, dtype, enabled=enabled):
                    output = call.func(*args, **kwargs)
            store(call.outs, output, values)
            for slot in call.last:
                if stop is None and (keep is None or slot not in keep):
                    values[slot] = None
        if keep is not None:
            keep.update((slot, values[slot]) for slot in keep)
        if stop == start:
            return value
        end = self.out_slot if stop is None else self.calls[stop - 1].outs.number
        found: Tensor = values[end]
        return found

    def alone_from(self, start: int) -> bool:
        """Whether calls from `start` on take nothing that came before but one value."""
        made: set[int] = set(self.calls[start].slots())
        if len(made) != 1 or (start and self._written):
            return False
        for call in self.calls[start:]:
            if not made.issuperset(call.slots()):
                return False
            made.update(slots_in(call.outs))
        return self.out_slot in made
