"""Heads patched and neurons attributed, beside TransformerLens and captum on the same work."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hooks import gpt2, tokens
from timing import Compare
from torch import Tensor

import modfast
from modfast.metrics import logit_difference

pytest.importorskip("transformers")

LAYERS, WIDTH, HEADS, VOCABULARY = 4, 128, 4, 500
TINY: dict[str, Any] = {
    "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64, "vocab_size": VOCABULARY
}  # fmt: skip
PROJECTIONS = [f"transformer.h.{layer}.attn.c_proj:input" for layer in range(LAYERS)]
NEURONS = [f"transformer.h.{layer}.mlp.act" for layer in range(LAYERS)]
LENS, CAPTUM = "TransformerLens", "captum"


def difference(logits: Tensor) -> Tensor:
    return logits[:, -1, 5] - logits[:, -1, 7]


@pytest.mark.short
def test_transformer_lens(compare: Compare) -> None:
    """Each head patched from another run, as `get_act_patch_attn_head_out_all_pos` does it."""
    lens = pytest.importorskip("transformer_lens")
    from tokenizers import Tokenizer, models
    from transformer_lens import patching
    from transformers import PreTrainedTokenizerFast

    model, (clean, corrupted) = gpt2(**TINY), tokens(16, 32, VOCABULARY).split(8)
    # It asks for one, and would download GPT-2's.
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"?": 0}, "?")), eos_token="?", pad_token="?"
    )
    bridge = lens.TransformerBridge.boot_transformers(
        "gpt2", hf_model=copy.deepcopy(model), tokenizer=tokenizer
    ).eval()

    @torch.no_grad()
    def theirs() -> Tensor:
        _, cache = bridge.run_with_cache(clean)
        found = patching.get_act_patch_attn_head_out_all_pos(
            bridge, corrupted, cache, lambda logits: difference(logits).mean()
        )
        return found - difference(bridge(corrupted)).mean()

    def ours() -> Tensor:
        found = modfast.ablate_groups(
            model,
            {"input_ids": corrupted},
            PROJECTIONS,
            groups=modfast.heads(WIDTH, HEADS),
            corrupted={"input_ids": clean},
            metric=logit_difference(5, 7),
            progress=False,
        )
        return torch.stack([each.mean("logit_difference") for each in found.sites.values()])

    torch.testing.assert_close(ours(), theirs().double(), rtol=1e-4, atol=1e-6)
    compare(
        "each of 16 heads patched, GPT-2 of 4 layers, 8 x 32 tokens",
        {"modfast": ours, LENS: theirs},
        {LENS: 1.0},
        rounds=5,
        block=1.0,
    )


@pytest.mark.short
def test_captum(compare: Compare) -> None:
    """Gradient times activation of all neurons, as `LayerGradientXActivation` does it."""
    attr = pytest.importorskip("captum.attr")
    model, ids = gpt2(**TINY), tokens(8, 32, VOCABULARY)
    layers = [model.get_submodule(site) for site in NEURONS]
    method = attr.LayerGradientXActivation(
        lambda ids: difference(model(input_ids=ids).logits), layers
    )

    @torch.enable_grad()
    def theirs() -> list[Tensor]:
        return [each.sum((0, 1)) for each in method.attribute(ids)]

    def ours() -> list[Tensor]:
        found = modfast.attribute_units(
            model, {"input_ids": ids}, NEURONS, metric=logit_difference(5, 7)
        )
        return list(found.scores.values())

    for our, their in zip(ours(), theirs(), strict=True):
        torch.testing.assert_close(-our, their.double(), rtol=1e-3, atol=1e-6)
    compare(
        "estimates for all 2048 neurons of GPT-2 of 4 layers, 8 x 32 tokens",
        {"modfast": ours, CAPTUM: theirs},
        {CAPTUM: 1.0},
    )


@pytest.mark.short
def test_captum_neurons(compare: Compare) -> None:
    """Each neuron of a layer set to 0, as `LayerFeatureAblation` does it."""
    attr = pytest.importorskip("captum.attr")
    model, ids, site = gpt2(**TINY), tokens(8, 32, VOCABULARY), NEURONS[2]
    units, few = 4 * WIDTH, 32
    mask = torch.full((1, 1, units), few)
    mask[..., :few] = torch.arange(few)
    method = attr.LayerFeatureAblation(
        lambda ids: difference(model(input_ids=ids).logits), model.get_submodule(site)
    )

    @torch.no_grad()
    def theirs() -> Tensor:
        # What it gives is the original less the ablated, the same at each of a unit's positions.
        return -method.attribute(ids, layer_mask=mask)[:, 0, :few].sum(0)

    def ours() -> Tensor:
        return modfast.ablate_units(
            model,
            {"input_ids": ids},
            site,
            range(few),
            metric=logit_difference(5, 7),
            progress=False,
        ).total("logit_difference")

    torch.testing.assert_close(ours(), theirs().double(), rtol=1e-3, atol=1e-5)
    compare(
        f"{few} neurons of layer 2 set to 0, GPT-2 of 4 layers, 8 x 32 tokens",
        {"modfast": ours, CAPTUM: theirs},
        {CAPTUM: 1.0},
        rounds=5,
        block=1.0,
    )
