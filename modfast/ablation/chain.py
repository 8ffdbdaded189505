"""Suffixes that are chains, [activation] Linear [activation Linear], read from a traced graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from modfast.ops.ablation import SWEEP_DTYPES
from modfast.reference import ACTIVATIONS


@dataclass(frozen=True)
class Chain:
    """Linear layers, and the name of the activation before each."""

    activations: tuple[str, ...]
    layers: tuple[nn.Linear, ...]

    def outputs(self, value: Tensor, first: int = 0) -> list[Tensor]:
        """What the layers from `first` on return for what comes before it; the logits are last."""
        found = []
        for name, layer in zip(self.activations[first:], self.layers[first:], strict=True):
            # Not the module's call, which looks for hooks: there are none.
            value = functional.linear(ACTIVATIONS[name](value), layer.weight, layer.bias)
            found.append(value)
        return found

    def takes(self, tensor: Tensor) -> bool:
        """Whether the operators know the layers' dtype, and it is the tensor's."""
        dtype = self.layers[0].weight.dtype
        return dtype in SWEEP_DTYPES and tensor.dtype == dtype


_FUNCTIONS = {
    torch.relu: "relu",
    torch.relu_: "relu",
    functional.relu: "relu",
    torch.tanh: "tanh",
    functional.tanh: "tanh",
    torch.sigmoid: "sigmoid",
    functional.sigmoid: "sigmoid",
    functional.silu: "silu",
}
_MODULES: dict[type[nn.Module], str] = {
    nn.Identity: "identity",
    nn.Dropout: "identity",  # in eval mode
    nn.ReLU: "relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.SiLU: "silu",
}


# Of these a channel's outputs hang on that channel alone.
_BY_CHANNEL = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d),
    *(nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
    *(nn.LeakyReLU, nn.ReLU6, nn.ELU, nn.SELU, nn.CELU, nn.Softplus, nn.Hardtanh, nn.Mish),
)
_POOL_FUNCTIONS = (
    functional.max_pool2d,
    functional.avg_pool2d,
    functional.adaptive_avg_pool2d,
    torch.max_pool2d,
)


def by_channel(model: nn.Module, site: fx.Node) -> list[fx.Node]:
    """The nodes that follow a site `[n, channels, h, w]` and take each channel for itself."""
    found: list[fx.Node] = []
    node = site
    while len(node.users) == 1:
        (user,) = node.users
        # Nothing may come in between, which might work on the site in place.
        if user is not node.next or user.args[:1] != (node,) or len(user.all_input_nodes) != 1:
            break
        if not takes_channels_apart(model, user):
            break
        found.append(user)
        node = user
    return found


def takes_channels_apart(model: nn.Module, node: fx.Node) -> bool:
    """Whether each channel of what a node returns hangs on that channel of its input alone."""
    if node.op == "call_function" and node.target in _POOL_FUNCTIONS:
        return True
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        if type(module) in _BY_CHANNEL:
            return not is_changed(module)
    return isinstance(_step(model, node), str)


def read_chain(model: nn.Module, graph: fx.Graph) -> Chain | None:
    """The chain that a suffix's graph is; None where it is something else."""
    steps = read_steps(model, graph)
    return None if steps is None else _chain(steps)


def read_steps(model: nn.Module, graph: fx.Graph) -> list[str | nn.Linear] | None:
    """The activations, by name, and linear layers that a suffix's graph is; None if it is else."""
    site, *others = graph.find_nodes(op="placeholder")
    if others:
        return None
    steps: list[str | nn.Linear] = []
    node, n_seen = site, 1
    while len(node.users) == 1:
        (user,) = node.users
        n_seen += 1
        if user.args[0] is not node:
            return None
        if user.op == "output":
            return steps if n_seen == len(graph.nodes) else None
        step = _step(model, user)
        if step is None:
            return None
        if step != "identity":
            steps.append(step)
        node = user
    return None


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a Linear and nothing else: no subclass, no hooks, no other forward."""
    return type(module) is nn.Linear and not is_changed(module)


def _chain(steps: list[str | nn.Linear]) -> Chain | None:
    """Gives each linear layer the activation before it."""
    activations: list[str] = []
    layers: list[nn.Linear] = []
    before = "identity"
    for step in steps:
        if isinstance(step, nn.Linear):
            activations.append(before)
            layers.append(step)
            before = "identity"
        elif before == "identity":
            before = step
        else:
            return None
    if before != "identity" or not layers:
        return None
    return Chain(tuple(activations), tuple(layers))


def _step(model: nn.Module, node: fx.Node) -> str | nn.Linear | None:
    if node.op == "call_function" and node.target in _FUNCTIONS and not _options(node):
        return _FUNCTIONS[node.target]
    if node.op == "call_function" and node.target is functional.gelu and len(node.args) == 1:
        return "gelu_tanh" if node.kwargs.get("approximate") == "tanh" else "gelu"
    if node.op == "call_method" and node.target in ("relu", "relu_", "tanh", "sigmoid"):
        return str(node.target).rstrip("_")
    if node.op == "call_module":
        return _module_step(model.get_submodule(str(node.target)))
    return None


def _options(node: fx.Node) -> dict[str, Any]:
    return {name: value for name, value in node.kwargs.items() if name != "inplace"}


def is_changed(module: nn.Module) -> bool:
    """Whether a module computes something else than its class does."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    return bool(hooks) or "forward" in module.__dict__


def _module_step(module: nn.Module) -> str | nn.Linear | None:
    # A subclass or a parametrization may compute something else.
    if is_changed(module):
        return None
    if type(module) is nn.Linear:
        return module
    if type(module) is nn.GELU:
        return "gelu_tanh" if module.approximate == "tanh" else "gelu"
    return _MODULES.get(type(module))
