"""Models of the zoo whose forward methods are odd, of plain layers."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from network.zoo_case import Case, Net, entry, labels, plain, setting
from torch import Tensor, nn
from torch.nn import functional as F


@entry("ReLU in place")
def _() -> Case:
    layers = nn.Linear(5, 8), nn.ReLU(True), nn.Linear(8, 8), nn.ReLU(True), nn.Linear(8, 4)
    return plain(nn.Sequential(*layers), "0", "1", "2", "2:input", layer="2")


@entry("a ReLU called twice")
def _() -> Case:
    class Reused(Net):
        def middle(self, h: Tensor) -> Tensor:
            return self.r(self.c(self.r(h)))

    model = Reused(c=nn.Linear(8, 8), r=nn.ReLU())
    return plain(
        model, "a", "r#0", "r#1", layer="c", change=setting(lambda m: m, "r", nn.Sigmoid())
    )


@entry("residual, through an Identity that returns its input")
def _() -> Case:
    class Residual(Net):
        def middle(self, h: Tensor) -> Tensor:
            return h + 2 * torch.tanh(self.i(h))

    return plain(Residual(i=nn.Identity()), "i", "a")


@entry("dropout that returns its input in eval mode")
def _() -> Case:
    class Dropped(Net):
        def middle(self, h: Tensor) -> Tensor:
            return torch.tanh(h) * 3 + self.d(h)

    return plain(Dropped(d=nn.Dropout(0.5)), "d", "a")


@entry("a layer called again after the site")
def _() -> Case:
    class Again(Net):
        def middle(self, h: Tensor) -> Tensor:
            return torch.tanh(self.c(torch.tanh(h))) + self.c(h)

    return plain(Again(c=nn.Linear(8, 8)), "a", "c#0", "c:input#1", layer="c")


@entry("tied layers")
def _() -> Case:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mix = nn.Embedding(11, 8), nn.Linear(8, 8)
            self.head = nn.Linear(8, 11, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens: Tensor) -> Tensor:
            h = self.embed(tokens)
            return self.head(h + torch.tanh(self.mix(h)))

    def change(case: Case) -> None:
        assert isinstance(case.model.head, nn.Linear)
        case.model.head.weight.data *= 0.5

    tokens = torch.randint(0, 11, (3, 5))
    sites = {"embed": -1, "mix": -1, "head:input": -1}
    return Case(Tied(), tokens, sites, labels(11, 3, 5), "head", change=change)


@entry("a loop over one layer")
def _() -> Case:
    class Loop(Net):
        steps = 3

        def middle(self, h: Tensor) -> Tensor:
            for _ in range(self.steps):
                h = torch.tanh(self.rec(h))
            return h

    def change(case: Case) -> None:
        case.model.steps = 4

    model = Loop(rec=nn.Linear(8, 8))
    return plain(model, "a", "rec#1", "rec:input#0", layer="rec", change=change)


@entry("**kwargs")
def _() -> Case:
    class Keywords(Net):
        def forward(self, **given: Any) -> Tensor:
            return self.b(torch.tanh(self.a(given["x"])) * given.get("scale", 1.0))

    def change(case: Case) -> None:
        case.inputs["scale"] = 3.0

    return plain(Keywords(), "a", inputs={"x": torch.randn(6, 5)}, change=change)


@entry("an optional argument")
def _() -> Case:
    class Optional(Net):
        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            found = self.b(torch.tanh(self.a(x)))
            return found if y is None else 3 * found + y[:, None]

    def change(case: Case) -> None:
        case.inputs = case.inputs[0], torch.arange(6.0)

    return plain(Optional(), "a", inputs=(torch.randn(6, 5), None), change=change)


@dataclass
class Output:
    """What some networks return."""

    scores: Tensor
    hidden: Tensor


@entry("a dataclass as output")
def _() -> Case:
    class Structured(Net):
        def forward(self, x: Tensor) -> Output:
            h = self.a(x)
            if isinstance(h, Tensor):  # no stand-in
                h = 3 * torch.tanh(h)
            return Output(self.b(h), h)

    return plain(Structured(), "a", output=lambda found: found.scores)


@entry("mappings as outputs")
def _() -> Case:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(8, 8)

        def forward(self, h: Tensor) -> dict[str, Tensor]:
            return {"skip": h, "hidden": torch.relu(self.up(h))}

    class Mapped(Net):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            found = self.inner(self.a(x))
            return {"first": x, "logits": self.b(found["hidden"] + found["skip"])}

    model = Mapped(inner=Inner())
    return plain(model, "inner['hidden']", "inner['skip']", "inner.up", output="logits")


@entry("a tuple as output")
def _() -> Case:
    class Tupled(Net):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.tanh(self.a(x))
            return h, self.b(h)

    return plain(Tupled(), "a", output=lambda found: found[1])


@entry("a branch on values")
def _() -> Case:
    class Branch(Net):
        def middle(self, h: Tensor) -> Tensor:
            kept = torch.tanh(self.c(torch.tanh(h)))
            return -2 * kept if kept.sum() > 0 else kept

    return plain(Branch(c=nn.Linear(8, 8)), "a", "c")


@entry("item()")
def _() -> Case:
    class Item(Net):
        def middle(self, h: Tensor) -> Tensor:
            return torch.tanh(h) * h.abs().max().item()

    return plain(Item(), "a")


@entry("numpy")
def _() -> Case:
    class Numpy(Net):
        def middle(self, h: Tensor) -> Tensor:
            return torch.from_numpy(np.tanh(h.detach().numpy()))

    return plain(Numpy(), "a")


@entry("dropout by a flag")
def _() -> Case:
    class Flag(Net):
        flag = True

        def middle(self, h: Tensor) -> Tensor:
            return F.dropout(torch.tanh(h), 0.5, self.flag)

    return plain(Flag(), "a", change=setting(lambda m: m, "flag", False), random=True)


@entry("rows of a buffer written one by one")
def _() -> Case:
    class Written(Net):
        def middle(self, h: Tensor) -> Tensor:
            found = torch.zeros(len(h), 2, 8, dtype=h.dtype)
            older = found[:, 0]
            found[:, 0] = h
            found[:, 1] = torch.tanh(self.c(h))
            found[:, 1].mul_(2)
            return older + found.sum(1)

    return plain(Written(c=nn.Linear(8, 8)), "a", "c", layer="c")


@entry("writing through a view of the site")
def _() -> Case:
    class Viewed(Net):
        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            part = h[:, :4]
            part.mul_(2)
            h.relu_()
            return self.b(h) + part.sum(1, keepdim=True)

    return plain(Viewed(), "a")


@entry("a cache as argument")
def _() -> Case:
    class Caching(Net):
        def forward(self, x: Tensor, cache: list[Tensor]) -> Tensor:
            cache.append(torch.tanh(self.a(x)))
            return self.b(torch.stack(cache).sum(0))

    inputs = torch.randn(6, 5), [torch.randn(6, 8)]
    return plain(Caching(), "a", inputs=inputs, rows=False)


@entry("a list as attribute")
def _() -> Case:
    class Listed(Net):
        def middle(self, h: Tensor) -> Tensor:
            return torch.tanh(h) * self.scale[0]

    model = Listed(scale=[torch.linspace(1, 2, 8)])
    change = setting(lambda m: m.scale, 0, torch.linspace(3, -1, 8, dtype=torch.float64))
    return plain(model, "a", change=change)


@entry("a scale in a configuration")
def _() -> Case:
    class Configured(Net):
        def middle(self, h: Tensor) -> Tensor:
            return torch.tanh(h) * self.config.scale

    model = Configured(config=SimpleNamespace(scale=2.0))
    return plain(model, "a", change=setting(lambda m: m.config, "scale", 5.0))


@entry("an activation in a list")
def _() -> Case:
    class Activated(Net):
        def middle(self, h: Tensor) -> Tensor:
            return self.functions[0](h)

    model = Activated(functions=[torch.relu])
    return plain(model, "a", change=setting(lambda m: m.functions, 0, torch.tanh))


@entry("a Parameter used as h @ w")
def _() -> Case:
    class Product(Net):
        def middle(self, h: Tensor) -> Tensor:
            return torch.relu(h @ self.w)

    return plain(Product(w=nn.Parameter(torch.randn(8, 8))), "a")


@entry("a log of what was seen")
def _() -> Case:
    class Logging(Net):
        last = 0.0

        def middle(self, h: Tensor) -> Tensor:
            self.log.append(h)
            self.last = float(h.detach().sum())
            return torch.tanh(h)

    return plain(Logging(log=[]), "a", moves=("log", "last"))
