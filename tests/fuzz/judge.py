"""One call, and whether what came of it is allowed."""

from __future__ import annotations

import re
import resource
import signal
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from fuzz import mutations
from fuzz.calls import BUILDERS, Call
from network import zoo
from network.snapshot import Snapshot, _globals
from network.zoo_case import same_numbers
from torch import Tensor, nn
from torch.utils.data import DataLoader

import modfast

SECONDS = 10
"""How long a call may compute; it may wait for what else the machine does."""
WAITING = 300
"""How long it may take in all, or it waits for itself."""
MEMORY = 4 * 2**30
"""How much address space it may take besides what is taken."""
USERS = ("output", "metric", "activation", "estimator", "optimizer", "regularizer", "closure")
"""Arguments that are functions of the user's."""


class NotAllowedError(AssertionError):
    """What came of a call is not one of the allowed outcomes."""


def judge(call: Call, mutated: Mapping[str, bool]) -> str:
    """Makes a call and says what came of it.

    Args:
        call: what to call.
        mutated: the arguments that are not as they should be, and whether each is of the right
            kind still, so that an error may as well name another that it does not go with.

    Returns:
        "result", "refused", "documented" or "the model's own error".

    Raises:
        NotAllowedError: anything else.
    """
    before = _State(call)
    moved = call.moves
    try:
        with limits(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = call()
        outcome = "result"
    except NotAllowedError:
        raise
    except Exception as error:
        with limits():  # the model may run again
            outcome = _of_error(call, mutated, error)
        if outcome == "refused":
            moved = frozenset()
    changes = before.changes(call, moved)
    if changes:
        raise NotAllowedError(f"after {outcome}: " + "; ".join(changes[:5]))
    if outcome == "result":
        _look(call, result)
    return outcome


def _of_error(call: Call, mutated: Mapping[str, bool], error: Exception) -> str:
    told = isinstance(error, (TypeError, ValueError))
    names = {*mutated, *call.aliases}
    if any(mutated.values()):
        names |= {*call.parameters()}
    text = str(error)
    if told and any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) for name in names):
        return "refused"
    if not told and isinstance(error, call.errors):
        return "documented"
    if _of_the_model(call, error):
        return "the model's own error"
    if isinstance(error, call.errors):
        return "documented"
    what = " that names no argument" if told else ""
    raise NotAllowedError(f"{type(error).__name__}{what}: {error}") from error


def _of_the_model(call: Call, error: Exception) -> bool:
    """Whether the model itself fails so on these inputs, or the user's own function."""
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame.f_code)
        trace = trace.tb_next
    last = frames[-1]
    if Path(last.co_filename).parent == Path(__file__).parent and last.co_name != "__call__":
        return True  # raised by a model or a function of ours
    if call.name in ("models.MLP.forward", "clusters.SplitNetwork.forward"):
        return True
    if any(isinstance(call.arguments.get(name), (nn.Module, type)) for name in USERS):
        return True  # a module in the place of a function fails by itself
    model = call.arguments.get("model", call.arguments.get("module"))
    if not isinstance(model, nn.Module):
        return False
    trains = call.name == "training.fit"
    try:
        with torch.set_grad_enabled(trains), same_numbers():
            for inputs in _inputs(call):
                for _ in range(1 + trains):
                    if isinstance(inputs, Mapping):
                        found = model(**inputs)
                    elif isinstance(inputs, tuple):
                        found = model(*inputs)
                    else:
                        found = model(inputs)
                    if trains:
                        torch.autograd.grad(found.sum(), [*model.parameters()], allow_unused=True)
    except NotAllowedError:
        raise
    except Exception as same:
        return type(same) is type(error)
    return False


