"""Estimates for all units at once, and what screening by them says of what it misses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ablation import patched
from ablation.test_patching import HEADS, MODELS, case
from torch import Tensor, nn
from torch.nn import functional

import modfast
from modfast.ablation.screening import most_missed
from modfast.metrics import logit_difference
from modfast.models import MLP


def gradients(model: nn.Module, x: Any, sites: list[str]) -> dict[str, Tensor]:
    """Of the sum of logit 1 minus logit 2 at the last token, by hooks."""
    values: dict[str, Tensor] = {}
    handles = []
    for site in sites:
        module = model.get_submodule(site.removesuffix(":input"))

        def keep(value: Tensor, site: str = site) -> Tensor:
            values[site] = value.clone()
            values[site].retain_grad()
            return values[site].clone()

        if site.endswith(":input"):
            handles.append(
                module.register_forward_pre_hook(lambda m, a, keep=keep: (keep(a[0]), *a[1:]))
            )
        else:
            handles.append(module.register_forward_hook(lambda m, a, o, keep=keep: keep(o)))
    logits = patched.call(model, x)
    for handle in handles:
        handle.remove()
    last = logits[:, -1] if logits.dim() == 3 else logits
    (last[:, 1] - last[:, 2]).sum().backward()
    model.zero_grad()
    return {site: value.grad for site, value in values.items() if value.grad is not None}


@pytest.mark.parametrize("name", MODELS)
def test_gradient_times_change(name: str) -> None:
    model, x, other, sites, dim = case(name)
    metric = logit_difference(1, 2)
    slopes = gradients(model, x, sites)
    found = modfast.attribute_units(model, x, sites, corrupted=other, metric=metric)
    each = modfast.attribute_units(
        model, x, sites, corrupted=other, metric=metric, positions="each"
    )
    assert found.metric == "logit_difference"
    assert found.corrected == ()
    for site in sites:
        change = patched.seen(model, other, site) - patched.seen(model, x, site)
        parts = (slopes[site] * change).movedim(dim, -1)
        torch.testing.assert_close(found.scores[site], parts.flatten(0, -2).sum(0))
        by_position = parts.flatten(1, -2).sum(0).T
        torch.testing.assert_close(each.scores[site], by_position)
    groups = {site: modfast.heads(len(found.scores[site]), HEADS) for site in sites}
    heads = modfast.attribute_units(model, x, sites, corrupted=other, metric=metric, groups=groups)
    for site in sites:
        wanted = found.scores[site].reshape(HEADS, -1).sum(1)
        torch.testing.assert_close(heads.scores[site], wanted)


def test_steps_add_up_to_the_whole_change() -> None:
    model, x, other, sites, _ = case("GPT-2")
    for metric in (logit_difference(1, 2), "kl"):
        found = modfast.attribute_units(model, x, sites, corrupted=other, metric=metric, steps=50)
        for site in sites:
            everything = [list(range(len(found.scores[site])))]
            exact = modfast.ablate_groups(
                model, x, site, everything, corrupted=other, metric=logit_difference(1, 2)
            )
            measure = "kl_ablated_original" if metric == "kl" else "logit_difference"
            torch.testing.assert_close(
                found.scores[site].sum(), exact.total(measure)[0], rtol=1e-3, atol=1e-8
            )


def test_small_changes_are_met_exactly() -> None:
    """The estimates are the exact effects' limits, first and second order."""
    torch.manual_seed(0)
    model, x = MLP([8, 12, 12, 5]).double(), torch.randn(400, 8).double()
    model.act1, model.act2 = nn.Tanh(), nn.Tanh()
    y = torch.arange(400) % 5
    for site in ("act1", "act2"):
        near = modfast.capture(model, x, site)[site] + 1e-4
        exact = modfast.ablate_units(model, x, site, value=near, targets=y)
        loss = functional.cross_entropy(model(x), y, reduction="sum").detach()
        first = modfast.attribute_units(model, x, site, value=near, metric="loss", targets=y)
        torch.testing.assert_close(first.scores[site], exact.loss - loss, rtol=1e-2, atol=1e-6)
        surer = modfast.attribute_units(model, x, site, value=near, metric="entropy")
        torch.testing.assert_close(
            surer.scores[site], exact.entropy_difference, rtol=1e-2, atol=1e-6
        )
        second = modfast.attribute_units(model, x, site, value=near, draws=300)
        torch.testing.assert_close(
            second.scores[site], exact.kl_ablated_original, rtol=3e-2, atol=0
        )


