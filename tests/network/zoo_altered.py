"""Models of the zoo that something was done to: parametrized, hooked, patched, compiled."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import Any

import torch
from network.zoo_case import Case, Net, entry, plain, setting
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune


class Square(nn.Module):
    """A parametrization."""

    def forward(self, w: Tensor) -> Tensor:
        return w * w


def _inner(layer: nn.Module, **more: Any) -> Case:
    layers = nn.Linear(5, 8), nn.ReLU(), layer, nn.ReLU(), nn.Linear(8, 4)
    return plain(nn.Sequential(*layers), "0", "1", "2", layer="2", **more)


@entry("weight_norm, by hooks")
def _() -> Case:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return _inner(nn.utils.weight_norm(nn.Linear(8, 8)), moves=("weight",))


@entry("weight_norm")
def _() -> Case:
    return _inner(parametrizations.weight_norm(nn.Linear(8, 8)))


@entry("spectral_norm, by hooks")
def _() -> Case:
    return _inner(nn.utils.spectral_norm(nn.Linear(8, 8)), moves=("weight",))


@entry("spectral_norm")
def _() -> Case:
    return _inner(parametrizations.spectral_norm(nn.Linear(8, 8)))


@entry("a pruned layer")
def _() -> Case:
    def change(case: Case) -> None:
        case.model[2].weight_mask.copy_(1 - case.model[2].weight_mask)

    layer = nn.Linear(8, 8)
    prune.l1_unstructured(layer, "weight", 0.5)
    return _inner(layer, change=change, moves=("weight",))


@entry("a parametrized layer")
def _() -> Case:
    def change(case: Case) -> None:
        parametrize.remove_parametrizations(case.model[2], "weight", leave_parametrized=False)

    layer = nn.Linear(8, 8)
    parametrize.register_parametrization(layer, "weight", Square())
    return _inner(layer, change=change)


class Scaled(nn.Linear):
    """A subclass that does more than its parent."""

    factor = 2.0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.factor + 1.0


@entry("a subclass of Linear")
def _() -> Case:
    return _inner(Scaled(8, 8), change=setting(lambda m: m[2], "factor", -1.0))


@entry("a class replaced by another")
def _() -> Case:
    return _inner(nn.Linear(8, 8), change=setting(lambda m: m[2], "__class__", Scaled))


class Lora(nn.Linear):
    """Low-rank adaptation by hand."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out)
        self.down, self.up = nn.Parameter(torch.randn(2, n_in)), nn.Parameter(torch.randn(n_out, 2))
        self.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.5 * (x @ self.down.T) @ self.up.T


@entry("LoRA by hand")
def _() -> Case:
    return _inner(Lora(8, 8))


if find_spec("peft"):

    @entry("LoRA by peft")
    def _() -> Case:
        import peft

        config = peft.LoraConfig(r=2, target_modules=["c"], init_lora_weights=False)
        model = peft.get_peft_model(Between(), config).to(
            torch.get_default_dtype()
        )  # A and B come in float32

        def change(case: Case) -> None:
            case.model.base_model.disable_adapter_layers()

        sites = "base_model.model.a", "base_model.model.c", "base_model.model.b:input"
        return plain(model, *sites, layer="base_model.model.c.base_layer", change=change)


class Between(Net):
    """One more layer between the two."""

    def __init__(self) -> None:
        super().__init__(c=nn.Linear(8, 8))

    def middle(self, h: Tensor) -> Tensor:
        return torch.relu(self.c(torch.tanh(h)))


@entry("hooks of a user")
def _() -> Case:
    model = Between()
    model.a.register_forward_hook(lambda module, args, found: found + 1.0)
    model.c.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    model.c.register_forward_hook(lambda module, args, found: found.mul_(3))
    model.register_forward_pre_hook(lambda module, args: (args[0] - 0.1,))
    model.register_forward_hook(lambda module, args, found: found * 0.7)

    def change(case: Case) -> None:
        case.model.c.register_forward_hook(lambda module, args, found: found.neg())

    return plain(model, "a", "c", "c:input", "b:input", layer="c", change=change)


