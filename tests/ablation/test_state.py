"""What ablations refuse, and how they leave the model."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modfast import AblationResult, ablate_directions, ablate_groups, ablate_units
from modfast.models import MLP

PATHS = ["fused", "replay", "model"]
X = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))


class Dropped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm = nn.Linear(8, 6), nn.BatchNorm1d(6)
        self.drop, self.fc2 = nn.Dropout(0.5), nn.Linear(6, 3)
        self.unused = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.drop(self.norm(self.fc1(x))))


def state(model: nn.Module) -> list[Any]:
    return [
        [m.training for m in model.modules()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        [sorted(m.__dict__) for m in model.modules()],
        [id(m.forward.__func__) for m in model.modules()],
        [value.clone() for value in model.state_dict().values()],
        [p.requires_grad for p in model.parameters()],
    ]


@pytest.mark.parametrize("path", PATHS)
def test_runs_in_eval_mode_and_leaves_the_model_as_it_was(path: str) -> None:
    model = Dropped()
    model.drop.eval()  # the caller's own choice
    model.norm.train()
    before = state(model)
    first = ablate_units(model, X, "norm", backend=path)
    again = ablate_units(model, X, "norm", backend=path)
    assert torch.equal(first.kl_ablated_original, again.kl_ablated_original)
    after = state(model)
    assert before[:4] == after[:4]
    assert before[5] == after[5]
    assert all(torch.equal(a, b) for a, b in zip(before[4], after[4], strict=True))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("path", ["replay", "model"])
def test_leaves_the_model_as_it_was_after_an_exception(path: str) -> None:
    model = Dropped()
    before = state(model)

    def output(found: Tensor) -> Tensor:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        ablate_units(model, X, "norm", output=output, backend=path)
    assert before[:4] == state(model)[:4]
    calls: list[int] = []

    def fails(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > (path == "model"):  # else one run is all there is
            raise KeyError("later")
        return out

    model.fc2.register_forward_hook(fails)
    before = state(model)
    with pytest.raises(KeyError, match="later"):
        ablate_units(model, X, "norm", backend=path, max_memory=1)
    assert before[:4] == state(model)[:4]


@pytest.mark.parametrize("path", [None, "replay"])
def test_a_changed_model_is_traced_again(path: str | None) -> None:
    model, x = MLP([8, 6, 6, 3]).double(), X.double()
    before = ablate_units(model, x, "act1", backend=path)
    model.act2 = nn.Tanh()
    found = ablate_units(model, x, "act1", backend=path)
    wanted = ablate_units(model, x, "act1", backend="model")
    torch.testing.assert_close(found.kl_ablated_original, wanted.kl_ablated_original)
    assert not torch.equal(found.kl_ablated_original, before.kl_ablated_original)
    model.fc3.weight.data.mul_(2)
    found = ablate_units(model, x, "act1", backend=path)
    wanted = ablate_units(model, x, "act1", backend="model")
    torch.testing.assert_close(found.kl_ablated_original, wanted.kl_ablated_original)


def test_models_are_not_kept_alive() -> None:
    model = MLP([8, 6, 6, 3])
    ablate_units(model, X, "act1")
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("path", [*PATHS, None])
def test_bad_sites(path: str | None) -> None:
    model = Dropped()
    with pytest.raises(ValueError, match="site='nrm': no such module.*did you mean: 'norm'"):
        ablate_units(model, X, "nrm", backend=path)
    with pytest.raises(TypeError, match="site must be a name, names or a mapping, got 3"):
        ablate_units(model, X, 3, backend=path)  # type: ignore[arg-type]
    if path in ("model", None):
        with pytest.raises(ValueError, match="site='unused': not reached"):
            ablate_units(model, X, "unused", backend=path)
    twice = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    twice.append(twice[1])
    with pytest.raises(ValueError, match="site='1': called 2 times in one pass"):
        ablate_units(twice, X, "1", backend=path)


@pytest.mark.parametrize("path", [*PATHS, None])
def test_bad_arguments(path: str | None) -> None:
    model = MLP([8, 6, 6, 3])

    def units(**options: Any) -> AblationResult:
        return ablate_units(model, X, "act2", backend=path, **options)

    with pytest.raises(ValueError, match="units must be from 0 to 5, got 6"):
        units(units=[0, 6])
    with pytest.raises(ValueError, match="units must be from 0 to 5, got -1"):
        units(units=[-1])
    with pytest.raises(TypeError, match="units must .*integer"):
        units(units=[0.5])
    with pytest.raises(TypeError, match="units must .*integer"):
        units(units="ab")
    with pytest.raises(ValueError, match="units must not be empty"):
        units(units=[])
    for value in (1e300, torch.tensor(1e300, dtype=torch.float64)):
        with pytest.raises(ValueError, match="value must be finite"):
            units(value=value)
    with pytest.raises(TypeError, match="value='mean' reads inputs twice"):
        ablate_units(model, iter([X]), "act2", value="mean", backend=path)
    y = torch.zeros(20, dtype=torch.int64)
    for batches in ([(X, y), X], [X, (X, y)]):
        with pytest.raises(ValueError, match="targets in all of its batches, or in none"):
            ablate_units(model, batches, "act2", backend=path)
    for vectors in (torch.full((1, 6), torch.inf), torch.full((1, 6), torch.nan)):
        with pytest.raises(ValueError, match="directions must be finite, got 6 of 6"):
            ablate_directions(model, X, "act2", vectors, backend=path)
    with pytest.raises(ValueError, match="value must be finite, got nan"):
        units(value=float("nan"))
    with pytest.raises(ValueError, match="value must be one of 'mean', .*, got 'max'"):
        units(value="max")
    with pytest.raises(ValueError, match=r"value must have shape \[\] or \[6\], got \[5\]"):
        units(value=torch.zeros(5))
    with pytest.raises(ValueError, match="max_memory must be at least 1, got 0"):
        units(max_memory=0)
    with pytest.raises(ValueError, match="classes from 0 to 2.*got 3"):
        units(targets=torch.full((20,), 3))
    with pytest.raises(ValueError, match="20 samples and 19 targets"):
        units(targets=torch.zeros(19, dtype=torch.int64))
    with pytest.raises(TypeError, match="targets must have integer classes"):
        units(targets=torch.zeros(20))
    with pytest.raises(ValueError, match="directions must not be zero, got zeros in row 1"):
        ablate_directions(
            model, X, "act2", torch.eye(6)[:2] * torch.tensor([[1], [0]]), backend=path
        )
    with pytest.raises(ValueError, match=r"shape \[a, 6\], the width of 'act2', got \(5, 5\)"):
        ablate_directions(model, X, "act2", torch.eye(5), backend=path)
    with pytest.raises(TypeError, match="directions must be a floating tensor, got list"):
        ablate_directions(model, X, "act2", [[1.0]], backend=path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"units must hold indices from 0 to 5, got 9"):
        ablate_groups(model, X, "act2", [[1], [9]], backend=path)
    with pytest.raises(ValueError, match="units must be of the 6 units there are, got 5"):
        ablate_groups(model, X, "act2", torch.ones(2, 5, dtype=torch.bool), backend=path)
    with pytest.raises(ValueError, match="inputs must be finite, got 1 of 160"):
        ablate_units(
            model, X.clone().index_put((torch.tensor(0),) * 2, torch.tensor(torch.nan)), "act2"
        )
    with pytest.raises(ValueError, match="inputs must not be empty"):
        ablate_units(model, X[:0], "act2", backend=path)
    with pytest.raises(ValueError, match="inputs must not be empty, got no batches"):
        ablate_units(model, [], "act2", backend=path)
    with pytest.raises(TypeError, match="inputs must be a tensor.*got int"):
        ablate_units(model, 3, "act2", backend=path)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="returned a tuple, not a tensor; output= must return"):
        ablate_units(model, X, "act2", output=lambda z: (z,))  # type: ignore[arg-type,return-value]
    with torch.no_grad():
        model.fc3.bias[1] = torch.inf
    with pytest.raises(ValueError, match="the model's logits must be finite, got 20 of 60"):
        units()


def test_bad_paths() -> None:
    model = MLP([8, 6, 6, 6, 3])
    with pytest.raises(ValueError, match="backend must be one of .*got 'fast'"):
        ablate_units(model, X, "act2", backend="fast")
    with pytest.raises(ValueError, match="backend='fused': needs units, or directions without"):
        ablate_directions(model, X, "fc1", torch.eye(6), backend="fused")


def test_results_rank_and_draw_themselves() -> None:
    model = MLP([8, 6, 6, 3])
    y = torch.arange(20) % 3
    result = ablate_units(model, X, "act2", targets=y)
    values, positions = result.top(2)
    assert torch.equal(values, result.kl_ablated_original.sort(descending=True).values[:2])
    assert torch.equal(result.kl_ablated_original[positions], values)
    each = ablate_units(model, X, "act2", targets=y, per_sample=True)
    assert torch.equal(each.top(2, "loss")[1], result.top(2, "loss")[1])
    torch.testing.assert_close(each.total("accuracy"), result.accuracy)
    with pytest.raises(ValueError, match="k must be at most 6, the ablations, got 7"):
        result.top(7)
    with pytest.raises(ValueError, match="one of .*'kl_original_ablated'], got 'loss'"):
        ablate_units(model, X, "act2").top(1, "loss")
