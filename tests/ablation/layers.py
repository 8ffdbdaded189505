"""Layers with weights of every kind, and what changing them by hand gives."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from modfast import Clusters


def data(n: int = 300) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 8, generator=generator), torch.randint(0, 5, (n,), generator=generator)


class Lora(nn.Linear):
    def __init__(self) -> None:
        super().__init__(9, 7)
        self.down, self.up = nn.Linear(9, 2), nn.Linear(2, 7)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.up(self.down(x))


class Squashed(nn.Linear):
    """Its output is not linear in its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(3 * (x @ self.weight.T)) + self.bias


def hooked() -> nn.Linear:
    layer = nn.Linear(9, 7)
    layer.register_forward_pre_hook(lambda m, args: (args[0] * 0.5 + 0.1,))
    layer.register_forward_hook(lambda m, args, y: torch.tanh(2 * y))
    return layer


def scaled(layer: nn.Module) -> nn.Module:
    """A parametrization whose parameters are no longer those that it began with."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(1.5)
    return layer


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.Linear(9, 7),
    "pruned": lambda: scaled(prune.l1_unstructured(nn.Linear(9, 7), "weight", amount=30)),
    "old weight norm": lambda: scaled(nn.utils.weight_norm(nn.Linear(9, 7))),
    "old spectral norm": lambda: scaled(nn.utils.spectral_norm(nn.Linear(9, 7))),
    "weight norm": lambda: scaled(parametrizations.weight_norm(nn.Linear(9, 7))),
    "spectral norm": lambda: scaled(parametrizations.spectral_norm(nn.Linear(9, 7))),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(9, 7)),
    "lora": Lora,
    "normed lora": lambda: parametrizations.weight_norm(Lora()),
    "not linear": lambda: Squashed(9, 7),
    "hooked": hooked,
}


def computed(layer: nn.Module, x: Tensor) -> Tensor:
    """The weight of an eval-mode pass, found apart: by the layer's own pass."""
    with torch.no_grad():
        layer.eval()(x)
        return layer.weight.detach().clone()


def layer_output(kind: str, layer: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    if kind == "hooked":
        return torch.tanh(2 * functional.linear(x * 0.5 + 0.1, weight, layer.bias))
    if kind == "not linear":
        return torch.tanh(3 * functional.linear(x, weight)) + layer.bias
    y = functional.linear(x, weight, layer.bias)
    return y + layer.up(layer.down(x)) if "lora" in kind else y


def snapshot(model: nn.Module) -> tuple[object, ...]:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    parts = [
        {name: id(x) for name, x in (*m.__dict__.items(), *m._parameters.items())}
        for m in model.modules()
    ]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    return state, parts, [m.training for m in model.modules()], hooks


def assert_as_before(model: nn.Module, before: tuple[object, ...]) -> None:
    state, *others = before
    after, *others_after = snapshot(model)
    assert isinstance(state, dict)
    assert isinstance(after, dict)
    assert all(torch.equal(after[name], state[name]) for name in state)
    assert others == others_after


def assert_equals_changed_weights(
    found: object, k: int, outputs: Callable[[Tensor], Tensor], whole: Tensor, y: Tensor
) -> None:
    clusters = Clusters.equal(*whole.shape[:2], k)

    def share(weight: Tensor) -> float:
        with torch.no_grad():
            return float((outputs(weight).argmax(-1) == y).double().mean())

    assert found.accuracy == share(whole)
    for cluster in range(k):
        off, on = whole.clone(), whole.clone()
        off[clusters.rows == cluster] = 0
        off[:, clusters.cols == cluster] = 0
        on[clusters.rows != cluster] = 0
        on[:, clusters.cols != cluster] = 0
        assert found.off_accuracy[cluster] == share(off)
        assert found.on_accuracy[cluster] == share(on)
    assert len({*found.off_accuracy.tolist(), float(found.accuracy)}) > 1