class Mixing(nn.Module):
    """A layer for each token, whose outputs are averaged over the tokens by some share."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.site, self.readout, self.share = nn.Linear(6, 40), nn.Linear(40, 9), share

    def forward(self, x: Tensor) -> Tensor:
        h = self.site(x)
        return self.readout((1 - self.share) * h + self.share * h.mean(1, keepdim=True))


@pytest.mark.parametrize(("share", "draws", "most"), [(0.0, 1, 0.15), (1.0, 64, 0.15)])
def test_tokens_count_as_draws(share: float, draws: int, most: float) -> None:
    """Where they keep apart; where they do not, squares of their own would be 1/50 of it."""
    torch.manual_seed(0)
    model, x = Mixing(share).double(), torch.randn(8, 50, 6).double()
    near = modfast.capture(model, x, "site")["site"] + 1e-3
    exact = modfast.ablate_units(model, x, "site", value=near).kl_ablated_original
    found = modfast.attribute_units(model, x, "site", value=near, draws=draws).scores["site"]
    assert ((found - exact).norm() / exact.norm()) < most
    groups = modfast.attribute_units(
        model, x, "site", value=near, draws=draws, groups=torch.eye(40).bool()
    )
    torch.testing.assert_close(groups.scores["site"], found)


class Attended(nn.Module):
    """Attention and what is linear: an estimate that does the softmax again is exact."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 8) for _ in range(3))
        self.out = nn.Linear(8, 5)
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.fused:
            h = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            h = (q @ k.mT / 2).softmax(-1) @ v
        return self.out(h.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("positions", [None, [1], "each"])
def test_softmax_is_done_again(fused: bool, positions: Any) -> None:
    torch.manual_seed(0)
    model, x, other = Attended(fused).double(), *torch.randn(2, 4, 5, 6).double()
    sites, metric = ["q", "k", "v"], logit_difference(1, 2)
    asked: dict[str, Any] = {"corrupted": other, "positions": positions, "metric": metric}
    found = modfast.attribute_units(model, x, sites, **asked)
    assert found.corrected == ("q", "k")
    exact = modfast.ablate_units(model, x, sites, **asked)
    for site in sites:
        wanted = exact[site].total("logit_difference").reshape(found.scores[site].shape)
        torch.testing.assert_close(found.scores[site], wanted, rtol=1e-9, atol=1e-12)
    plain = gradients(model, x, sites)["q"] * (patched.seen(model, other, "q") - model.q(x))
    if positions is None:
        assert not torch.allclose(plain.detach().sum((0, 1)), found.scores["q"], rtol=1e-2)


def test_queries_of_transformers_are_closer() -> None:
    for name, site in (("Llama", "model.layers.1.self_attn.q_proj"),
                       ("GPT-2", "transformer.h.1.attn.c_attn")):  # fmt: skip
        model, x, _, _, _ = case(name)
        value = 30 * torch.ones((), dtype=torch.float64)
        metric = logit_difference(1, 2)
        found = modfast.attribute_units(model, x, site, value=value, metric=metric)
        assert found.corrected == (site,)
        exact = modfast.ablate_units(model, x, site, value=value, metric=metric)
        wanted = exact.total("logit_difference")[:32]
        slope = gradients(model, x, [site])[site]
        plain = (slope * (value - patched.seen(model, x, site))).sum((0, 1))[:32]
        missed = (found.scores[site][:32] - wanted).norm() / wanted.norm()
        assert missed < 0.5 * (plain - wanted).norm() / wanted.norm()


def test_screening_finds_the_largest() -> None:
    torch.manual_seed(0)
    model, x = MLP([8, 64, 64, 5]), torch.randn(300, 8)
    exact = modfast.ablate_units(model, x, ["act1", "act2"])
    found = modfast.ablate_units(model, x, ["act1", "act2"], screen=12)
    for site, result in found.sites.items():
        top = exact[site].top(12)[1]
        chosen = result.numbers
        assert len(set(top.tolist()) & set(chosen[:12].tolist())) >= 10
        torch.testing.assert_close(
            result.kl_ablated_original, exact[site].kl_ablated_original[chosen]
        )
        told = result.screening
        assert told.estimate.shape == (64,)
        assert torch.equal(torch.cat([told.units, told.drawn]), chosen)
        assert len(chosen.unique()) == 24
        assert told.correlation > 0.8
    everything = modfast.ablate_units(model, x, "act1", screen=100)
    assert len(everything.numbers) == 64
    assert everything.screening.most_missed == 0
    assert math.isnan(everything.screening.correlation)


def test_screening_says_what_it_misses() -> None:
    """Saturated units have no gradient, so that nothing of what they do is estimated."""

    class Saturated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.site = nn.Identity()
            self.readout = nn.Linear(60, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            h = self.site(x)
            steep = torch.tanh(200 * (h[:, 10:] - 0.5))  # far from its bend, all but flat
            return self.readout(torch.cat([h[:, :10], steep], 1))

    torch.manual_seed(0)
    model, x = Saturated().double(), 1 + 0.01 * torch.randn(200, 60).double()
    metric = logit_difference(0, 1)
    found = modfast.ablate_units(model, x, "site", screen=10, metric=metric)
    told = found.screening
    assert set(told.units.tolist()) == set(range(10))
    assert told.n_exceeding > 0
    assert told.most_missed > 10
    exact = modfast.ablate_units(model, x, "site", metric=metric).total("logit_difference").abs()
    missed = int((exact[10:] > exact[:10].min()).sum())
    assert missed <= told.most_missed


def test_most_missed_is_an_upper_bound() -> None:
    """In 95 % of draws and more."""
    generator = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(400):
        n_bad = int(torch.randint(0, 40, (), generator=generator))
        drawn = torch.randperm(100, generator=generator)[:20]
        held += most_missed(100, 20, int((drawn < n_bad).sum())) >= n_bad
    assert held >= 0.95 * 400 - 3 * math.sqrt(400 * 0.95 * 0.05)


def test_refusals() -> None:
    model, x = MLP([8, 6, 6, 3]), torch.randn(20, 8)
    with pytest.raises(ValueError, match="metric must have a gradient, got 'accuracy'"):
        modfast.attribute_units(model, x, "act1", metric="accuracy")
    with pytest.raises(ValueError, match="targets must be given with metric='loss'"):
        modfast.attribute_units(model, x, "act1", metric="loss")
    with pytest.raises(ValueError, match="metric must depend on sites through autograd"):
        modfast.attribute_units(model, x, "act1", metric=lambda logits: logits.detach().sum(1))
    with pytest.raises(ValueError, match="value must be other than 'optimal'"):
        modfast.attribute_units(model, x, "act1", value="optimal")
    with pytest.raises(ValueError, match="positions must be None at 'act1', which has none"):
        modfast.attribute_units(model, x, "act1", positions=[0])
    with pytest.raises(ValueError, match="metric must be one of .* with screen, got 'loss'"):
        modfast.ablate_units(model, x, "act1", screen=2, metric="loss")
    with pytest.raises(ValueError, match="positions must be indices or a mask with screen"):
        modfast.ablate_units(model, x, "act1", screen=2, positions="each")
    with pytest.raises(ValueError, match="screen must be at least 1, got 0"):
        modfast.ablate_units(model, x, "act1", screen=0)
    batches = [x, x]
    with pytest.raises(ValueError, match="corrupted must have as many batches as inputs"):
        modfast.attribute_units(model, batches, "act1", corrupted=batches[:1])
    with pytest.raises(ValueError, match="corrupted must have as many batches .* 1, got more"):
        modfast.ablate_units(model, batches[:1], "act1", corrupted=batches)


def test_gradients_that_do_not_reach_a_site_are_no_zeros() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 4)
            self.unused = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.a(x)).detach()
            self.unused(h)
            return self.c(torch.tanh(self.b(h)))

    torch.manual_seed(0)
    model, x = Cut().double(), torch.randn(9, 5).double()
    metric = logit_difference(0, 1)
    for cut in (["a"], ["a", "b"], ["b", "a"]):
        with pytest.raises(ValueError, match="must be reached by gradients|must depend on sites"):
            modfast.attribute_units(model, x, cut, metric=metric)
    found = modfast.attribute_units(model, x, ["b", "unused"], metric=metric)
    assert found.scores["unused"].tolist() == [0.0] * 3
    assert found.scores["b"].abs().min() > 0


def test_attention_that_nothing_depends_on() -> None:
    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.out = nn.Linear(6, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            q = self.q(x)
            self.seen = (q @ x.mT).softmax(-1)
            return self.out(torch.tanh(q).mean(1))

    torch.manual_seed(0)
    model, x = Watched().double(), torch.randn(3, 5, 6).double()
    metric = logit_difference(0, 1)
    found = modfast.attribute_units(model, x, "q", metric=metric)
    value = model.q(x).detach().requires_grad_()
    logits = model.out(torch.tanh(value).mean(1))
    (slope,) = torch.autograd.grad((logits[:, 0] - logits[:, 1]).sum(), value)
    torch.testing.assert_close(found.scores["q"], (slope * -value).detach().sum((0, 1)))
