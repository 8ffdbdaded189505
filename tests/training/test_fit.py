from __future__ import annotations

import copy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import modfast
from modfast import ClusterabilityLoss, Modularity, fit
from modfast.files import load_values, save_values
from modfast.models import MLP
from modfast.training.direct import covers


def data(n: int = 200, regression: bool = False) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 12, generator=generator)
    target = x[:, :4] + 0.1 * torch.randn(n, 4, generator=generator)
    return x, target if regression else target.argmax(1)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(12, 16),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(16, 16),
        nn.ReLU(),
        nn.Linear(16, 4),
    )


def modularity(params: Any) -> Modularity:
    return Modularity(params, 0.05, 4, alpha=1.0, momentum=0.9)


def test_learns_and_records() -> None:
    model = network()
    history = fit(model, data(), 20, optimizer=modularity, test=data(100), seed=0)
    steps = 20 * 4
    assert history.loss.shape == (steps,)
    assert history.clusterability.shape == (steps, 1)
    assert history.accuracy.shape == (21,)
    assert history.accuracy_steps.tolist() == list(range(0, steps + 1, 4))
    assert history.loss[-4:].mean() < 0.5 < history.loss[0]
    assert history.accuracy[-1] > 0.8
    assert history.clusterability[0] < 0.5 < 0.95 < history.clusterability[-1]


def test_records_what_the_weights_were_before_each_step() -> None:
    model = network()
    expected = modfast.clusterability(model[3].weight, modfast.Clusters.equal(16, 16, 4))
    for make in (modularity, None):
        fresh = network()
        reg = None if make else ClusterabilityLoss(fresh, "3", alpha=1.0)
        history = fit(fresh, data(), 1, optimizer=make, regularizer=reg, seed=0)
        torch.testing.assert_close(history.clusterability[0, 0].float(), expected.detach())
    assert fit(network(), data(), 1, seed=0).clusterability.shape == (4, 0)


def test_regression_reaches_high_r2() -> None:
    model = MLP([12, 32, 4])
    history = fit(model, data(regression=True), 60, test=data(100, regression=True), seed=0)
    assert history.accuracy[-1] > 0.8


