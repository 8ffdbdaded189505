"""What is put in a unit's place: batches, masks, best constants, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ablation import patched
from ablation.test_patching import case
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import modfast
from modfast.metrics import logit_difference, probability
from modfast.models import MLP

MEASURES = ("entropy_difference", "kl_ablated_original", "kl_original_ablated")


def same(found: modfast.AblationResult, wanted: modfast.AblationResult) -> None:
    for measure in MEASURES:
        torch.testing.assert_close(
            getattr(found, measure), getattr(wanted, measure), rtol=1e-9, atol=1e-12
        )


def batches(x: Tensor, y: Tensor | None = None, size: int = 6) -> DataLoader[Any]:
    def collate(rows: list[Any]) -> Any:
        columns = [torch.stack(each) for each in zip(*rows, strict=True)]
        return tuple(columns) if y is not None else columns[0]

    data = TensorDataset(x) if y is None else TensorDataset(x, y)
    return DataLoader(data, batch_size=size, collate_fn=collate)


@pytest.fixture
def mlp() -> nn.Module:
    torch.manual_seed(0)
    return MLP([8, 7, 7, 5]).double()


def test_streams_give_what_one_batch_does(mlp: nn.Module) -> None:
    torch.manual_seed(1)
    x, other = torch.randn(2, 20, 8).double()
    a, b = torch.randint(0, 5, (2, 20))
    here = modfast.capture(mlp, other, "act1")["act1"]
    asked: list[dict[str, Any]] = [
        {"value": "mean"},
        {"value": "positional-mean"},
        {"value": here},
        {"value": "mean", "corrupted": other},
        {"corrupted": other},
    ]
    for each in asked:
        metric = logit_difference(a, b)
        whole = modfast.ablate_units(mlp, x, "act1", metric=metric, **each)
        if "corrupted" in each:
            each = each | {"corrupted": batches(other)}
        parts = modfast.ablate_units(mlp, batches(x), "act1", metric=metric, **each)
        same(parts, whole)
        torch.testing.assert_close(parts.total("logit_difference"), whole.total("logit_difference"))
        scores = [
            modfast.attribute_units(mlp, data, "act1", metric=metric, **options).scores["act1"]
            for data, options in ((x, each if "corrupted" not in each else
                                   each | {"corrupted": other}), (batches(x), each))
        ]  # fmt: skip
        torch.testing.assert_close(*scores)


def test_several_sites_share_one_run(mlp: nn.Module) -> None:
    x = torch.randn(20, 8).double()
    calls = []
    handle = mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    found = modfast.ablate_units(mlp, x, {"act2": [1, 0], "act1": None, "fc1:input": [2]})
    handle.remove()
    assert len(calls) == 1
    assert list(found.sites) == ["act2", "act1", "fc1:input"]
    for site, units in (("act2", [1, 0]), ("act1", None), ("fc1:input", [2])):
        same(found[site], modfast.ablate_units(mlp, x, site, units))
        assert found[site].backend == "fused"
    assert found.top(1)[0][0] in found.sites
    patterns = modfast.ablate_units(mlp, x, ["act*"])
    assert list(patterns.sites) == ["act1", "act2"]
    with pytest.raises(KeyError, match="site must be one of"):
        found["fc3"]


def test_sites_in_branches_and_written_in_place() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(6, 6) for _ in range(3))
            self.act = nn.ReLU(inplace=True)
            self.head = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            a = self.a(x)
            b = self.b(x)
            h = self.act(a) + b
            return self.head(self.c(h) + h)

    torch.manual_seed(0)
    model, x = Branches().double(), torch.randn(9, 6).double()
    sites = ["a", "b", "act", "c", "head:input"]
    found = modfast.ablate_units(model, x, sites, value="mean")
    for site in sites:
        same(found[site], modfast.ablate_units(model, x, site, value="mean", backend="model"))


@torch.jit.script
def unseen(x: Tensor) -> Tensor:  # by modes of torch's functions
    return torch.round(x)


def test_a_site_that_something_unseen_depends_on() -> None:
    """A changed first site shows nothing of it, as the second hardly depends on the first."""

    class Rounding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 4)
            self.site = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            a = self.a(x)
            b = self.site(5 * self.b(x) + 1e-6 * a)
            return self.head(torch.tanh(b) + unseen(b))

    torch.manual_seed(0)
    model, x = Rounding().double(), torch.randn(7, 5).double()
    found = modfast.ablate_units(model, x, ["a", "site"])
    for site in found.sites:
        same(found[site], modfast.ablate_units(model, x, site, backend="model"))


def test_a_site_written_to_with_gradients_on() -> None:
    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            with torch.enable_grad():
                h.mul_(2)
            return self.b(torch.tanh(h))

    torch.manual_seed(0)
    model, x = Writing().double(), torch.randn(7, 5).double()
    before, there = patched.call(model, x), patched.seen(model, x, "a")
    assert torch.equal(there, model.a(x))
    found = modfast.ablate_units(model, x, "a")
    after = patched.hooked(model, x, "a", patched.put(None, [1], 0.0, -1))
    torch.testing.assert_close(found.kl_ablated_original[1], patched.terms(before, after)[1])


def test_positions_that_do_not_count_are_in_no_mean() -> None:
    model, x, _, sites, _ = case("GPT-2")
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]])
    inputs = {**x, "attention_mask": mask}
    here = patched.seen(model, inputs, sites[1])
    counts = mask.bool()
    mean = modfast.ablate_units(model, inputs, sites[1], value="mean")
    same(mean, modfast.ablate_units(model, inputs, sites[1], value=here[counts].mean(0)))
    total = (here * counts[..., None]).sum(0)
    by_position = total / counts.sum(0)[:, None]
    found = modfast.ablate_units(model, inputs, sites[1], value="positional-mean")
    same(found, modfast.ablate_units(model, inputs, sites[1], value=by_position))


def test_positions_are_indices_masks_and_samples_own() -> None:
    model, x, other, sites, _ = case("GPT-2")
    site = sites[1]
    last = modfast.ablate_units(model, x, site, [1, 2], positions=-1)
    same(last, modfast.ablate_units(model, x, site, [1, 2], positions=[5]))
    mask = torch.zeros(6, dtype=torch.bool)
    mask[5] = True
    same(last, modfast.ablate_units(model, x, site, [1, 2], positions=mask))
    own = torch.zeros(3, 6, dtype=torch.bool)
    own[torch.arange(3), torch.tensor([0, 4, 2])] = True
    found = modfast.ablate_units(model, x, site, [1, 2], positions=own, corrupted=other)
    before, there = patched.call(model, x), patched.seen(model, other, site)
    for i, unit in enumerate([1, 2]):
        after = patched.hooked(model, x, site, patched.put(own, [unit], there, -1))
        torch.testing.assert_close(
            found.kl_ablated_original[i], patched.terms(before, after)[1], rtol=1e-8, atol=1e-12
        )


def test_metrics_of_tokens_with_targets_and_of_the_last_one() -> None:
    model, x, _, sites, _ = case("GPT-2")
    targets = torch.randint(0, 61, (3, 6))
    targets[:, :3] = -100
    targets[0, 4] = -100
    logits = patched.call(model, x)
    p = logits.softmax(-1)
    batch = modfast.network.inputs.Batch((), x, targets)
    counts = targets != -100
    chosen = p.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    wanted = torch.stack([chosen[i][counts[i]].mean() for i in range(3)])
    torch.testing.assert_close(probability()(logits, batch), wanted)
    torch.testing.assert_close(
        probability(7)(logits, modfast.network.inputs.Batch((), x)), p[:, -1, 7]
    )
    found = modfast.ablate_units(
        model,
        x,
        sites[1],
        [0],
        targets=targets,
        metric={"p": probability(), "d": lambda z: z.mean()},
    )
    after = patched.hooked(model, x, sites[1], patched.put(None, [0], 0.0, -1))
    change = (probability()(after, batch) - probability()(logits, batch)).sum()
    torch.testing.assert_close(found.total("p")[0], change)
    torch.testing.assert_close(found.mean("d")[0], after.mean() - logits.mean())
    by_sample = modfast.ablate_units(
        model, x, sites[1], [0], targets=targets, metric=probability(), per_sample=True
    )
    assert by_sample.metrics["probability"].shape == (3, 1)
    torch.testing.assert_close(by_sample.total("probability")[0], change)


@pytest.mark.parametrize("kind", ["units", "groups", "directions"])
def test_optimal_constants_are_the_best(mlp: nn.Module, kind: str) -> None:
    torch.manual_seed(2)
    x = torch.randn(200, 8).double()
    before = mlp(x).log_softmax(-1).detach()
    here = modfast.capture(mlp, x, "act2")["act2"]

    def divergence(changed: Tensor) -> float:
        after = mlp.fc3(changed).log_softmax(-1).detach()
        return float(functional.kl_div(after, before, reduction="sum", log_target=True))

    if kind == "units":
        found = modfast.ablate_units(mlp, x, "act2", [3, 1], value="optimal")
        assert found.values.shape == (2,)
        unit, best = 3, float(found.values[0])

        def at(c: float) -> float:
            changed = here.clone()
            changed[:, unit] = c
            return divergence(changed)
    elif kind == "groups":
        found = modfast.ablate_groups(mlp, x, "act2", [[0, 2, 5], [1]], value="optimal")
        assert found.values.shape == (2, 7)
        best = float(found.values[0, 2])

        def at(c: float) -> float:
            changed = here.clone()
            changed[:, [0, 2, 5]] = found.values[0, [0, 2, 5]]
            changed[:, 2] = c
            return divergence(changed)
    else:
        v = torch.randn(1, 7).double()
        found = modfast.ablate_directions(mlp, x, "act2", v, value="optimal")
        best = float(found.values[0])
        unit_length = v / v.norm()

        def at(c: float) -> float:
            return divergence(here - (here @ unit_length.T - c) * unit_length)

    least = at(best)
    torch.testing.assert_close(found.kl_original_ablated[0].item(), least, rtol=1e-9, atol=1e-12)
    spread = float(here.std())
    tried = [at(best + step * spread) for step in torch.linspace(-1, 1, 81).tolist()]
    assert least <= min(tried) * (1 + 1e-4)


def test_optimal_is_never_worse_than_the_mean_or_zero() -> None:
    model, x, _, sites, _ = case("GPT-2")
    asked: dict[str, Any] = {"units": [0, 7]}
    best = modfast.ablate_units(model, x, sites[1], value="optimal", **asked)
    for value in ("mean", 0.0):
        other = modfast.ablate_units(model, x, sites[1], value=value, **asked)
        assert (best.kl_original_ablated <= other.kl_original_ablated * (1 + 1e-9)).all()


def test_directions_take_parts_of_activations(mlp: nn.Module) -> None:
    x, other = torch.randn(2, 20, 8).double()
    eye = torch.eye(7).double()
    for asked in ({"value": "mean"}, {"corrupted": other}, {"value": 0.3}, {"value": "resample"}):
        directions = modfast.ablate_directions(mlp, x, "act2", eye, **asked)
        same(directions, modfast.ablate_units(mlp, x, "act2", **asked))


def test_refusals(mlp: nn.Module) -> None:
    x = torch.randn(20, 8).double()
    gpt, tokens, _, sites, _ = case("GPT-2")

    def refused(match: str, *args: Any, error: type[Exception] = ValueError, **kwargs: Any) -> None:
        with pytest.raises(error, match=match):
            modfast.ablate_units(*args, **kwargs)

    refused(
        r"value must have shape \[\] or \[7\], got \[3\]; or that of 'act1', \[20, 7\]",
        mlp,
        x,
        "act1",
        value=torch.ones(3),
    )
    refused("value must have one row for each of 20 samples at 'act1', got 21", mlp, x, "act1",
            value=torch.ones(21, 7))  # fmt: skip
    refused("value must have one for each site, got none for 'act2'", mlp, x, ["act1", "act2"],
            value={"act1": 0.0})  # fmt: skip
    refused("value must be left out, or one of", mlp, x, "act1", value=1.0, corrupted=x)
    refused("corrupted must give 'act1' the shape", mlp, x, "act1", corrupted=x[:5])
    refused("corrupted must be a stream", mlp, x, "act1", corrupted=[x])
    refused("value='resample' takes another", mlp, x[:1], "act1", value="resample")
    refused("value='optimal' needs inputs in one batch", mlp, [x], "act1", value="optimal")
    refused("positions must be None at 'act1'", mlp, x, "act1", positions=[0])
    refused("positions must be from -6 to 5, got 6", gpt, tokens, sites[1], positions=[6])
    refused("positions must be a mask", gpt, tokens, sites[1], positions=torch.ones(5).bool())
    refused("positions must be a mask of 3 samples, got 4", gpt, tokens, sites[1],
            positions=torch.ones(4, 6).bool())  # fmt: skip
    refused("positions must", gpt, tokens, sites[1], positions={0}, error=TypeError)
    refused("positions must be one of None, 'each'", gpt, tokens, sites[1], positions="all")
    refused("metric must be one of", mlp, x, "act1", metric="logits")
    refused("metric must be a function", mlp, x, "act1", metric=3, error=TypeError)
    refused("metric must return real numbers", mlp, x, "act1", metric=lambda z: 1, error=TypeError)
    refused(r"metric must return one number, or one per sample, \[20\], got \[20, 5\]", mlp, x,
            "act1", metric=lambda z: z)  # fmt: skip
    refused("a must be from 0 to 4, got 5", mlp, x, "act1", metric=logit_difference(5, 0))
    refused("b must have one class per sample, got 3 for 20", mlp, x, "act1",
            metric=logit_difference(0, [1, 2, 3]))  # fmt: skip
    refused("targets must be given, to the metric", mlp, x, "act1", metric=probability())
    refused("units must be left out where site is a mapping", mlp, x, {"act1": None}, [0])
    refused("site must name at least one place", mlp, x, {})
    refused("seed must", mlp, x, "act1", seed="one", error=TypeError)
    with pytest.raises(ValueError, match="groups must be left out where units are"):
        modfast.ablate_groups(mlp, x, "act1", [[0]], groups=[[0]])
    with pytest.raises(ValueError, match="metric must have another name than 'accuracy'"):
        modfast.ablate_units(mlp, x, "act1", metric={"accuracy": lambda z: z.mean()})
    with pytest.raises(TypeError, match="screen reads inputs and corrupted twice"):
        modfast.ablate_units(mlp, iter([x]), "act1", screen=1)
    short = {"input_ids": tokens["input_ids"][:, :4]}
    for per_sample in (False, True):
        with pytest.raises(ValueError, match="positions='each' needs as many positions in each"):
            modfast.ablate_units(
                gpt, [tokens, short], sites[1], [0], positions="each", per_sample=per_sample
            )
    with pytest.raises(ValueError, match="sites='act9': no such module"):
        modfast.attribute_units(mlp, x, "act9", value="mean")


def test_means_are_of_any_inputs_and_an_iterator(mlp: nn.Module) -> None:
    x, other = torch.randn(20, 8).double(), torch.randn(30, 8).double()
    wanted = modfast.capture(mlp, other, "act1")["act1"].mean(0)
    for corrupted in (other, [other], iter([other[:11], other[11:]])):
        found = modfast.ablate_units(mlp, x, "act1", value="mean", corrupted=corrupted)
        same(found, modfast.ablate_units(mlp, x, "act1", value=wanted))
