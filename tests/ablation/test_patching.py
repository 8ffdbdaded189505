"""Values, positions and metrics on the architectures of the field, against plain hooks."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from ablation import patched
from torch import Tensor, nn

import modfast
from modfast.metrics import logit_difference

transformers = pytest.importorskip("transformers")

TOKENS = {"vocab_size": 61}
HEADS = 4
WIDTH = 32


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        n_embd=WIDTH, n_layer=2, n_head=HEADS, n_positions=16, **TOKENS
    )
    return transformers.GPT2LMHeadModel(config)


def neox() -> nn.Module:
    config = transformers.GPTNeoXConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS, intermediate_size=48,
        max_position_embeddings=16, **TOKENS,
    )  # fmt: skip
    return transformers.GPTNeoXForCausalLM(config)


def llama() -> nn.Module:
    config = transformers.LlamaConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=16, **TOKENS,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def bert() -> nn.Module:
    config = transformers.BertConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS, intermediate_size=48,
        max_position_embeddings=16, **TOKENS,
    )  # fmt: skip
    return transformers.BertForMaskedLM(config)


def vit() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS, intermediate_size=48,
        image_size=16, patch_size=8, num_labels=7,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def resnet() -> nn.Module:
    torchvision = pytest.importorskip("torchvision")
    return torchvision.models.resnet18(num_classes=7)


# Of each: the input of an attention's output projection or a channel's site, and a neuron's.
MODELS = {
    "GPT-2": (gpt2, "transformer.h.0.attn.c_proj:input", "transformer.h.1.mlp.act"),
    "GPT-NeoX": (neox, "gpt_neox.layers.0.attention.dense:input", "gpt_neox.layers.1.mlp.act"),
    "Llama": (llama, "model.layers.0.self_attn.o_proj:input", "model.layers.1.mlp.down_proj:input"),
    "BERT": (
        bert,
        "bert.encoder.layer.0.attention.output.dense:input",
        "bert.encoder.layer.1.intermediate.intermediate_act_fn",
    ),
    "ViT": (vit, None, None),
    "ResNet-18": (resnet, "layer2.0.bn1", "layer4.1.conv1"),
}


@cache
def case(name: str) -> tuple[nn.Module, Any, Any, list[str], int]:
    """A model, inputs, corrupted inputs, sites and the dimension of their units."""
    make, *sites = MODELS[name]
    torch.manual_seed(0)
    model = make().double().eval()
    if sites[0] is None:  # where they lie depends on the release of transformers
        dense = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
        sites = [
            next(n for n in dense if n.endswith(("attention.output.dense", "o_proj"))) + ":input",
            [n for n in dense if n.endswith(("output.dense", "mlp.fc2"))][-1] + ":input",
        ]
    if name in ("ViT", "ResNet-18"):
        side = 16 if name == "ViT" else 32
        x, other = torch.randn(2, 3, 3, side, side).double()
        return model, x, other, sites, 1 if name == "ResNet-18" else -1
    x, other = torch.randint(0, TOKENS["vocab_size"], (2, 3, 6))
    return model, {"input_ids": x}, {"input_ids": other}, sites, -1


def features(a: Tensor, dim: int) -> Tensor:
    return a.movedim(dim, -1)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["number", "tensor", "own", "mean", "positional-mean", "corrupted",
                                  "corrupted mean", "resample"])  # fmt: skip
def test_every_value(name: str, kind: str) -> None:
    model, x, other, sites, dim = case(name)
    site, units = sites[1], [0, 5, 2]
    here, there = (features(patched.seen(model, each, site), dim) for each in (x, other))
    d = here.shape[-1]
    over = list(range(here.dim() - 1))
    asked: dict[str, Any] = {}
    value: Any
    if kind == "number":
        asked["value"] = value = 0.7
    elif kind == "tensor":
        asked["value"] = value = torch.linspace(-1, 1, d).double()
    elif kind == "own":
        asked["value"], value = patched.seen(model, other, site), there
    elif kind == "mean":
        asked["value"], value = kind, here.mean(over)
    elif kind == "positional-mean":
        asked["value"], value = kind, here.mean(0)
    elif kind == "corrupted":
        asked["corrupted"], value = other, there
    elif kind == "corrupted mean":
        asked |= {"corrupted": other, "value": "mean"}
        value = there.mean(over)
    else:
        asked |= {"value": kind, "seed": 3}
        order = torch.randperm(3, generator=torch.Generator().manual_seed(3))
        taken = torch.empty_like(order)
        taken[order] = order.roll(1)
        assert (taken != torch.arange(3)).all()
        value = here[taken]
    metric = logit_difference(1, torch.tensor([2, 0, 3]))
    found = modfast.ablate_units(model, x, site, units, metric=metric, **asked)
    again = modfast.ablate_units(model, x, site, units, metric=metric, backend="model", **asked)
    before = patched.call(model, x)

    def difference(logits: Tensor) -> Tensor:
        last = logits[:, -1] if logits.dim() == 3 else logits
        return last[:, 1] - last.gather(1, torch.tensor([[2], [0], [3]]))[:, 0]

    for i, unit in enumerate(units):
        after = patched.hooked(model, x, site, patched.put(None, [unit], value, dim))
        wanted = patched.terms(before, after)
        change = (difference(after) - difference(before)).sum()
        for result in (found, again):
            close(result.entropy_difference[i], wanted[0])
            close(result.kl_ablated_original[i], wanted[1])
            close(result.kl_original_ablated[i], wanted[2])
            close(result.total("logit_difference")[i], change)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("name", MODELS)
def test_groups_at_several_sites_and_positions(name: str) -> None:
    model, x, other, sites, dim = case(name)
    before = patched.call(model, x)
    shapes = {site: features(patched.seen(model, x, site), dim).shape for site in sites}
    groups = {site: modfast.heads(shape[-1], HEADS) for site, shape in shapes.items()}
    values = modfast.capture(model, other, sites)
    there = {site: features(patched.seen(model, other, site), dim) for site in sites}
    n = min(int(torch.tensor(shape[1:-1]).prod()) for shape in shapes.values())
    chosen = sorted({0, n - 1})
    found = modfast.ablate_groups(model, x, groups, value=values, positions=chosen)
    assert list(found.sites) == sites
    for site in sites:
        where = torch.zeros(shapes[site][1:-1].numel(), dtype=torch.bool)
        where[chosen] = True
        where = where.reshape(1, *shapes[site][1:-1]).expand(shapes[site][:-1])
        for i, group in enumerate(groups[site]):
            change = patched.put(where, group, there[site], dim)
            wanted = patched.terms(before, patched.hooked(model, x, site, change))
            close(found[site].kl_ablated_original[i], wanted[1])
            close(found[site].entropy_difference[i], wanted[0])
        alone = modfast.ablate_groups(
            model, x, site, groups=groups[site], value=values[site], positions=chosen
        )
        close(alone.kl_original_ablated, found[site].kl_original_ablated)


@pytest.mark.parametrize("name", ["GPT-2", "Llama", "ViT", "ResNet-18"])
@pytest.mark.parametrize("what", ["units", "groups", "directions"])
def test_each_position(name: str, what: str) -> None:
    model, x, _, sites, dim = case(name)
    site = sites[1]
    before = patched.call(model, x)
    shape = features(patched.seen(model, x, site), dim).shape
    positions = shape[1:-1].numel()
    kwargs: dict[str, Any] = {"positions": "each"}
    if what == "units":
        found = modfast.ablate_units(model, x, site, [3, 1], value=0.5, **kwargs)
        changes = [patched.put, [3], 0.5], [patched.put, [1], 0.5]
    elif what == "groups":
        found = modfast.ablate_groups(model, x, site, [[0, 4], [2]], **kwargs)
        changes = [patched.put, [0, 4], 0.0], [patched.put, [2], 0.0]
    else:
        eye = torch.eye(shape[-1]).double()
        found = modfast.ablate_directions(model, x, site, 2 * eye[[4, 0]], value=0.5, **kwargs)
        changes = [patched.put, [4], 0.5], [patched.put, [0], 0.5]
    grid = found.grid() * found.n_samples
    assert grid.shape == (2, positions)
    for i, (put, units, value) in enumerate(changes):
        for p in {0, positions // 2, positions - 1}:
            where = torch.zeros(positions, dtype=torch.bool)
            where[p] = True
            where = where.reshape(1, *shape[1:-1]).expand(shape[:-1])
            after = patched.hooked(model, x, site, put(where, units, value, dim))
            close(grid[i, p], patched.terms(before, after)[1])