def test_same_seed_same_weights_and_global_random_state_untouched() -> None:
    first, second = network(), network()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    fit(first, data(), 3, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    fit(second, data(), 3, seed=5)
    assert all(map(torch.equal, first.parameters(), second.parameters()))


def plain_loop(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> list[float]:
    criterion = nn.functional.mse_loss if y.is_floating_point() else nn.functional.cross_entropy
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    losses = []
    for _ in range(2):
        for index in torch.randperm(len(x), generator=generator).split(30):
            optimizer.zero_grad()
            loss = criterion(model(x[index]), y[index])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize("regression", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("direct", [False, True])
def test_equals_the_plain_loop(
    regression: bool, bias: bool, direct: bool, device: torch.device
) -> None:
    sizes = [12, 16, 9, 4]
    ours = MLP(sizes, bias).to(device, torch.float64)
    theirs = copy.deepcopy(ours)
    if not direct:
        # A hook is what only autograd's path calls.
        ours.act1.register_forward_hook(lambda module, args, output: None)
    assert covers(ours) == direct
    x, y = data(regression=regression)
    x, y = x.double().to(device), y.to(device, torch.float64) if regression else y.to(device)
    sgd = torch.optim.SGD(ours.parameters(), 0.1)
    history = fit(ours, (x, y), 2, batch_size=30, optimizer=sgd, seed=3)
    losses = plain_loop(theirs, x, y, seed=3)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(history.loss, torch.tensor(losses, dtype=torch.float64))


def test_leaves_training_flags_as_they_were() -> None:
    model = network().eval()
    model[2].train()
    fit(model, data(), 1, test=data())
    assert [module.training for module in model] == [False, False, True, False, False, False]


KILLED = """
import os, sys, torch
sys.path.insert(0, os.path.dirname({test!r}))
spec = __import__("importlib.util").util.spec_from_file_location("test_fit", {test!r})
test_fit = __import__("importlib.util").util.module_from_spec(spec)
spec.loader.exec_module(test_fit)
epochs = 0
class Dying(test_fit.Modularity):
    def step(self, closure=None):
        if self.param_groups[0]["n_steps"] == 10:
            os._exit(9)  # in the third epoch
        self.param_groups[0]["n_steps"] += 1
        return super().step(closure)
model = test_fit.network()
optimizer = Dying(model.parameters(), 0.05, 4, alpha=1.0, momentum=0.9)
optimizer.param_groups[0]["n_steps"] = 0
Dying.__name__ = "Modularity"
test_fit.fit(model, test_fit.data(), 6, optimizer=optimizer, test=test_fit.data(50), seed=0,
             checkpoint={checkpoint!r})
"""


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run.pt"
    code = KILLED.format(test=__file__, checkpoint=str(path))
    dead = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert dead.returncode == 9, dead.stderr
    assert [p.name for p in path.parent.iterdir()] == ["run.pt"]

    resumed, whole = network(), network()
    with torch.no_grad():
        resumed[0].weight.zero_()  # whatever it was, the checkpoint decides
    found = fit(resumed, data(), 6, optimizer=modularity, test=data(50), seed=0, checkpoint=path)
    expected = fit(whole, data(), 6, optimizer=modularity, test=data(50), seed=0)
    assert all(map(torch.equal, resumed.parameters(), whole.parameters()))
    for name in ("loss", "clusterability", "accuracy", "accuracy_steps"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


def test_resumes_with_a_regularizer_and_adam(tmp_path: Path) -> None:
    def run(epochs: int, checkpoint: Path | None) -> nn.Module:
        model = network()
        reg = ClusterabilityLoss(model, "3")
        fit(model, data(), epochs, regularizer=reg, seed=0, checkpoint=checkpoint)
        return model

    run(2, tmp_path / "run.pt")
    resumed, whole = run(4, tmp_path / "run.pt"), run(4, None)
    assert all(map(torch.equal, resumed.parameters(), whole.parameters()))


def test_refuses_the_checkpoint_of_another_run(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    fit(network(), data(), 1, seed=0, checkpoint=path)
    with pytest.raises(ValueError, match="batch size is 64, this one's is 10"):
        fit(network(), data(), 2, batch_size=10, checkpoint=path)
    with pytest.raises(ValueError, match="optimizer is 'Adam', this one's is 'Modularity'"):
        fit(network(), data(), 2, optimizer=modularity, checkpoint=path)
    torch.save({"a": 1}, path)
    with pytest.raises(ValueError, match="run.pt' holds no checkpoint of a training run that modf"):
        fit(network(), data(), 2, checkpoint=path)
    path.write_bytes(b"half")
    with pytest.raises(ValueError, match="run.pt' holds no checkpoint of a training run that modf"):
        fit(network(), data(), 2, checkpoint=path)


def test_progress_bar_only_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    fit(network(), data(), 1)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_divergence_is_an_error() -> None:
    model = network()
    with pytest.raises(FloatingPointError, match="smaller learning rate"):
        fit(model, data(), 50, optimizer=torch.optim.SGD(model.parameters(), 1e6), seed=0)


def test_seeded_runs_in_threads_equal_runs_alone() -> None:
    def run(_: int) -> Tensor:
        model = starts.pop()
        fit(model, data(), 3, seed=5)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    starts = [network() for _ in range(5)]
    alone = run(0)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, range(4)))
    assert all(torch.equal(each, alone) for each in found)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("seed", [None, 0])
def test_another_default_device(seed: int | None) -> None:
    model, x, y = network(), *data()
    with torch.device("meta"):
        history = fit(model, (x, y), 2, test=(x, y), optimizer=modularity, seed=seed)
        plain = fit(model, (x, y), 1, seed=seed)
    assert {x.device.type for x in vars(history).values() if isinstance(x, Tensor)} == {"cpu"}
    assert {x.device.type for x in vars(plain).values() if isinstance(x, Tensor)} == {"cpu"}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_trains_where_gradients_are_off(mode: Any) -> None:
    found, expected = network(), network()
    with mode():
        fit(found, tuple(each.clone() for each in data()), 1, optimizer=modularity, seed=0)
    fit(expected, data(), 1, optimizer=modularity, seed=0)
    assert all(map(torch.equal, found.parameters(), expected.parameters()))


class Wrapped(nn.Module):
    """A model that returns its logits among other things."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.inner, self.kind = network(), kind

    def forward(self, x: Tensor) -> Any:
        logits = self.inner(x)
        if self.kind == "object":
            return SimpleNamespace(logits=logits, loss=None)
        return {"tuple": (x, logits), "dict": {"h": x, "out": logits}}[self.kind]


@pytest.mark.parametrize(
    ("kind", "output"),
    [("object", None), ("tuple", 1), ("dict", "out"), ("dict", lambda found: found["out"])],
)
def test_outputs_that_are_no_tensor(kind: str, output: Any) -> None:
    model, expected = Wrapped(kind), network()
    found = fit(model, data(), 2, test=data(50), seed=0, output=output)
    wanted = fit(expected, data(), 2, test=data(50), seed=0)
    assert all(map(torch.equal, model.inner.parameters(), expected.parameters()))
    assert torch.equal(found.accuracy, wanted.accuracy)


def test_batch_norm_and_a_last_batch_of_one() -> None:
    model = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    before = copy.deepcopy(model.state_dict())
    for n, batch_size in ((65, 64), (3, 1), (1, 64)):
        with pytest.raises(ValueError, match="batch_size must leave more than one.*BatchNorm '1'"):
            fit(model, data(n), 1, batch_size=batch_size)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    fit(model, data(66), 1)
    image = nn.Sequential(
        nn.Unflatten(1, (3, 2, 2)),
        nn.Conv2d(3, 4, 1),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.LazyLinear(4),
    )
    image(data()[0])
    fit(image, data(65), 1)  # four values a channel are enough

    class Frozen(nn.BatchNorm1d):
        def train(self, mode: bool = True) -> Frozen:
            return super().train(False)

    fit(nn.Sequential(Frozen(12).eval(), nn.Linear(12, 4)), data(65), 1)


def test_samples_that_the_model_refuses_are_named() -> None:
    model, (x, y) = network(), data()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        ValueError, match=r"train must hold samples that the model takes.*\(200, 11\)"
    ):
        fit(model, (x[:, :11], y), 1)
    with pytest.raises(ValueError, match=r"train must hold samples that the model takes.*float64"):
        fit(model, (x.double(), y), 1)
    with pytest.raises(ValueError, match=r"test must hold samples that the model takes.*int64"):
        fit(model, (x, y), 1, test=(x.long(), y))
    with pytest.raises(ValueError, match=r"train must hold samples that the model takes.*\(200,\)"):
        fit(MLP([12, 4]), (x[:, 0], y), 1)
    with pytest.raises(ValueError, match="train must not be empty"):
        fit(model, (x[0, 0], y), 1)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got list"):
        fit([99], data(), 1)  # type: ignore[arg-type]
    for model in (nn.ReLU(), network().requires_grad_(False)):
        with pytest.raises(ValueError, match="model must have parameters that require gradients"):
            fit(model, data(), 1)
    with pytest.raises(TypeError, match=r"returned a tuple, not a tensor; output= must pick"):
        fit(Wrapped("tuple"), data(), 1)
    with pytest.raises(ValueError, match=r"output='logits': the dict that the model returned has"):
        fit(Wrapped("dict"), data(), 1, output="logits")


def test_checkpoints_of_other_data_seeds_or_lengths(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    (x, y), model = data(), network()
    fit(model, (x, y), 3, seed=0, checkpoint=path)
    kept = copy.deepcopy(model.state_dict())
    for other, seed in (((x, y.flip(0)), 0), ((x + 1, y), 0), ((x, y), 1), ((x, y), None)):
        with pytest.raises(ValueError, match="is of another run: its (data|seed) is"):
            fit(model, other, 4, seed=seed, checkpoint=path)
    with pytest.raises(ValueError, match="epochs must be at least the 3 that checkpoint .* got 2"):
        fit(model, (x, y), 2, seed=0, checkpoint=path)
    for name, wrong in (("losses", 3), ("model", {}), ("generator", None)):
        values = load_values(path, "checkpoint of a training run")
        broken = tmp_path / f"{name}.pt"
        save_values(broken, "checkpoint of a training run", values | {name: wrong})
        with pytest.raises(ValueError, match="must hold"):
            fit(model, (x, y), 4, seed=0, checkpoint=broken)
    assert all(torch.equal(p, kept[name]) for name, p in model.state_dict().items())
    # What an older release wrote knew neither data nor seed.
    values = load_values(path, "checkpoint of a training run")
    del values["run"]["data"], values["run"]["seed"]
    save_values(path, "checkpoint of a training run", values)
    assert fit(model, (x, y), 4, seed=0, checkpoint=path).loss.shape == (16,)


def test_bad_input() -> None:
    model = network()
    x, y = data()
    with pytest.raises(ValueError, match="epochs must be at least 1, got 0"):
        fit(model, (x, y), 0)
    with pytest.raises(TypeError, match="batch_size must be an integer, got 1.5"):
        fit(model, (x, y), 1, batch_size=1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="seed must be an integer, got '0'"):
        fit(model, (x, y), 1, seed="0")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"train must be a pair \(inputs, targets\), a Data"):
        fit(model, x, 1)
    with pytest.raises(TypeError, match="optimizer must be callable, got 'adam'"):
        fit(model, (x, y), 1, optimizer="adam")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="regularizer must be callable, got 15.0"):
        fit(model, (x, y), 1, regularizer=15.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"model must return \[n, ..., n_outputs\].*got \(4,\)"):
        fit(nn.Sequential(model, nn.Flatten(0)), (x, y), 1)
    with pytest.raises(ValueError, match="got 800 samples and 200 targets"):
        fit(nn.Sequential(model, nn.Unflatten(1, (4, 1))), (x, y), 1)
    with pytest.raises(ValueError, match="train must not be empty"):
        fit(model, (x[:0], y[:0]), 1)
    with pytest.raises(ValueError, match=r"as many samples as targets, got 200 and \(199,\)"):
        fit(model, (x, y[1:]), 1)
    with pytest.raises(ValueError, match="train must be finite, got 1 of 2400"):
        fit(model, (x.index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(torch.nan)), y), 1)
    with pytest.raises(ValueError, match="classes from 0 to 3.*got 7"):
        fit(model, (x, y.clamp(min=3) + 4), 1)
    with pytest.raises(ValueError, match="test must have classes from 0 to 3.*got -1"):
        fit(model, (x, y), 1, test=(x, y - 1))
    with pytest.raises(
        TypeError, match="train must have integer classes or real .* got torch.bool"
    ):
        fit(model, (x, y.bool()), 1)
    with pytest.raises(ValueError, match=r"real targets of shape \(200, 4\)"):
        fit(model, (x, y.float()), 1)