def _inputs(call: Call) -> Iterator[Any]:
    for name in ("inputs", "clean", "corrupted", "x"):
        if call.arguments.get(name) is not None:
            yield call.arguments[name]
    for name in ("data", "train", "test"):
        pair = call.arguments.get(name)
        if isinstance(pair, tuple) and pair:
            yield pair[0]
    each = call.arguments.get("inputs_by_task")
    if isinstance(each, (Tensor, list, tuple)):
        yield from each
    shape = call.arguments.get("input_shape")
    if isinstance(shape, (int, tuple, list)) and not isinstance(shape, bool):
        yield torch.rand(2, *([shape] if isinstance(shape, int) else shape))


def _look(call: Call, result: Any) -> None:
    if call.nan:
        return
    for tensor in _tensors(result):
        if tensor.layout is torch.strided and not tensor.is_meta and not tensor.is_quantized:
            checkable = tensor.is_floating_point() or tensor.is_complex()
            if checkable and tensor.numel() < 2**20 and bool(tensor.isnan().any()):
                raise NotAllowedError(f"a result with NaN: {type(result).__name__}")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, float):
        yield torch.tensor(value)
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))


class _State:
    """The arguments and all that is global, before a call."""

    def __init__(self, call: Call) -> None:
        self.seen = {name: _seen(value) for name, value in call.arguments.items()}
        self.globals = self._now(call)

    def changes(self, call: Call, moved: frozenset[str]) -> list[str]:
        found = []
        for name, value in call.arguments.items():
            if name not in moved and (change := _changed(self.seen[name], _seen(value))):
                found.append(f"{name} changed: {change}")
        now = self._now(call)
        return found + [
            f"{name} changed" for name in now if not _equal(self.globals[name], now[name])
        ]

    @staticmethod
    def _now(call: Call) -> dict[str, Any]:
        found = _globals()
        found["default device"] = str(torch.get_default_device())
        # A loader without a generator of its own draws from the global one as it is gone through.
        loads = any(isinstance(each, DataLoader) for each in call.arguments.values())
        if loads or "seed" not in call.arguments or call.arguments["seed"] is None:
            found.pop("torch's random state")
        if call.name == "training.fit":  # a model in training may draw what it likes
            found.pop("Python's random state")
            found.pop("numpy's random state")
        return found


def _seen(value: Any) -> Any:
    if isinstance(value, nn.Module):
        return _module(value)
    if isinstance(value, Tensor):
        odd = value.layout is not torch.strided or value.is_meta or value.is_quantized
        if odd or value.is_nested or value.numel() > 2**20:
            return (id(value), None if value.is_inference() else value._version)
        return (value.dtype, value.requires_grad, value.grad, value.detach().clone())
    if isinstance(value, Mapping):
        return {key: _seen(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_seen(each) for each in value]
    if isinstance(value, torch.optim.Optimizer):
        return _seen(value.state_dict())
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _seen(getattr(value, field.name)) for field in fields(value)}
    return repr(value) if isinstance(value, (str, float, int, bytes)) and not _long(value) else None


def _module(model: nn.Module) -> Any:
    tensors = [*model.parameters(), *model.buffers()]
    odd = isinstance(model, torch.jit.ScriptModule) or any(
        x.layout is not torch.strided or x.is_meta or nn.parameter.is_lazy(x) for x in tensors
    )
    if not odd:
        found = Snapshot(model)
        found.seen = {k: v for k, v in found.seen.items() if k not in _globals()}
        return found
    # What cannot be compared by value.
    modules = [(id(each), each.training, len(each._forward_hooks)) for each in model.modules()]
    return [*modules, *((id(x), x.requires_grad) for x in tensors)]


def _long(value: Any) -> bool:
    return isinstance(value, int) and abs(value) > 10**300


def _changed(before: Any, after: Any) -> str:
    if isinstance(before, Snapshot):
        return "; ".join(before.until(after)[:3]) if isinstance(after, Snapshot) else "gone"
    return "" if _equal(before, after) else f"{str(before)[:200]} to {str(after)[:200]}"


