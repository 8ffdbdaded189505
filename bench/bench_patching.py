"""Patching, heads, any metric and every unit at once: GPT-2 small against plain hooks.

Both sides measure the same: the three divergences, and a metric where there is one. A sweep over
thousands of units takes minutes, and the loop hours; so each side does a part of the units, and
times are told for as many as modfast does. The loop's original logits are given to it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hooks import LOOP, gpt2, hook, loop, memory, put, tokens
from timing import Compare
from torch import Tensor, nn

import modfast
from modfast.metrics import logit_difference

pytest.importorskip("transformers")

LAYERS, WIDTH, HEADS = 12, 768, 12
NEURONS = [f"transformer.h.{layer}.mlp.act" for layer in range(LAYERS)]
PROJECTIONS = [f"transformer.h.{layer}.attn.c_proj:input" for layer in range(LAYERS)]
TERMS = ("kl_ablated_original", "entropy_difference", "kl_original_ablated")


def assert_close(found: Tensor, wanted: Tensor, tolerance: float = 1e-2) -> None:
    """Relative to the largest of each measure: the logits are float32."""
    error = (found.double() - wanted.double()).abs().amax(-1)
    assert (error <= tolerance * wanted.double().abs().amax(-1)).all(), (found, wanted)


def of(result: modfast.AblationResult, *more: str) -> Tensor:
    return torch.stack([result.total(name) for name in (*TERMS, *more)])


def difference(logits: Tensor) -> Tensor:
    return logits[:, -1, 5] - logits[:, -1, 7]


@torch.no_grad()
def seen(model: nn.Module, inputs: dict[str, Any], sites: list[str]) -> dict[str, Tensor]:
    """What is at the sites, and under "" the logits, in one run with hooks."""
    found: dict[str, Tensor] = {}

    def note(site: str, value: Tensor) -> Tensor:
        found[site] = value
        return value

    handles = [hook(model, site, lambda a, site=site: note(site, a)) for site in sites]
    found[""] = model(**inputs).logits
    for handle in handles:
        handle.remove()
    return found


def test_heads(compare: Compare) -> None:
    """All 144, each set to its mean: prefixes are shared, which halves the layers that run."""
    model, inputs = gpt2(), {"input_ids": tokens(8, 32), "logits_to_keep": 1}
    groups = modfast.heads(WIDTH, HEADS)

    def by_hooks(layers: range = range(LAYERS), exact: bool = False) -> Tensor:
        sites = [PROJECTIONS[layer] for layer in layers]
        values = seen(model, inputs, sites)
        means = {site: values[site].flatten(0, 1).mean(0) for site in sites}
        each = (
            (site, put(part := slice(64 * head, 64 * head + 64), means[site][part]))
            for site in sites
            for head in range(HEADS)
        )
        return loop(model, inputs, each, values[""], difference, exact)

    def ours(sites: list[str] = PROJECTIONS) -> Tensor:
        metric = logit_difference(5, 7)
        found = modfast.ablate_groups(
            model, inputs, sites, groups, value="mean", metric=metric, progress=False
        )
        return torch.cat([of(each, "logit_difference") for each in found.sites.values()], 1)

    assert_close(ours(PROJECTIONS[10:]), by_hooks(range(10, LAYERS), exact=True))
    compare(
        "GPT-2 small, 8 x 32 tokens: its 144 heads mean-ablated, logit difference at the end",
        {"modfast": ours, LOOP: by_hooks},
        {LOOP: 1.7},
        rounds=3,
        warm=False,
    )


# site -> units of modfast's and of the loop's, least ratio; with logits at the last token, and all
NEURON_SWEEPS = {
    (6, True): (32, 8, 2.2),
    (11, True): (512, 8, 40.0),
    (0, False): (16, 4, 1.0),
    (6, False): (16, 4, 1 / 0.7),
    (11, False): (24, 4, 1 / 0.45),
}


def neurons(
    way: str, layer: int, last: bool, units: int, exact: bool = False, **config: Any
) -> Callable[[], Tensor]:
    """A sweep over some neurons, by modfast or a loop of hooks."""
    model, inputs = (
        gpt2(**config),
        {"input_ids": tokens(8, 64)} | ({"logits_to_keep": 1} if last else {}),
    )
    with torch.no_grad():
        before = model(**inputs).logits
    if way == LOOP:
        each = [(NEURONS[layer], put([i], 0)) for i in range(units)]
        return lambda: loop(model, inputs, each, before, exact=exact)
    return lambda: of(
        modfast.ablate_units(model, inputs, NEURONS[layer], range(units), progress=False)
    )


@pytest.mark.parametrize(("layer", "last"), NEURON_SWEEPS)
def test_neurons(compare: Compare, layer: int, last: bool) -> None:
    ours, theirs, least = NEURON_SWEEPS[layer, last]
    by_hooks, by_us = neurons(LOOP, layer, last, theirs), neurons("", layer, last, ours)
    assert_close(by_us()[:, :theirs], neurons(LOOP, layer, last, theirs, exact=True)())
    kept = "at the last token" if last else "at all tokens"
    compare(
        f"GPT-2 small, 8 x 64 tokens, logits {kept}: {ours} of 3072 neurons of layer {layer}",
        {"modfast": by_us, LOOP: by_hooks},
        {LOOP: least},
        rounds=3,
        parts={LOOP: theirs / ours},
        warm=False,
    )


def measured(way: str, layer: int, last: bool, units: int) -> Callable[[], Tensor]:
    """The same, after a small one: what is imported at the first call is no memory of a sweep."""
    neurons(way, 0, last, 2, n_embd=12, n_layer=2)()
    return neurons(way, layer, last, units)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is told in KiB on Linux")
@pytest.mark.parametrize(("layer", "last"), NEURON_SWEEPS)
def test_memory(layer: int, last: bool) -> None:
    """At most 1.3 times what the loop takes beyond the model."""
    ours, theirs, _ = NEURON_SWEEPS[layer, last]
    by_hooks = memory(measured, LOOP, layer, last, theirs)
    by_us = memory(measured, "", layer, last, ours)
    assert by_us <= 1.3 * by_hooks, (by_us, by_hooks)


def test_attribution(compare: Compare) -> None:
    """Of all neurons and heads, against what it must take: two forward passes and a backward."""
    model, inputs = gpt2(), {"input_ids": tokens(8, 64), "logits_to_keep": 1}
    sites = [*NEURONS, *PROJECTIONS]
    groups = dict.fromkeys(NEURONS) | dict.fromkeys(PROJECTIONS, modfast.heads(WIDTH, HEADS))

    def ours() -> modfast.UnitScores:
        metric = logit_difference(5, 7)
        return modfast.attribute_units(
            model, inputs, sites, value="mean", metric=metric, groups=groups
        )

    def least() -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        """The activations' own run, and gradients of a second for all of them."""
        values = seen(model, inputs, sites)
        with torch.enable_grad():
            again: dict[str, Tensor] = {}

            def note(site: str, value: Tensor) -> Tensor:
                again[site] = value
                return value

            handles = [hook(model, site, lambda a, site=site: note(site, a)) for site in sites]
            total = difference(model(**inputs).logits).sum()
            for handle in handles:
                handle.remove()
            return values, torch.autograd.grad(total, list(again.values()))

    def backward() -> None:
        """The same with the parameters' gradients, as `backward()` gives them."""
        seen(model, inputs, sites)
        with torch.enable_grad():
            difference(model(**inputs).logits).sum().backward()
        model.zero_grad()

    scores, (values, slopes) = ours().scores, least()
    order = [site for layer in zip(PROJECTIONS, NEURONS, strict=True) for site in layer]
    for site, slope in zip(order, slopes, strict=True):
        value = values[site]
        wanted = (slope * (value.flatten(0, 1).mean(0) - value)).sum((0, 1))
        if site in PROJECTIONS:
            wanted = wanted.unflatten(0, (HEADS, -1)).sum(1)
        assert_close(scores[site], wanted, 1e-3)
    compare(
        "GPT-2 small, 8 x 64 tokens: estimates for its 36,864 neurons and 144 heads",
        {"modfast": ours, "two forwards, a backward": backward, "gradients at sites only": least},
        {"two forwards, a backward": 1 / 1.4, "gradients at sites only": 1 / 1.4},
        rounds=5,
    )


