from __future__ import annotations

import copy

import pytest
import torch
from tasks.oracle import assert_same_groups, gradients_after
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from modfast import compare_tasks, task_gradients
from modfast.models import MLP


class ConvNet(nn.Module):
    """Everything that is linear piece by piece, in modules and not, in place and not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.average = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.norm(self.conv1(x))))
        x = x + functional.leaky_relu(self.conv2(x), 0.1)
        return self.head(torch.relu(self.average(x)).flatten(1) * 0.5)

    def after_conv1(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.norm(x)))
        x = x + functional.leaky_relu(self.conv2(x), 0.1)
        return self.head(torch.relu(self.average(x)).flatten(1) * 0.5)


def tail(model: MLP, first: str):
    """What an MLP computes after a module."""
    names = [name for name, _ in model.named_children()]
    rest = [model.get_submodule(name) for name in names[names.index(first) + 1 :]]
    return nn.Sequential(*rest)


@pytest.mark.parametrize("sizes", [(4, 16, 16, 2), (4, 6, 3), (4, 2), (4, 5, 4, 5, 4, 3)])
def test_every_site_of_an_mlp(sizes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model, x = MLP(sizes).double(), torch.rand(60, 4).double()
    found = task_gradients(model, x, ["input", "*"])
    assert list(found) == ["input", *(name for name, _ in model.named_children())]
    for site, result in found.items():
        rest = model if site == "input" else tail(model, site)
        assert result.tasks == tuple(range(sizes[-1]))
        assert result.regions is not None
        for task in result.tasks:
            rows = gradients_after(rest, result.activations, task)
            torch.testing.assert_close(result.gradients[task], rows, rtol=1e-12, atol=1e-14)
            distinct = result.distinct(task)
            vectors = distinct.directions * distinct.norms[:, None]
            assert_same_groups(vectors, distinct.counts, rows)
            # The gradient of the mean over samples, summed over them, is the mean gradient.
            torch.testing.assert_close(distinct.mean, rows.mean(0), rtol=1e-9, atol=1e-12)


def test_regions_are_those_after_the_site() -> None:
    torch.manual_seed(0)
    model, x = MLP((4, 16, 16, 2)), torch.rand(500, 4)
    found = task_gradients(model, x, ["input", "act1", "act2", "fc3"])
    n = {site: len(result.regions.unique()) for site, result in found.items()}
    assert n["input"] >= n["act1"] > 1
    assert n["act2"] == n["fc3"] == 1
    patterns = (model.fc1(x) > 0, model.fc2(model.act1(model.fc1(x))) > 0)
    assert n["input"] == len(torch.cat(patterns, 1).unique(dim=0))
    assert n["act1"] == len(patterns[1].unique(dim=0))


def test_convolutions_flat_and_pooled() -> None:
    torch.manual_seed(0)
    model, x = ConvNet().double().eval(), torch.randn(12, 2, 8, 8).double()
    model.norm.running_mean.normal_()
    # Some samples twice: their gradients are the same.
    x = torch.cat([x, x[:5]])
    conv1 = model.conv1(x)
    found = task_gradients(model, x, ["input", "conv1", "head"])
    pooled = task_gradients(model, x, "conv1", pool=True)["conv1"]
    for task in range(3):
        rows = gradients_after(model.after_conv1, conv1, task)
        torch.testing.assert_close(found["conv1"].gradients[task], rows.flatten(1))
        torch.testing.assert_close(pooled.gradients[task], rows.sum((2, 3)))
        on_input = gradients_after(model, x, task)
        torch.testing.assert_close(found["input"].gradients[task], on_input.flatten(1))
        for site, wanted in (("conv1", rows), ("input", on_input)):
            distinct = found[site].distinct(task)
            vectors = distinct.directions * distinct.norms[:, None]
            assert_same_groups(vectors, distinct.counts, wanted.flatten(1))
        assert pooled.distinct(task).counts.sum() == len(x)
    torch.testing.assert_close(found["conv1"].activations, conv1.flatten(1))
    torch.testing.assert_close(pooled.activations, conv1.mean((2, 3)))
    # The derivative with respect to the mean over positions: all of a channel moves alike.
    step = torch.zeros_like(conv1)
    step[:, 1] = 1e-7
    moved = (model.after_conv1(conv1 + step) - model.after_conv1(conv1 - step)) / 2e-7
    torch.testing.assert_close(pooled.gradients[:, :, 1].T, moved, rtol=1e-5, atol=1e-7)
    assert found["conv1"].regions is not None
    assert len(found["conv1"].regions.unique()) == 12
    assert len(found["head"].regions.unique()) == 1


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x).chunk(2, dim=1)
        return self.last(a * b)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 2)),
        nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)),
        nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 2)),
        Gated(),
    ],
)
def test_other_networks_take_the_tolerance(model: nn.Module) -> None:
    torch.manual_seed(0)
    model = model.double()
    x = torch.randn(40, 4).double().repeat(3, 1)
    found = task_gradients(model, x, "input")["input"]
    assert found.regions is None
    for task in (0, 1):
        rows = gradients_after(model, x, task)
        torch.testing.assert_close(found.gradients[task], rows)
        distinct = found.distinct(task)
        assert distinct.counts.tolist() == [3] * 40
        assert_same_groups(distinct.directions * distinct.norms[:, None], distinct.counts, rows)


def test_batches_make_no_difference() -> None:
    torch.manual_seed(0)
    model, x = MLP((4, 16, 16, 2)).double(), torch.rand(101, 4).double()
    whole = task_gradients(model, x, ["input", "act1"], [1])
    parts = task_gradients(model, x, ["input", "act1"], 1, batch_size=17)
    for site in whole:
        torch.testing.assert_close(whole[site].gradients, parts[site].gradients)
        torch.testing.assert_close(whole[site].activations, parts[site].activations)
        assert torch.equal(whole[site].regions, parts[site].regions)


@pytest.mark.parametrize("frozen", [False, True])
def test_leaves_the_model_and_inputs_as_they_were(frozen: bool) -> None:
    torch.manual_seed(0)
    model, x = ConvNet(), torch.randn(4, 2, 8, 8)
    model.requires_grad_(not frozen)
    model.norm.eval()
    before, kept = copy.deepcopy(model), x.clone()
    found = task_gradients(model, x, ["input", "conv1", "relu"])
    wanted = task_gradients(before.requires_grad_(), x, ["input", "conv1", "relu"])
    for site in found:
        assert torch.equal(found[site].gradients, wanted[site].gradients)
        assert not found[site].gradients.requires_grad
        assert not found[site].activations.requires_grad
    assert torch.equal(x, kept)
    assert not x.requires_grad
    assert model.training
    assert not model.norm.training
    for p in model.parameters():
        assert p.grad is None
        assert p.requires_grad is not frozen
    for (name, a), b in zip(model.state_dict().items(), before.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not any(module._forward_hooks for module in model.modules())


def test_a_task_without_a_path_has_zero_gradients() -> None:
    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 3), nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.a(x[:, :2]).relu().sum(1), self.b(x[:, 2:]).sum(1)], dim=1)

    torch.manual_seed(0)
    found = task_gradients(Apart(), torch.randn(9, 4), ["a", "b"])
    assert not found["a"].gradients[1].any()
    assert found["a"].distinct(1).norms.tolist() == [0.0]
    assert not found["a"].distinct(1).directions.any()
    assert (found["b"].gradients[1] == 1).all()


def by_hooks(model: nn.Module, inputs: tuple[Tensor, ...], module: nn.Module, task: int) -> Tensor:
    """The gradient of one output at a module's output, by a plain hook and autograd."""
    seen: list[Tensor] = []
    hook = module.register_forward_hook(lambda m, a, o: seen.append(o))
    out = model(*inputs)
    hook.remove()
    return torch.autograd.grad(out[:, task].sum(), seen[0])[0]


