"""Which parameters of a network are weights, where their outputs and inputs lie, and their values.

Rows are outputs and columns are inputs, as in torch.nn.Linear; a convolution's kernel positions
all belong to their input channel. transformers' Conv1D and the transposed convolutions keep inputs
first.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from modfast import checks
from modfast.network.names import in_mode

__all__ = [
    "current_weight",
    "has_weight",
    "hidden_weights",
    "input_first",
    "is_plain",
    "plain_layer",
    "require_dense",
    "require_matrix",
    "shows_attention",
    "weight_of",
]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def has_weight(module: nn.Module) -> bool:
    """Whether the module's weight joins outputs to inputs, so that it can have clusters.

    Example:
        >>> has_weight(nn.Linear(3, 2)), has_weight(nn.Embedding(3, 2))
        (True, False)
    """
    return isinstance(module, (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)) or _is_conv1d(module)


def input_first(module: nn.Module) -> bool:
    """Whether dimension 0 of the module's weight runs over inputs rather than outputs.

    Example:
        >>> input_first(nn.ConvTranspose1d(3, 2, 1)), input_first(nn.Conv1d(3, 2, 1))
        (True, False)
    """
    return isinstance(module, _TRANSPOSED) or _is_conv1d(module)


def require_dense(what: str, weight: Tensor) -> None:
    """Refuses a tensor that has no values at every place.

    Raises:
        ValueError: it is lazy, on the meta device, sparse or nested.
    """
    if is_lazy(weight) or weight.is_meta or weight.layout != torch.strided or weight.is_nested:
        kind = "lazy" if is_lazy(weight) else "meta" if weight.is_meta else "sparse or nested"
        raise ValueError(f"{what} must be a dense tensor that holds values, got a {kind} one")


def _is_conv1d(module: nn.Module) -> bool:
    # transformers' class, told by its look so that transformers need not be installed.
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def weight_of(module: nn.Module, name: str) -> Tensor:
    """The `current_weight` of a module that `has_weight`, checked.

    Args:
        module: the layer.
        name: its name, for messages.

    Raises:
        TypeError: a weight that is not of real floating values (an 8-bit one).
        ValueError: a grouped convolution, whose columns mean other inputs in each group; a lazy,
            sparse or meta weight; entries that are not finite; what `current_weight` refuses.

    Example:
        >>> weight_of(nn.Conv1d(3, 2, 5), "conv").shape
        torch.Size([2, 3, 5])
    """
    if getattr(module, "groups", 1) != 1:
        raise ValueError(f"layer {name!r} must not be a grouped convolution, got {module}")
    weight = current_weight(module, name)
    what = f"the weight of {name!r}"
    if not weight.is_floating_point():
        raise TypeError(f"{what} must be a floating tensor, got {weight.dtype}")
    require_dense(what, weight)
    if type(weight) in (Tensor, nn.Parameter):  # others are checked by those who can read them
        checks.finite(what, weight.detach())
    return weight


def current_weight(module: nn.Module, name: str = "module") -> Tensor:
    """The weight that the module's next forward pass in eval mode computes with.

    A parametrization (`torch.nn.utils.parametrizations`) is computed; so is what the pre-hooks of
    `torch.nn.utils.prune`, the old `weight_norm` and `spectral_norm` compute before each pass:
    `module.weight` then is the last pass's. Buffers such as spectral norm's vectors are not moved,
    in train mode either, and autocast has no say. A layer that adds to its weight in its forward,
    as LoRA's do, has the weight that it calls `weight`: the base weight.

    Args:
        module: has a `weight`.
        name: how messages call it.

    Returns:
        The weight itself where it is a parameter; else a tensor computed from the parameters
        behind it, through which gradients reach them.

    Raises:
        ValueError: a weight that a forward pre-hook of an unknown kind computes.

    Example:
        >>> from torch.nn.utils import prune
        >>> layer = prune.l1_unstructured(nn.Linear(3, 2), "weight", amount=4)
        >>> with torch.no_grad():
        ...     _ = layer.weight_orig.fill_(1.0)
        >>> current_weight(layer).sum()
        tensor(2., grad_fn=<SumBackward0>)
    """
    parametrizations = module._modules.get("parametrizations")
    if isinstance(parametrizations, nn.ModuleDict) and "weight" in parametrizations:
        return _parametrized(parametrizations["weight"])
    weight: Tensor = module.weight  # type: ignore[assignment]
    if not module._forward_pre_hooks or "weight" not in module.__dict__:
        return weight
    # Torch's own three have one of these; a hook of the kind that many networks write, the first.
    hooks = module._forward_pre_hooks.values()
    known = [h for h in hooks if hasattr(h, "compute_weight") or hasattr(h, "apply_mask")]
    if known:
        return _recomputed(module, known)
    if weight.grad_fn is not None:
        raise ValueError(
            f"the weight of {name!r} must be a parameter, a parametrization or computed by a hook "
            "of torch.nn.utils, got one of the last pass; register a parametrization instead "
            "(torch.nn.utils.parametrize)"
        )
    return weight


def _parametrized(computed: nn.Module) -> Tensor:
    # On copies of the buffers: a parametrization may move its own in any mode.
    copies = {name: buffer.clone() for name, buffer in computed.named_buffers()}
    with in_mode(computed, training=False), _without_autocast(computed):
        weight: Tensor = torch.func.functional_call(computed, copies, ())
    return weight


def _recomputed(module: nn.Module, hooks: list[Any]) -> Tensor:
    """What the hooks make of the weight, on a stand-in that holds all that they read."""
    # Copies of buffers again: the next training pass moves spectral norm's in place, which a
    # gradient of this weight still needs.
    buffers = {name: None if b is None else b.clone() for name, b in module._buffers.items()}
    stand_in = SimpleNamespace(**{**module.__dict__, **module._parameters, **buffers})
    stand_in.training = False
    with _without_autocast(module):
        for hook in hooks:
            hook(stand_in, None)
    weight: Tensor = stand_in.weight
    return weight


def _without_autocast(module: nn.Module) -> torch.autocast:
    device = next(module.parameters(), torch.empty(0)).device
    return torch.autocast(device.type, enabled=False)


def _kind(module: nn.Module) -> type[nn.Module]:
    """The class, torch's own or transformers', that a module that `has_weight` is of."""
    kinds = (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)
    return next(kind for kind in type(module).__mro__ if kind in kinds or kind.__name__ == "Conv1D")


def is_plain(module: nn.Module) -> bool:
    """Whether a layer runs its class's own forward pass, and nothing that a subclass added.

    Example:
        >>> is_plain(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)))
        True
    """
    kind = _kind(module)
    return "forward" not in module.__dict__ and all(
        getattr(type(module), name, None) is getattr(kind, name, None)
        for name in ("forward", "_conv_forward")
    )


def plain_layer(module: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A layer with a module's options, of no more than a weight and a bias, and without hooks.

    Its `forward` is to be called, as it shares the module's other attributes.

    Example:
        >>> conv = nn.Conv1d(1, 1, 2)
        >>> plain_layer(conv, torch.ones(1, 1, 2), None).forward(torch.ones(1, 1, 3))
        tensor([[[2., 2.]]])
    """
    kind = _kind(module)
    alone = kind.__new__(kind)
    own = {name: x for name, x in module.__dict__.items() if name not in ("weight", "bias")}
    alone.__dict__.update(own)
    alone.__dict__["_parameters"] = {"weight": weight, "bias": bias}
    return alone


