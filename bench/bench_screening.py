"""All neurons of a GPT that was trained on text, exactly and screened by an estimate.

The text is what every Python installation has: the sources of its standard library, byte by byte.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest
import torch
from hooks import gpt2
from timing import Compare
from torch import Tensor, nn
from torch.nn import functional

import modfast

pytest.importorskip("transformers")

WIDTH, NEURONS, LAYERS, LENGTH = 96, 1280, 4, 64
STEPS, K = 300, 50
SITES = [f"transformer.h.{layer}.mlp.act" for layer in range(LAYERS)]
EVERY = "every neuron"
SHARE = 20  # of the full sweep, timed beside: all of it takes a minute


def text() -> Tensor:
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    data = b"".join(file.read_bytes() for file in files)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).long()


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor]:
    """The model, about 2.4 nats a byte, and 8 parts of the tenth of the text that it never saw."""
    data = text()
    n = len(data) * 9 // 10
    model = gpt2(
        vocab_size=256, n_positions=LENGTH, n_embd=WIDTH, n_inner=NEURONS, n_layer=LAYERS, n_head=4,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, betas=(0.9, 0.95), weight_decay=0.05)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS, pct_start=0.1)
    generator = torch.Generator().manual_seed(0)
    with torch.enable_grad():
        for _ in range(STEPS):
            first = torch.randint(0, n - LENGTH - 1, (8, 1), generator=generator)
            x = data[first + torch.arange(LENGTH + 1)]
            logits = model(x[:, :-1]).logits
            loss = functional.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
    assert loss < 3.0, f"trained badly: {loss}"
    first = torch.randint(n, len(data) - LENGTH, (8, 1), generator=generator)
    return model.requires_grad_(True), data[first + torch.arange(LENGTH)]


def recall(found: Tensor, exact: Tensor) -> int:
    """How many of the K largest exact values are among the K that were found."""
    return len(set(exact.topk(K).indices.tolist()) & set(found.tolist()))


@pytest.mark.parametrize("value", [0.0, "mean"])
def test_screening(compare: Compare, trained: tuple[nn.Module, Tensor], value: float | str) -> None:
    model, x = trained
    inputs = {"input_ids": x}

    def ours() -> modfast.SiteAblations:
        return modfast.ablate_units(model, inputs, SITES, value=value, screen=K, progress=False)

    def part() -> modfast.SiteAblations:
        units = dict.fromkeys(SITES, range(0, NEURONS, SHARE))
        return modfast.ablate_units(model, inputs, units, value=value, progress=False)

    exact = modfast.ablate_units(model, inputs, SITES, value=value, progress=False)
    for site, result in ours().sites.items():
        told = result.screening
        assert told is not None
        values = exact[site].kl_ablated_original
        torch.testing.assert_close(
            result.kl_ablated_original, values[result.numbers], rtol=1e-3, atol=1e-6
        )
        found = recall(told.units, values)
        print(f"{site}: {found} of the exact top {K}, correlation {told.correlation:.3f}")
        assert found >= 45
    compare(
        f"GPT of 4 layers trained on text: its 5120 neurons set to {value}, screened",
        {"modfast": ours, EVERY: part},
        {EVERY: 10.0},
        rounds=3,
        parts={EVERY: 1 / SHARE},
        warm=False,
    )