def test_resnet(compare: Compare) -> None:
    """All channels of a ResNet-18's last stage, against a cut by hand that pools once."""
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model, x = torchvision.models.resnet18().eval(), torch.randn(64, 3, 224, 224)
    body = nn.Sequential(*list(model.children())[:-2])

    @torch.no_grad()
    def by_hand() -> Tensor:
        pooled = body(x).mean((2, 3))
        logits, weight = model.fc(pooled), model.fc.weight
        log_p = logits.log_softmax(-1)
        p, entropy = log_p.exp(), -(log_p.exp() * log_p).sum()
        found = []
        for i in range(512):
            log_q = (logits - pooled[:, i : i + 1] * weight[:, i]).log_softmax(-1)
            q, gap = log_q.exp(), log_q - log_p
            each = (q * gap).sum(), entropy + (q * log_q).sum(), -(p * gap).sum()
            found.append(torch.stack(each))
        return torch.stack(found, 1)

    def ours() -> Tensor:
        return of(modfast.ablate_units(model, x, "layer4", progress=False))

    assert_close(ours(), by_hand())
    compare(
        "ResNet-18, 64 images of 224 x 224: the 512 channels of layer4",
        {"modfast": ours, "cut by hand": by_hand},
        {"cut by hand": 1 / 1.3},
        rounds=3,
    )
