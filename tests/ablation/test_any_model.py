"""Units of any model: convolutions, tokens, branches, shared sites, GPT-2."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ablation import oracle
from torch import Tensor, nn
from torch.nn import functional

from modfast import ablate_directions, ablate_groups, ablate_units


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.fc = nn.Linear(6 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.max_pool2d(self.act(self.norm(self.conv1(x))), 2)
        h = h + functional.relu(self.conv2(h))
        return self.fc(h.view(h.size(0), -1))


class Block(nn.Module):
    """A transformer's block, with keyword inputs and a dictionary as output."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.up, self.act, self.down = nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)
        self.head = nn.Linear(8, 7)

    def forward(self, tokens: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        h = self.embed(tokens) * scale
        h = h + self.attention(h, h, h)[0]
        h = h + self.down(self.act(self.up(self.norm(h))))
        return {"logits": self.head(h), "hidden": h}


class Branching(nn.Module):
    """Its course hangs on values, so that it can be neither traced nor batched."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        kept = self.fc1(x)
        h = self.fc2(kept)
        if h.sum() > 0:
            h = -h
        kept += h  # changes what fc1 returned
        return self.fc3(kept)


def channels(model: nn.Module, x: Any, site: str, n: int, output: Any = lambda o: o) -> Tensor:
    before = oracle.run(model, x, output=output)

    def zero(i: int) -> Any:
        def apply(a: Tensor) -> Tensor:
            a.select(1 if a.dim() == 4 else -1, i).zero_()
            return a

        return apply

    return torch.stack(
        [oracle.terms(before, oracle.run(model, x, site, zero(i), output=output)) for i in range(n)]
    )


@pytest.mark.parametrize("path", ["replay", "model"])
@pytest.mark.parametrize("site", ["conv1", "norm", "act", "conv2"])
def test_channels_of_a_convolution(path: str, site: str) -> None:
    torch.manual_seed(0)
    model, x = Cnn().double(), torch.randn(7, 1, 8, 8).double()
    result = ablate_units(model, x, site, backend=path)
    oracle.assert_equal(result, channels(model, x, site, 6), 1e-12)


def test_functions_are_sites() -> None:
    torch.manual_seed(0)
    model, x = Cnn().double(), torch.randn(7, 1, 8, 8).double()
    found = ablate_units(model, x, "/max_pool2d#0").kl_ablated_original
    # Zeroed channels stay zero where they are pooled.
    wanted = ablate_units(model, x, "act").kl_ablated_original
    torch.testing.assert_close(found, wanted)
    assert ablate_units(model, x, "/add#0").labels[-1] == "unit 5"
    with pytest.warns(DeprecationWarning, match="site='add' is now site='/add#...'"):
        assert ablate_units(model, x, "add").labels[-1] == "unit 5"
    with pytest.raises(ValueError, match="no such module or function; did you mean: '/add#0'"):
        ablate_units(model, x, "add_")


def test_functions_that_give_no_tensor_are_no_sites() -> None:
    class Sized(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            assert x.dim() == x.ndim
            return super().forward(x).view(x.size(0), -1)

    with pytest.raises(ValueError, match="no such module or function; there are: '/linear#0', '/v"):
        ablate_units(Sized(4, 3), torch.randn(5, 4), "/size_of#0")


@pytest.mark.parametrize("path", ["replay", "model"])
@pytest.mark.parametrize("site", ["act", "up", "norm", "embed"])
def test_tokens_and_keyword_inputs(path: str, site: str) -> None:
    torch.manual_seed(0)
    model = Block().double()
    tokens = torch.randint(0, 11, (3, 4))

    def output(found: Any) -> Tensor:
        return found["logits"]

    inputs = {"tokens": tokens}
    n = 16 if site in ("act", "up") else 8
    result = ablate_units(model, inputs, site, output=output, backend=path)
    assert result.n_samples == 12
    oracle.assert_equal(result, channels(model, inputs, site, n, output), 1e-12)
    same = ablate_units(model, (tokens,), site, output=output, backend=path, max_memory=1)
    torch.testing.assert_close(same.entropy_difference, result.entropy_difference)
    labels = torch.randint(0, 7, (3, 4))
    found = ablate_units(
        model, inputs, site, targets=labels, output=output, backend=path
    ).class_accuracy
    assert found is not None
    assert found.shape == (n, 7)


@pytest.mark.parametrize("path", ["model", None])
@pytest.mark.parametrize("site", ["fc1", "fc2"])
def test_models_that_cannot_be_traced(path: str | None, site: str) -> None:
    torch.manual_seed(0)
    model, x = Branching().double(), torch.randn(9, 12).double()
    result = ablate_units(model, x, site, backend=path)
    oracle.assert_equal(result, channels(model, x, site, 8), 1e-12)
    with pytest.raises(ValueError, match="backend='replay': cannot be taken at 'fc1': __bool__"):
        ablate_units(model, x, "fc1", backend="replay")


def test_what_comes_before_the_site_runs_once() -> None:
    torch.manual_seed(0)
    model, x = Cnn(), torch.randn(7, 1, 8, 8)
    calls: list[str] = []
    model.conv1.register_forward_pre_hook(lambda *_: calls.append("conv1"))
    ablate_units(model, x, "conv2", backend="replay", max_memory=1)
    assert len(calls) == 1


class Residual(nn.Module):
    """A block whose inner activations go two ways, of which one is a linear layer."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 6)
        self.out, self.how = nn.Linear(6, 3), how

    def forward(self, x: Tensor) -> Tensor:
        inner = self.act(self.up(x))
        down = self.down(inner)
        if self.how == "in place":
            down = down.relu_()
        if self.how == "twice":
            down = down + self.down(inner).tanh()
        return self.out(inner * down)


@pytest.mark.parametrize("path", ["replay", "model"])
@pytest.mark.parametrize("how", ["once", "twice", "in place"])
def test_a_linear_layer_is_not_all_that_follows(path: str, how: str) -> None:
    torch.manual_seed(0)
    model, x = Residual(how).double(), torch.randn(3, 5, 4).double()
    result = ablate_units(model, x, "act", backend=path)
    oracle.assert_equal(result, channels(model, x, "act", 6), 1e-12)
    directions = torch.eye(6).double()
    for changes in (ablate_directions, ablate_groups):
        each = directions if changes is ablate_directions else directions.bool()
        found = changes(model, x, "act", each, backend=path)
        torch.testing.assert_close(found.kl_ablated_original, result.kl_ablated_original)


@pytest.mark.parametrize("path", ["replay", "model", None])
@pytest.mark.slow
def test_gpt2(path: str | None) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=2,
        n_embd=16,
        n_head=2,
        n_positions=8,
        vocab_size=23,
        use_cache=False,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).double().train()
    inputs = {"input_ids": torch.randint(0, 23, (3, 8))}

    def last(found: Any) -> Tensor:
        return found.logits[:, -1]

    for site in ("transformer.h.1.mlp.act", "transformer.h.0.mlp.c_fc"):
        result = ablate_units(model, inputs, site, output=last, backend=path)
        oracle.assert_equal(result, channels(model, inputs, site, 64, last), 1e-12)
    assert model.training
