"""Tiny models of transformers, from configurations; none where the library is missing."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from network.zoo_case import Case, entry, labels, setting
from torch import Tensor

if find_spec("transformers"):
    import transformers
    from transformers import BatchEncoding

WIDE = {"initializer_range": 0.3, "vocab_size": 20}
SMALL = {"hidden_size": 8, "num_hidden_layers": 2, "intermediate_size": 12, **WIDE}
GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2, **SMALL}


def _tokens(length: int = 5, masked: bool = True) -> dict[str, Tensor]:
    found = {"input_ids": torch.randint(3, 20, (3, length))}
    if masked:
        found["attention_mask"] = torch.ones(3, length, dtype=torch.long)
        found["attention_mask"][0, -2:] = 0
    return found


def _case(
    kind: str, sites: tuple[str, ...], layer: str, inputs: Any, config: dict[str, Any], **more: Any
) -> Case:
    model_class = getattr(transformers, kind)
    model = model_class(model_class.config_class(**config))
    for parameter in model.parameters():
        if parameter.dim() == 1:  # zeros and ones, which hide mistakes
            torch.nn.init.normal_(parameter, parameter.detach().mean().item(), 0.3)
    targets = more.pop("targets", labels(20, 3, 5))
    if any(
        "RMSNorm" in type(m).__name__ or "T5LayerNorm" in type(m).__name__ for m in model.modules()
    ):
        more["dtype"] = torch.float32
    return Case(
        model.to(torch.get_default_dtype()),
        inputs,
        dict.fromkeys(sites, -1),
        targets,
        layer,
        **more,
    )


def _gpt2() -> Case:
    config = {"n_layer": 2, "n_embd": 8, "n_head": 2, "n_positions": 8, **WIDE}
    sites = (
        "transformer.h.0.mlp.act",
        "transformer.h.0.attn",
        "transformer.h.1.attn.c_proj:input",
        "transformer.h.1",
    )
    inputs = BatchEncoding(_tokens())
    return _case("GPT2LMHeadModel", sites, "transformer.h.0.mlp.c_fc", inputs, config)


def _gpt_neox() -> Case:
    config = {"num_attention_heads": 2, "max_position_embeddings": 16, **SMALL}
    sites = (
        "gpt_neox.layers.0.mlp.act",
        "gpt_neox.layers.0.attention[0]",
        "gpt_neox.final_layer_norm",
    )
    layer = "gpt_neox.layers.0.mlp.dense_h_to_4h"
    return _case("GPTNeoXForCausalLM", sites, layer, _tokens(), config)


def _llama() -> Case:
    sites = (
        "model.layers.0.mlp.act_fn",
        "model.layers.0.self_attn[0]",
        "model.layers.0.self_attn.k_proj",
        "model.layers.1.mlp.down_proj:input",
    )

    def change(case: Case) -> None:
        setting(lambda m: m.model.layers[1].mlp, "act_fn", torch.nn.Tanh())(case)

    layer = "model.layers.1.mlp.down_proj"
    return _case("LlamaForCausalLM", sites, layer, _tokens(), GROUPED, change=change)


def _qwen2() -> Case:
    sites = "model.layers.0.mlp.act_fn", "model.layers.1.input_layernorm", "model.norm"
    return _case("Qwen2ForCausalLM", sites, "model.layers.0.mlp.up_proj", _tokens(), GROUPED)


def _bert() -> Case:
    config = {"num_attention_heads": 2, "max_position_embeddings": 16, **SMALL, "num_labels": 4}
    sites = (
        "bert.encoder.layer.0.intermediate",
        "bert.encoder.layer.1.attention.self[0]",
        "bert.embeddings",
    )
    layer, targets = "bert.encoder.layer.0.intermediate.dense", labels(4, 3)
    kind = "BertForSequenceClassification"
    return _case(kind, sites, layer, _tokens(), config, targets=targets)


def _t5() -> Case:
    config = {"num_layers": 2, "d_model": 8, "num_heads": 2, "d_ff": 12, "d_kv": 4, **WIDE}
    config |= {"initializer_factor": 2.0}
    sites = (
        "encoder.block.0.layer.1.DenseReluDense.act",
        "encoder['last_hidden_state']",
        "decoder.block.1.layer.2.DenseReluDense.wi",
    )
    # Its logits are the decoder's, whose length is another than that of the mask.
    inputs = _tokens() | {"decoder_input_ids": torch.randint(3, 20, (3, 4))}
    layer, targets = "decoder.block.1.layer.2.DenseReluDense.wo", labels(20, 3, 4)
    return _case("T5ForConditionalGeneration", sites, layer, inputs, config, targets=targets)


def _vit() -> Case:
    config = {k: v for k, v in SMALL.items() if k != "vocab_size"}
    config |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4, "num_labels": 4}
    sites = "vit.layers.0.mlp.fc1", "vit.embeddings", "classifier:input"
    layer, targets = "vit.layers.0.mlp.fc2", labels(4, 3)
    inputs = torch.randn(3, 3, 8, 8)
    return _case("ViTForImageClassification", sites, layer, inputs, config, targets=targets)


def _mixtral() -> Case:
    sites = "model.layers.0.self_attn[0]", "model.layers.1.mlp", "lm_head:input"
    layer = "model.layers.0.self_attn.o_proj"
    config = {**GROUPED, "num_local_experts": 3, "experts_implementation": "eager"}
    return _case("MixtralForCausalLM", sites, layer, _tokens(), config)


def _mixtral_grouped() -> Case:
    case = _mixtral()
    case.model.float().set_experts_implementation("grouped_mm")
    case.dtype = torch.float32
    return case


def _mamba() -> Case:
    config = {"hidden_size": 8, "num_hidden_layers": 2, "state_size": 4, **WIDE}
    sites = "backbone.layers.0.mixer", "backbone.layers.0.mixer.in_proj", "backbone.norm_f"
    layer = "backbone.layers.0.mixer.in_proj"
    return _case("MambaForCausalLM", sites, layer, _tokens(masked=False), config)


if find_spec("transformers"):
    entry("GPT-2")(_gpt2)
    entry("GPT-NeoX")(_gpt_neox)
    entry("Llama, grouped queries")(_llama)
    entry("Qwen2")(_qwen2)
    entry("BERT")(_bert)
    entry("T5")(_t5)
    entry("ViT")(_vit)
    entry("Mixtral")(_mixtral)
    entry("Mixtral, experts in one call, float32")(_mixtral_grouped)
    entry("Mamba")(_mamba)