def _equal(before: Any, after: Any) -> bool:
    if isinstance(before, Snapshot):
        return isinstance(after, Snapshot) and not before.until(after)
    if isinstance(before, Tensor):
        if not isinstance(after, Tensor) or before.shape != after.shape:
            return False
        if before.dtype.itemsize == 1 and before.is_floating_point():
            return torch.equal(before.view(torch.uint8), after.view(torch.uint8))
        return torch.equal(before, after) or bool(
            ((before == after) | ((before != before) & (after != after))).all()
        )
    if isinstance(before, dict):
        same = isinstance(after, dict) and before.keys() == after.keys()
        return same and all(_equal(before[key], after[key]) for key in before)
    if isinstance(before, (list, tuple)):
        same = isinstance(after, (list, tuple)) and len(before) == len(after)
        return same and all(map(_equal, before, after))
    return bool(before is after or before == after)


@contextmanager
def limits() -> Iterator[None]:
    """Time and memory for one call; what exceeds them is not allowed."""

    def stop(number: int, _: Any) -> None:
        most = SECONDS if number == signal.SIGPROF else WAITING
        raise NotAllowedError(f"took more than {most} s")

    timers = {signal.ITIMER_PROF: signal.SIGPROF, signal.ITIMER_REAL: signal.SIGALRM}
    before = {each: signal.signal(each, stop) for each in timers.values()}
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, hard))
    # Again each second, as a callback may swallow what is raised in it.
    signal.setitimer(signal.ITIMER_PROF, SECONDS, 1)
    signal.setitimer(signal.ITIMER_REAL, WAITING, 1)
    try:
        yield
    finally:
        for timer in timers:
            signal.setitimer(timer, 0)
        for each, handler in before.items():
            signal.signal(each, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def draw(choose: mutations.Choose) -> tuple[str, Call, dict[str, bool]] | None:
    """A call by choice: what it is in words, itself, and what was done to its arguments."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of odd tensors and models
        return _drawn(choose)


def _drawn(choose: mutations.Choose) -> tuple[str, Call, dict[str, bool]] | None:
    name = choose(list(BUILDERS))
    call = BUILDERS[name]()
    if "model" in call.arguments and choose((False, False, False, True)):
        return _of_the_zoo(call, choose)
    own = dict(call.arguments)
    mutated: dict[str, bool] = {}
    words = []
    for _ in range(choose((1, 1, 1, 2))):
        argument = choose(call.parameters())
        found = mutations.mutate(call.arguments.get(argument), choose)
        if found is None:
            return None
        what, value, kind = found
        kind = kind or type(value) is type(own.get(argument))
        if argument in call.work and _is_much(value):
            return None
        call.arguments[argument] = value
        mutated[argument] = kind
        words.append(f"{argument}: {what}")
    return f"{name}({', '.join(words)})", call, mutated


def _is_much(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_is_much, value))
    if isinstance(value, modfast.Clusters):
        return value.n_clusters > 200
    return isinstance(value, (int, float)) and value > 200


def _of_the_zoo(call: Call, choose: mutations.Choose) -> tuple[str, Call, dict[str, bool]]:
    """A call with a model of the zoo, its inputs and sites, in place of its own."""
    name = choose(zoo.NAMES)
    case = zoo.build(name)
    sites = list(case.sites)
    new = {"model": case.model, "inputs": case.inputs, "targets": case.targets}
    new |= {"clean": case.inputs, "corrupted": case.inputs, "output": case.output}
    new |= {"data": (case.inputs, case.targets), "train": (case.inputs, case.targets)}
    new |= {"site": choose(sites), "sites": sites, "layer": case.layer, "layers": case.layer}
    new |= {"dim": None, "units": None, "groups": None, "positions": None, "test": None}
    chosen = {key: value for key, value in new.items() if key in call.arguments}
    call.arguments |= chosen
    return f"{call.name}(of the zoo: {name})", call, dict.fromkeys(chosen, True)