_EMBEDDING = re.compile(
    r"embed|(^|_)emb(_|\d|$)|^(wte|wpe|shared|pos|position.*|token.*|cls|W_E|W_pos)$|relative_att"
)
_HEAD = re.compile(r"(^|_)(head|logits|classifier)$|^(score|qa_outputs|predictions|W_U)$")
_ATTENTION = re.compile(
    r"attn|att(ention)?$|^(q_(proj|lin)|(to_)?qkv|query|wq|in_proj_weight|W_Q)$",
    re.IGNORECASE,
)
_MLP = re.compile(
    r"mlp|ffn?$|^ffn_output$|feed_?forward|^DenseReluDense$|^(intermediate|output|c_fc)$"
    r"|^(fc|lin|linear)_?\d$|experts?$|moe$",
    re.IGNORECASE,
)
# Read in gates, or added to another weight.
_OTHER = re.compile(r"^weight_(ih|hh|hr)_l\d|^lora_|^A_log$")
_RECOMPUTED = re.compile(r"^(parametrizations|weight_(orig|g|v))$")


def shows_attention(names: Iterable[str]) -> bool:
    """Whether names of parameters are those of a transformer.

    Example:
        >>> shows_attention(["h.0.attn.c_proj.weight"]), shows_attention(["fc1.weight"])
        (True, False)
    """
    return any(_is(_ATTENTION, name) for name in names)


