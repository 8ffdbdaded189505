"""A whole run recorded, from the inputs to the logits: each call once, with all values kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from modfast.network.calls import Call, Slot, autocast, filled, slots_in, store
from modfast.network.inputs import Batch, mapped, tensors_in
from modfast.network.logits import Output, pick
from modfast.network.names import unwrapped
from modfast.network.resume import equal_to_rounding
from modfast.network.run import Run
from modfast.network.sites import plain_name
from modfast.network.state import Guard, may_write, place_of
from modfast.network.tape import Tape
from modfast.network.visits import Running

Values = dict[int, Tensor]


class Whole(Tape):
    """Records a run from its inputs on; a tensor that is written to gets another number.

    What floating inputs hold is followed from the start, and tokens from where they become
    floating: an embedding.
    """

    def __init__(
        self, guard: Guard, known: Iterable[Tensor], device_type: str, running: Running
    ) -> None:
        super().__init__(guard, known, device_type)
        self.running = running
        self.values: Values = {}
        self.roots: dict[int, str] = {}
        """The slots that a run begins with, and what they are called."""
        self.places: dict[Call, tuple[str, str, int]] = {}
        """By call: the module whose forward made it, the function, and the number of such calls."""
        self.rounds: dict[Call, int] = {}
        """By call: which call of that module it was made in."""
        self._tokens: dict[int, ref[Tensor]] = {}
        self._counts: dict[tuple[str, str], int] = {}
        self._memory: dict[int, int] = {}
        self._stale: set[int] = set()

    def root(self, value: Tensor, name: str) -> Tensor:
        """Takes a value that the run begins with; the model goes on with the alias returned."""
        with torch._C.DisableTorchFunction():
            alias = value.view_as(value)
            slot = self._new(alias)
            self.values[slot], self._memory[slot] = alias, place_of(alias)
        self.roots[slot] = name
        self._on = True
        return alias

    def follow_tokens(self, tokens: Tensor) -> None:
        """Takes integers that become floating later on."""
        self._tokens[id(tokens)] = ref(tokens)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        key = self.running.stack[-1], plain_name(func)
        self._counts[key] = self._counts.get(key, -1) + 1
        output = super().__torch_function__(func, types, args, kwargs)
        if self._tokens and isinstance(output, Tensor):
            found = tensors_in((args, kwargs or {}))
            if any(map(self._is_token, found)) and self._slot(output) is None:
                return self._of_tokens(output, key)
        return output

    def _is_token(self, tensor: Tensor) -> bool:
        entry = self._tokens.get(id(tensor))
        return entry is not None and entry() is tensor

    def _of_tokens(self, output: Tensor, key: tuple[str, str]) -> Tensor:
        with torch._C.DisableTorchFunction():
            kind = output.dtype
            if not kind.is_floating_point and kind != torch.bool:  # masks are constants of a run
                self.follow_tokens(output)
                return output
            if kind == torch.bool:
                return output
        return self.root(output, key[0] if self.roots else "input")

    def _dependent(self, func: Any, name: str, args: Any, kwargs: Any, found: list[Tensor]) -> Any:
        if any(self._slot(tensor) in self._stale for tensor in found):
            self.why = f"{name} reads an alias of what was written to"
        target = before = None
        if may_write(name, args, kwargs):
            target = kwargs.get("out", args[0] if args else None)
            with torch._C.DisableTorchFunction():
                if isinstance(target, Tensor) and self._slot(target) is not None:
                    before = target.detach().clone()
        n = len(self.calls)
        output = super()._dependent(func, name, args, kwargs, found)
        if len(self.calls) > n:
            self._keep(self.calls[-1], args, target, before, output)
        return output

    def _keep(self, call: Call, args: Any, target: Any, before: Tensor | None, output: Any) -> None:
        module, function = self.running.stack[-1], plain_name(call.func)
        self.places[call] = module, function, self._counts[module, function]
        self.rounds[call] = self.running.n_calls.get(module, 1) - 1
        with torch._C.DisableTorchFunction():
            if call.writes:
                old = None if before is None else self._slot(target)
                if old is None or before is None or not args or args[0] is not target:
                    self.why = f"{call.name} writes to a constant, or to what is not its first"
                    return
                self.values[old] = before
                call.outs = Slot(self._new(target))
                memory = place_of(target)
                self._stale |= {slot for slot, place in self._memory.items() if place == memory}
                self.values[call.outs.number] = target
                self._memory[call.outs.number] = memory
                return
            for slot, tensor in zip(slots_in(call.outs), tensors_in(output), strict=True):
                if slot not in self.values:
                    self.values[slot], self._memory[slot] = tensor, place_of(tensor)

    def finish(self, logits: Tensor) -> None:
        """Takes what the run came to, and drops what it does not need."""
        super().finish(logits)
        self.values = {slot: value.detach() for slot, value in self.values.items()}
        need, kept = {self.out_slot}, []
        for call in reversed(self.calls):
            outs = slots_in(call.outs)
            # What returns its input, as dropout in eval mode, is no call of its own.
            if not need.isdisjoint(outs) and (call.writes or not set(outs) <= set(call.slots())):
                kept.append(call)
                need.update(call.slots())
        self.calls = kept[::-1]

    def same_calls(self, other: Whole) -> bool:
        """Whether another run did the same with other values."""

        def told(tape: Whole) -> list[Any]:
            each = [(x.name, x.slots(), slots_in(x.outs)) for x in tape.calls]
            return [*each, tape.out_slot, list(tape.roots.items())]

        return told(self) == told(other)

    def again(self, calls: Iterable[Call], values: Values) -> Values:
        """Does those calls again that take one of `values`, which are added to and returned.

        Slots that are not among them have the run's own values; nothing is written to in place.
        """
        here = autocast(self.device_type)
        look = _Look(values, self.values)
        for call in calls:
            if not any(slot in values for slot in call.slots()):
                continue
            if call.cast != here:
                raise ValueError(f"model must run without autocast, got {call.name!r} under it")
            args, kwargs = filled(call.args, look), filled(call.kwargs, look)  # type: ignore[arg-type]
            if call.writes:
                args[0] = args[0].clone()
                call.func(*args, **kwargs)
                values[call.outs.number] = args[0]
            else:
                store(call.outs, call.func(*args, **kwargs), values)  # type: ignore[arg-type]
        return values

    def check(self, values: Values, run: Whole) -> None:
        """Refuses calls that, done again, do not give a run's logits.

        Raises:
            ValueError: they do not.
        """
        if not equal_to_rounding(values[self.out_slot].detach(), run.values[self.out_slot]):
            why = (self.doubts or ["the recorded calls give other logits"])[0]
            raise ValueError(f"model must do the same again with other values: {why}")


class _Look:
    """Values of slots: new ones, or else the run's."""

    def __init__(self, new: Values, old: Values) -> None:
        self.new, self.old = new, old

    def __getitem__(self, slot: int) -> Tensor:
        return self.new[slot] if slot in self.new else self.old[slot]


