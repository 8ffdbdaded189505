"""Loss and gradients of an MLP, written out: what autograd does for it, without autograd.

For networks as small as the notebooks' the graph costs twice the arithmetic.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from modfast.models import MLP


def covers(model: nn.Module) -> bool:
    """Whether `DirectMLP` does for a model exactly what a call and backward would."""
    return (
        type(model) is MLP
        and not torch.is_autocast_enabled(next(model.parameters()).device.type)
        and all(p.requires_grad for p in model.parameters())
        and all(type(m) in (MLP, nn.Linear, nn.ReLU) and not _hooked(m) for m in model.modules())
    )


def _hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


class DirectMLP:
    """Sets the gradients of an MLP's parameters and returns the loss.

    Cross-entropy for integer targets, mean squared error for real ones.
    """

    def __init__(self, model: MLP) -> None:
        self._layers = [module for module in model.children() if isinstance(module, nn.Linear)]

    @torch.no_grad()
    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """The mean loss over samples x `[n, ...]` with targets y."""
        outputs, inputs = x.flatten(1), list[Tensor]()
        for layer in self._layers:
            # All but the first input are outputs of a layer, to be rectified.
            inputs.append(outputs.relu_() if inputs else outputs)
            outputs = functional.linear(inputs[-1], layer.weight, layer.bias)
        loss, grad = _squares(outputs, y) if y.is_floating_point() else _entropy(outputs, y)
        for i in reversed(range(len(self._layers))):
            layer = self._layers[i]
            layer.weight.grad = grad.t() @ inputs[i]
            if layer.bias is not None:
                layer.bias.grad = grad.sum(0)
            if i > 0:
                grad = torch.ops.aten.threshold_backward(grad @ layer.weight, inputs[i], 0)
        return loss


def _entropy(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy, and its gradient (softmax - one-hot) / n."""
    log_p = functional.log_softmax(logits, 1)
    grad = log_p.exp()
    grad.scatter_add_(1, y[:, None], grad.new_full((len(y), 1), -1.0))
    return functional.nll_loss(log_p, y), grad.div_(len(y))


def _squares(outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared error, and its gradient."""
    difference = outputs - y
    return difference.square().mean(), difference.mul_(2 / y.numel())