def hidden_weights(parameters: Mapping[str, Tensor], named: bool = True) -> list[str]:
    """The names of the hidden weights: those that are trained into clusters unless one says which.

    - Where names show attention: the weights of the blocks' MLPs.
    - Else: every two-dimensional one but the first and the last. An embedding or recurrent layer
      is a first one, what is named as a head the last.

    Args:
        parameters: by name, as `dict(model.named_parameters())`, in which tied weights are once.
        named: whether the names say anything.

    Raises:
        ValueError: none, or names and sizes do not tell which; a weight that is recomputed in each
            pass (`require_matrix`).

    Example:
        >>> block = nn.TransformerEncoderLayer(8, 2, 16)
        >>> hidden_weights(dict(nn.Sequential(block, block).named_parameters()))
        ['0.linear1.weight', '0.linear2.weight']
    """
    matrices = {name: p for name, p in parameters.items() if p.dim() == 2}
    transformer = named and shows_attention(parameters)
    if transformer:
        rest = (_ATTENTION, _EMBEDDING, _HEAD, _OTHER)
        found = [n for n in matrices if _is(_MLP, n) and not any(_is(each, n) for each in rest)]
        found = [name for name in found if not _is_router(name, parameters)]
        # A pooler or a head of several layers stands outside the numbered blocks.
        picked = [n for n in found if re.search(r"(^|\.)\d+\.", n)] or found
    else:
        first = [n for n in matrices if named and (_is(_EMBEDDING, n) or _is(_OTHER, n))]
        heads = [n for n in matrices if named and _HEAD.search(_layer(n).rpartition(".")[2])]
        body = [name for name in matrices if name not in (*first, *heads)]
        picked = body[0 if first else 1 : None if heads else -1]
    if not picked:
        which = (
            "the 2-D weights of a transformer's MLPs, but params has none that is named so (and "
            "experts in one stacked weight cannot be taken)"
            if transformer
            else "every hidden 2-D weight, all but the first and the last, "
            f"but params has only {len(matrices)} 2-D weights"
        )
        raise ValueError(f"layers=None takes {which}; name the layers instead")
    for name in picked:
        require_matrix(name, parameters[name])
    if not transformer and not _is_chain([matrices[name] for name in body]):
        names = "" if named else "pass model.named_parameters() as params, or "
        raise ValueError(
            "layers=None takes the hidden ones of 2-D weights of which each reads what the one "
            f"before it gives, got others; {names}name the layers instead"
        )
    return picked


def require_matrix(name: str, parameter: Tensor) -> None:
    """Refuses a named parameter of which dimension 0 by the others is no weight's matrix.

    Raises:
        ValueError: a parameter behind a weight that each pass computes anew; stacked matrices, as
            of experts `[experts, out, in]`.
    """
    if _is(_RECOMPUTED, name):
        raise ValueError(
            f"parameter {name!r} must be a weight itself, got one from which the layer computes "
            "its weight in each pass; use ClusterabilityLoss, which reads it as computed"
        )
    if parameter.dim() == 3 and (_is(re.compile("experts?$"), name) or _stacked(name)):
        raise ValueError(
            f"parameter {name!r} must be one weight, got stacked ones of shape "
            f"{tuple(parameter.shape)}; leave it out of layers"
        )


def _layer(name: str) -> str:
    return name.removesuffix(".weight")


def _is(kind: re.Pattern[str], name: str) -> bool:
    return any(kind.search(part) for part in name.split("."))


def _stacked(name: str) -> bool:
    # Three dimensions are a one-dimensional convolution's too, which torch calls weight.
    return name.rpartition(".")[2] != "weight" and not name.isdigit()


def _is_router(name: str, names: Mapping[str, Tensor]) -> bool:
    """Whether a weight chooses among experts: a gate beside them."""
    block, _, last = _layer(name).rpartition(".")
    beside = any(other.startswith(f"{block}.experts.") for other in names)
    return last == "router" or (beside and re.search(r"(^|_)gate$", last) is not None)


def _is_chain(matrices: list[Tensor]) -> bool:
    """Whether each takes what the one before it gives, outputs first or inputs first."""
    sizes = [tuple(each.shape) for each in matrices]
    pairs = list(itertools.pairwise(sizes))
    return all(a[0] == b[1] for a, b in pairs) or all(a[1] == b[0] for a, b in pairs)