def record(run: Run, model: nn.Module, batch: Batch, output: Output, argument: str) -> Whole:
    """A model's run on a batch, recorded whole.

    Raises:
        ValueError: it looks at values, or draws random ones: it may do otherwise next time.
    """
    tensors = batch.tensors()
    device = tensors[0].device.type if tensors else "cpu"
    modules = dict(unwrapped(model).named_modules(remove_duplicate=False))
    with Running(modules) as running:
        tape = Whole(run.guard(batch), [*tensors, *run.tensors], device, running)
        inputs = batch
        tokens = [batch.tokens(), batch.tokens(decoder=True)]
        for each in tokens:
            if each is not None:
                tape.follow_tokens(each)
        args = tuple(_rooted(tape, x, f"[{i}]") for i, x in enumerate(batch.args))
        kwargs = {
            k: x if "mask" in k else _rooted(tape, x, f"[{k}]") for k, x in batch.kwargs.items()
        }
        inputs = replace(batch, args=args, kwargs=kwargs)

        def read(result: Any) -> Tensor:
            logits = pick(result, output, inputs)
            tape.finish(logits)
            return run.own(logits)

        run(inputs, read, tape)
    if tape.why is not None:
        raise ValueError(f"model must make the same calls whatever its input is: {tape.why}")
    if tape.out_slot < 0:
        raise ValueError(f"model must return logits that depend on {argument}")
    return tape


def _rooted(tape: Whole, value: Any, name: str) -> Any:
    def root(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return tape.root(tensor, f"input{name}" if tape.roots else "input")

    return mapped(root, value)