class Places(nn.Module):
    """A module called twice, a tuple and a function."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.act, self.fc = nn.GRU(3, 4, batch_first=True), nn.Tanh(), nn.Linear(4, 2)

    def forward(self, x: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        h = self.act(self.rnn(x)[0].mean(1) * scale)
        return {"logits": self.fc(self.act(h) + h), "hidden": h}


def test_places_of_all_kinds_and_outputs() -> None:
    torch.manual_seed(0)
    model, x = Places().double(), torch.randn(7, 5, 3).double()
    names = ["input", "rnn[0]", "act#0", "act#1", "/add#0", "fc:input"]
    found = task_gradients(model, (x, 2.0), names, 1)
    assert set(found) == set(names)
    assert found["act#0"].backend == "model"

    def after(h: Tensor) -> Tensor:
        return model.fc(h.tanh() + h)[:, 1].sum()

    h = model((x, 2.0)[0], 2.0)["hidden"].detach().requires_grad_()
    (wanted,) = torch.autograd.grad(after(h), h)
    torch.testing.assert_close(found["act#0"].gradients[0], wanted)
    torch.testing.assert_close(found["act#0"].activations, h.detach())
    torch.testing.assert_close(found["act#1"].activations, h.detach().tanh())
    row = model.fc.weight[1].detach().expand(7, 4)
    for name in ("act#1", "/add#0", "fc:input"):
        torch.testing.assert_close(found[name].gradients[0], row)
    own = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(model(own, 2.0)["logits"][:, 1].sum(), own)
    torch.testing.assert_close(found["input"].gradients[0], wanted.flatten(1))
    hidden = task_gradients(model, {"x": x, "scale": 2.0}, "act#0", output="hidden")["act#0"]
    assert torch.equal(hidden.gradients, torch.eye(4).double()[:, None].expand(4, 7, 4))
    picked = task_gradients(model, (x, 2.0), "act#0", 1, output=lambda found: found["logits"])
    torch.testing.assert_close(picked["act#0"].gradients, found["act#0"].gradients)
    with pytest.raises(ValueError, match="output='scores': the dict that the model returned has"):
        task_gradients(model, x, "act#0", output="scores")


def test_streams_inference_mode_and_no_grad() -> None:
    torch.manual_seed(0)
    model, x = ConvNet().double().eval(), torch.randn(11, 2, 8, 8).double()
    wanted = by_hooks(model, (x,), model.conv1, 2)
    loader = DataLoader(TensorDataset(x, torch.zeros(11).long()), batch_size=4)
    with torch.inference_mode():
        own = x.clone()
        inside = task_gradients(model, own, ["input", "conv1"], 2)["conv1"]
    with torch.no_grad():
        without = task_gradients(model, x, "conv1", 2)["conv1"]
    streamed = task_gradients(model, loader, "conv1", 2, progress=False)["conv1"]
    made_in_it = task_gradients(model, own, "conv1", 2)["conv1"]
    for found in (inside, without, streamed, made_in_it):
        torch.testing.assert_close(found.gradients[0], wanted.flatten(1))
        assert not found.gradients.requires_grad
        assert not found.gradients.is_inference()
        assert found.regions is not None
    compared = compare_tasks(model, [x, x], "conv1", output=lambda y: y * 2)["conv1"]
    assert compared.backend == "model"
    with torch.inference_mode():
        again = compare_tasks(model, [own, own], "conv1", output=lambda y: y * 2)["conv1"]
    torch.testing.assert_close(again.variances, compared.variances)
    assert all(p.grad is None for p in model.parameters())


def test_a_users_hooks_are_part_of_the_model() -> None:
    torch.manual_seed(0)
    model, x = MLP((4, 6, 2)).double(), torch.rand(5, 4).double()
    model.act1.register_forward_hook(lambda m, a, o: 3 * o)
    found = task_gradients(model, x, ["fc1", "act1"], 0)
    torch.testing.assert_close(found["act1"].gradients[0], model.fc2.weight[0].expand(5, 6))
    wanted = by_hooks(model, (x,), model.fc1, 0)
    torch.testing.assert_close(found["fc1"].gradients[0], wanted)
    assert len(model.act1._forward_hooks) == 1


def test_inputs_that_do_not_fit() -> None:
    for bad in (torch.rand(5, 3), torch.rand(5, 4).double(), torch.rand(4)):
        with pytest.raises(ValueError, match="inputs must fit the model, whose forward"):
            task_gradients(MLP((4, 6, 2)), bad, "act1")


def test_bad_input() -> None:
    model, x = MLP((4, 6, 6, 2)), torch.rand(5, 4)
    with pytest.raises(ValueError, match="sites='act9': no such module; did you mean: 'act2'"):
        task_gradients(model, x, ["input", "act9"])
    with pytest.raises(ValueError, match="tasks must be from 0 to 1, the outputs, got 2"):
        task_gradients(model, x, "act1", [0, 2])
    with pytest.raises(ValueError, match="tasks must hold at least one output"):
        task_gradients(model, x, "act1", [])
    with pytest.raises(TypeError, match="each of tasks must be an integer, got 'a'"):
        task_gradients(model, x, "act1", "a")
    with pytest.raises(TypeError, match="tasks must be an output's number .*got 1.5"):
        task_gradients(model, x, "act1", 1.5)
    with pytest.raises(ValueError, match="pool=True: sites='act1' has no positions"):
        task_gradients(model, x, "act1", pool=True)
    with pytest.raises(ValueError, match="inputs must be finite, got 20 of 20"):
        task_gradients(model, x * torch.nan, "act1")
    with pytest.raises(ValueError, match=r"inputs must not be empty, got shape \(0, 4\)"):
        task_gradients(model, x[:0], "act1")
    with pytest.raises(
        TypeError, match="sites='input': must be a floating tensor, got torch.int64"
    ):
        task_gradients(model, x.long(), "input")
    for sites in ("input", "act1"):
        with pytest.raises(TypeError, match="model must be a torch.nn.Module, got str"):
            task_gradients("model", x, sites)
    with pytest.raises(TypeError, match="sites=3: must be a name"):
        task_gradients(model, x, 3)
    with pytest.raises(
        TypeError, match="the model returned a tuple, not a tensor; output= must pick"
    ):
        task_gradients(nn.LSTM(4, 2), x, "input")
    with pytest.raises(ValueError, match=r"must return \[n, outputs\].*got shape \(5, 2, 1\)"):
        task_gradients(nn.Sequential(nn.Linear(4, 2), nn.Unflatten(1, (2, 1))), x, "0")
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        task_gradients(model, x, "act1", batch_size=0)
    with pytest.raises(ValueError, match=r"task must be one of 0, got 1"):
        task_gradients(model, x, "act1", 0)["act1"].distinct(1)

    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x).detach()

    with pytest.raises(ValueError, match="do not depend on the sites through autograd"):
        task_gradients(Cut(), x, "fc")
