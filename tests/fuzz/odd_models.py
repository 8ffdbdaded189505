"""Models that are odd in themselves, whatever they are run on, beside those of the zoo."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from modfast.models import MLP

ODD: dict[str, Callable[[], Any]] = {}


def odd(name: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    def add(build: Callable[[], Any]) -> Callable[[], Any]:
        ODD[name] = build
        return build

    return add


def _net() -> MLP:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return MLP([5, 6, 6, 3])


def _returning(function: Callable[[Tensor], Any]) -> Callable[[], nn.Module]:
    """A model of the usual layers that makes something else of its logits."""

    class Returning(MLP):
        def forward(self, x: Tensor) -> Any:
            return function(super().forward(x))

    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return Returning([5, 6, 6, 3])

    return build


for _name, _function in {
    "returns None": lambda z: None,
    "returns a string": lambda z: "logits",
    "returns a tuple": lambda z: (z, z),
    "returns a dict": lambda z: {"logits": z},
    "returns a scalar": lambda z: z.sum(),
    "returns a vector": lambda z: z[:, 0],
    "returns no classes": lambda z: z[:, :0],
    "returns one class": lambda z: z[:, :1],
    "returns three dimensions": lambda z: z[:, None],
    "returns integers": lambda z: z.long(),
    "returns complex numbers": lambda z: z + 0j,
    "returns NaN": lambda z: z * torch.nan,
    "returns inf": lambda z: z / 0,
    "returns large numbers": lambda z: z * 1e38,
    "returns half": lambda z: z.half(),
    "returns a constant": lambda z: torch.zeros(3),
    "returns zeros": lambda z: torch.zeros_like(z),
    "returns fewer rows": lambda z: z[1:],
    "returns sparse": lambda z: z.to_sparse(),
    "returns an array": lambda z: z.detach().numpy(),
    "returns meta": lambda z: z.to("meta"),
}.items():
    ODD[_name] = _returning(_function)


@odd("scripted")
def _() -> nn.Module:
    return torch.jit.script(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)))


@odd("traced")
def _() -> nn.Module:
    return torch.jit.trace(_net(), torch.ones(2, 5))


@odd("on meta")
def _() -> nn.Module:
    return _net().to("meta")


@odd("in float64")
def _() -> nn.Module:
    return _net().double()


@odd("in half")
def _() -> nn.Module:
    return _net().half()


@odd("in bfloat16")
def _() -> nn.Module:
    return _net().bfloat16()


@odd("frozen")
def _() -> nn.Module:
    return _net().requires_grad_(False)


@odd("with a NaN")
def _() -> nn.Module:
    model = _net()
    model.fc1.weight.data[0, 0] = torch.nan
    return model


@odd("of zeros")
def _() -> nn.Module:
    model = _net()
    for parameter in model.parameters():
        parameter.data.zero_()
    return model


@odd("a width of zero")
def _() -> nn.Module:
    model = _net()
    model.fc1, model.fc2 = nn.Linear(5, 0), nn.Linear(0, 6)
    return model


@odd("no outputs")
def _() -> nn.Module:
    model = _net()
    model.fc3 = nn.Linear(6, 0)
    return model


@odd("one layer twice")
def _() -> nn.Module:
    model = _net()
    model.act2 = model.act1
    model.fc4 = model.fc3
    return model


@odd("one weight twice")
def _() -> nn.Module:
    model = _net()
    model.extra = nn.Linear(6, 6)
    model.extra.weight = model.fc2.weight
    return model


@odd("sparse weight")
def _() -> nn.Module:
    model = _net()
    model.fc2.weight = nn.Parameter(model.fc2.weight.detach().to_sparse(), requires_grad=False)
    return model


@odd("lazy")
def _() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(6), nn.ReLU(), nn.Linear(6, 3))


@odd("no forward")
def _() -> nn.Module:
    return nn.Module()


@odd("no layers")
def _() -> nn.Module:
    return nn.Sequential()


@odd("identity")
def _() -> nn.Module:
    return nn.Identity()


@odd("a class")
def _() -> Any:
    return MLP


@odd("a list of layers")
def _() -> nn.Module:
    return nn.ModuleList([nn.Linear(5, 3)])


@odd("other widths")
def _() -> nn.Module:
    return MLP([4, 2, 2])


@odd("a convolution")
def _() -> nn.Module:
    return nn.Conv2d(1, 2, 3)


@odd("recurrent")
def _() -> nn.Module:
    return nn.LSTM(5, 6)


@odd("quantized")
def _() -> nn.Module:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(_net(), {nn.Linear})


@odd("in training, with dropout")
def _() -> nn.Module:
    model = _net()
    model.act1 = nn.Dropout(0.5)
    return model.train()


@odd("fails")
def _() -> nn.Module:
    class Fails(MLP):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("the model's own")

    return Fails([5, 6, 6, 3])
