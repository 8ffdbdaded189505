"""Tiny models of every kind that a graph is read off, with what it is by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from circuits.by_hooks import Spec, after_norm, before_norm, resnet
from torch import Tensor, nn

SMALL = {"initializer_range": 0.3, "vocab_size": 20}
BASE = {"hidden_size": 8, "num_hidden_layers": 2, "intermediate_size": 12, **SMALL}
GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2, **BASE}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": (
        "GPT2LMHeadModel",
        {"n_layer": 2, "n_embd": 8, "n_head": 2, "n_positions": 8, **SMALL},
    ),
    "neox": ("GPTNeoXForCausalLM", {"num_attention_heads": 2, **BASE}),
    "llama": ("LlamaForCausalLM", GROUPED),
    "qwen2": ("Qwen2ForCausalLM", GROUPED),
    "bert": ("BertForSequenceClassification", {"num_attention_heads": 2, "num_labels": 4, **BASE}),
    "vit": (
        "ViTForImageClassification",
        {"num_attention_heads": 2, "image_size": 8, "patch_size": 4, "num_labels": 4, **BASE},
    ),
}
KINDS = (*CONFIGS, "gpt2 eager", "llama eager", "resnet")


@dataclass
class Tiny:
    """A model, two inputs, and its edges by hand."""

    model: nn.Module
    clean: Any
    corrupted: Any
    spec: Spec


def metric(logits: Tensor) -> Tensor:
    """Anything that is no linear function of the logits."""
    weights = torch.linspace(-1, 1, logits.shape[-1], dtype=logits.dtype)
    return (logits * weights + logits.softmax(-1) ** 2).flatten(1).sum(1)


def tiny(kind: str) -> Tiny:
    """Of float64, with weights in place of zeros and ones."""
    torch.manual_seed(0)
    if kind == "resnet":
        torchvision = pytest.importorskip("torchvision")
        model = torchvision.models.resnet18(num_classes=3).double().eval()
        for name, value in model.named_buffers():
            if "running_mean" in name:
                value.normal_(0, 0.3)
        clean, corrupted = torch.randn(2, 2, 3, 16, 16, dtype=torch.float64)
        return Tiny(model, clean, corrupted, resnet(model))
    transformers = pytest.importorskip("transformers")
    name, config = CONFIGS[kind.split()[0]]
    kinds = getattr(transformers, name)
    more = {"attn_implementation": "eager"} if "eager" in kind else {}
    model = kinds(kinds.config_class(**config, **more)).double().eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, parameter.detach().mean().item(), 0.3)
    for module in model.modules():
        if "RMSNorm" in type(module).__name__:  # whose own computes in float32
            module.forward = _rms(module)
    if kind == "vit":
        clean, corrupted = (
            {"pixel_values": torch.randn(3, 3, 8, 8, dtype=torch.float64)} for _ in range(2)
        )
        return Tiny(model, clean, corrupted, before_norm(model, "vit", 2, 2, 2))
    mask = torch.ones(3, 5, dtype=torch.int64)
    mask[0, -2:] = 0
    clean, corrupted = (
        {"input_ids": torch.randint(3, 20, (3, 5)), "attention_mask": mask} for _ in range(2)
    )
    if kind == "bert":
        return Tiny(model, clean, corrupted, after_norm(model, 2, 2))
    shape = "llama" if kind in ("qwen2", "llama eager") else kind.split()[0]
    heads = (4, 2) if shape == "llama" else (2, 2)
    return Tiny(model, clean, corrupted, before_norm(model, shape, *heads, 2))


def _rms(module: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: (
        module.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon))
    )
