"""Models as they are found, by name."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune


class Net(nn.Module):
    """The three layers that each case makes odd."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        return self.c(self.b(self.a(x).relu()).relu())


class Lora(nn.Linear):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.down = nn.Parameter(torch.randn(2, inputs))
        self.up = nn.Parameter(torch.randn(outputs, 2))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.down.T @ self.up.T


class Squared(nn.Linear):
    """Whose output is not linear in its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight**2, self.bias)


def lora() -> nn.Module:
    model = Net()
    model.b = Lora(6, 6)
    return model


def squared() -> nn.Module:
    model = Net()
    model.b = Squared(6, 6)
    return model


def hooked() -> nn.Module:
    model = Net()
    model.b.register_forward_hook(lambda module, args, output: 2 * output + 1)
    model.b.register_forward_pre_hook(lambda module, args: (args[0] - 0.1,))
    return model


def hook_that_reads_the_weight() -> nn.Module:
    model = Net()
    model.b.register_forward_hook(lambda m, args, output: output * (m.weight != 0).double().mean())
    return model


def patched() -> nn.Module:
    model = Net()
    model.b.forward = lambda x: torch.tanh(functional.linear(x, model.b.weight, model.b.bias))
    return model


class Reused(Net):
    """Whose weight `b` also acts elsewhere, by a view and by a call again."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        return self.c(functional.linear(self.b(h), self.b.weight.t()))


class Loop(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        for _ in range(3):
            h = torch.tanh(self.b(h))
        return self.c(h)


class ByWeight(Net):
    """Whose layer `b` is never called."""

    def forward(self, x: Tensor) -> Tensor:
        return self.c(functional.linear(self.a(x).relu(), self.b.weight))


class Branching(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.b(self.a(x).relu())
        return self.c(h.tanh() if h.mean() > 0 else h.relu())


class Logs(Net):
    """Which keeps what it sees, and returns a dataclass."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[Tensor] = []

    def forward(self, x: Tensor) -> Any:
        self.log.append(self.a(x))
        return SimpleNamespace(logits=super().forward(x))


def with_other_layer(wrap: Callable[[nn.Module], Any]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = Net()
        model.a = wrap(model.a)
        model(torch.randn(3, 5))
        return model

    return make


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(functional.pad(x, (0, 3)).view(-1, 2, 4)).mean(1))


def compiled() -> nn.Module:
    return torch.compile(Net(), backend="eager")  # type: ignore[return-value]


def transposed() -> nn.Module:
    model = Net()
    model.b.weight = nn.Parameter(torch.randn(6, 6).t())
    return model


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 3, 2), nn.Linear(6, 3)
        self.to(memory_format=torch.channels_last)
        with torch.no_grad():
            self.conv.weight.copy_(torch.randn(3, 1, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.pad(x, (0, 1)).view(-1, 1, 2, 3).to(memory_format=torch.channels_last)
        return self.head(
            self.conv(functional.pad(x, (0, 0, 0, 0))).relu().repeat(1, 1, 1, 1).flatten(1)
        )


MODELS: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "plain": (Net, "b", "fused"),
    "lora": (lora, "b", "model"),
    "squared": (squared, "b", "model"),
    "hooks": (hooked, "b", "model"),
    "hook reads the weight": (hook_that_reads_the_weight, "b", "model"),
    "patched": (patched, "b", "model"),
    "reused": (Reused, "b", "model"),
    "loop": (Loop, "b", "model"),
    "by weight": (ByWeight, "b", "model"),
    "branching": (Branching, "b", "model"),
    "logs": (Logs, "b", "fused"),
    "old weight_norm": (with_other_layer(nn.utils.weight_norm), "b", "fused"),
    "weight_norm": (with_other_layer(parametrizations.weight_norm), "b", "fused"),
    "spectral_norm": (with_other_layer(parametrizations.spectral_norm), "b", "fused"),
    "pruned": (
        with_other_layer(lambda each: prune.l1_unstructured(each, "weight", 9)),
        "b",
        "fused",
    ),
    "before a lora": (lora, "a", "replay"),
    "encoder": (Encoder, "layer.linear1", "replay"),
    "transposed": (transposed, "b", "fused"),
    "channels_last": (Conv, "conv", "replay"),
    "compiled": (compiled, "b", "fused"),
}