@entry("hooks that take keywords and come first or always")
def _() -> Case:
    def double(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {"x": 2 * kwargs["x"]}

    class Keyword(Between):
        def middle(self, h: Tensor) -> Tensor:
            return torch.relu(self.inner(x=torch.tanh(h)))

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(8, 8)

        def forward(self, *, x: Tensor) -> Tensor:
            return self.up(x)

    model = Keyword()
    model.inner = Inner()
    model.inner.register_forward_pre_hook(double, with_kwargs=True)
    model.inner.register_forward_hook(lambda m, a, o: o + 1, always_call=True)
    model.inner.register_forward_hook(lambda m, a, k, o: o + k["x"], with_kwargs=True, prepend=True)
    return plain(model, "inner", "inner:input[x]", "inner.up", layer="inner.up")


@entry("patched forwards")
def _() -> Case:
    model = Between()
    linear = model.c.forward
    model.c.forward = lambda x: torch.sin(linear(x)) + 1.0
    whole = model.forward
    model.forward = lambda x: whole(2 * x)
    change = setting(lambda m: m.c, "forward", lambda x: torch.cos(linear(x)))
    return plain(model, "a", "c", "b:input", layer="c", change=change)


@entry("a module registered twice")
def _() -> Case:
    class Twice(Net):
        def middle(self, h: Tensor) -> Tensor:
            return torch.relu(self.c(torch.tanh(h)))

    layer = nn.Linear(8, 8)
    return plain(Twice(c=layer, again=layer), "a", "c", "again", layer="c")


for _backend in ("eager", "aot_eager"):

    @entry(f"compiled by {_backend}")
    def _(backend: str = _backend) -> Case:
        model = torch.compile(Between(), backend=backend)
        return plain(model, "a", "c", "c:input", layer="c")


@entry("a compiled part")
def _() -> Case:
    class Part(Net):
        def middle(self, h: Tensor) -> Tensor:
            return self.j(h) + h

    part = torch.compile(nn.Sequential(nn.Linear(8, 8), nn.Tanh()), backend="eager")
    return plain(Part(j=part), "a", "j", "j._orig_mod.0")


class Scripted(Net):
    """A scripted part, which takes no hooks and shows its calls to no mode, and a way past it."""

    def middle(self, h: Tensor) -> Tensor:
        return self.j(h) + torch.tanh(h)


@entry("a scripted part")
def _() -> Case:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        part = torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.ReLU()))

    def change(case: Case) -> None:
        next(case.model.j.parameters()).data.mul_(2)

    return plain(Scripted(j=part), "a", "b:input", change=change)


class Straight(torch.autograd.Function):
    """Returns its input, or the sign times it, with a gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign() * x * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


@entry("a Function of autograd")
def _() -> Case:
    class Custom(Net):
        def middle(self, h: Tensor) -> Tensor:
            return Straight.apply(h)

    return plain(Custom(), "a")


@entry("vmap inside")
def _() -> Case:
    class Mapped(Net):
        def middle(self, h: Tensor) -> Tensor:
            return torch.vmap(lambda row: torch.tanh(row) * row.sum())(h)

    return plain(Mapped(), "a")


@entry("checkpointing")
def _() -> Case:
    class Checkpointed(Between):
        def middle(self, h: Tensor) -> Tensor:
            run = torch.utils.checkpoint.checkpoint
            return run(lambda x: torch.relu(self.c(torch.tanh(x))), h, use_reentrant=False)

    return plain(Checkpointed(), "a", "c", layer="c")


@entry("bfloat16")
def _() -> Case:
    half = torch.bfloat16
    inputs = torch.randn(6, 5).to(half)
    return plain(Between().to(half), "a", "c", layer="c", inputs=inputs, dtype=half)


@entry("float32, with autocast inside")
def _() -> Case:
    class Inside(Between):
        def middle(self, h: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                h = self.c(torch.tanh(h))
            return torch.relu(h).float()

    inputs, half = torch.randn(6, 5).float(), torch.bfloat16
    return plain(Inside().float(), "a", "c", layer="c", inputs=inputs, dtype=half)
