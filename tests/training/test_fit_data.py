"""What `fit` reads: pairs, mappings, data sets and loaders; positions and targets that count."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import modfast
from modfast import fit
from modfast.models import MLP


def samples(n: int = 50) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 6, generator=generator)
    return x, x[:, :3].argmax(1)


class Net(nn.Module):
    """Takes a second input that may be missing; dropout shows which random numbers were drawn."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))

    def forward(self, x: Tensor, more: Tensor | None = None, labels: Any = None) -> Tensor:
        assert labels is None
        found: Tensor = self.inner(x if more is None else x + more)
        return found


class Dicts(Dataset[Any]):
    def __init__(self, x: Tensor, y: Tensor, labeled: bool) -> None:
        self.x, self.y, self.labeled = x, y, labeled

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        if self.labeled:
            return {"x": self.x[i], "labels": self.y[i]}
        return {"x": self.x[i]}, self.y[i]


def trained(data: Any, **options: Any) -> tuple[list[Tensor], modfast.History]:
    model = Net()
    history = fit(model, data, 2, test=data, seed=3, **options)
    return [*model.parameters()], history


@pytest.mark.parametrize("kind", ["tuple", "mapping", "labels", "set", "dicts", "labeled"])
def test_each_kind_in_memory_or_by_index_trains_as_the_pair(kind: str) -> None:
    x, y = samples()
    data: Any = {
        "tuple": ((x, None), y),
        "mapping": ({"x": x}, y),
        "labels": {"x": x, "labels": y},
        "set": TensorDataset(x, y),
        "dicts": Dicts(x, y, labeled=False),
        "labeled": Dicts(x, y, labeled=True),
    }[kind]
    found, history = trained(data, batch_size=16)
    expected, wanted = trained((x, y), batch_size=16)
    # A data set is read in evaluation by an own loader, and draws nothing either.
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(history.loss, wanted.loss)
    assert torch.equal(history.accuracy, wanted.accuracy)
    assert history.loss.shape == (8,)


def test_a_loader_has_its_own_order_and_size() -> None:
    x, y = samples()
    model, plain = MLP([6, 8, 3]), MLP([6, 8, 3])
    plain.load_state_dict(model.state_dict())
    sgd = torch.optim.SGD(model.parameters(), 0.1)

    def loader() -> DataLoader[Any]:
        own = torch.Generator().manual_seed(7)
        return DataLoader(TensorDataset(x, y), 20, shuffle=True, generator=own)

    history = fit(model, loader(), 2, optimizer=sgd, seed=0)
    theirs = torch.optim.SGD(plain.parameters(), 0.1)
    losses, again = [], loader()
    for _ in range(2):
        for some, targets in again:
            theirs.zero_grad()
            loss = nn.functional.cross_entropy(plain(some), targets)
            loss.backward()
            theirs.step()
            losses.append(loss.detach())
    torch.testing.assert_close(history.loss, torch.stack(losses))
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_seed_fixes_a_loaders_order_and_leaves_the_global_state(tmp_path: Any) -> None:
    x, y = samples()
    data = DataLoader(Dicts(x, y, labeled=True), 16, shuffle=True)
    model = Net()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    fit(model, data, 2, test=data, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    first = [*model.parameters()]
    second, _ = trained(data)
    assert all(map(torch.equal, first, second))
    fit(Net(), data, 1, test=data, seed=3, checkpoint=tmp_path / "run")
    resumed, history = trained(data, checkpoint=tmp_path / "run")
    assert all(map(torch.equal, first, resumed))
    assert history.loss.shape == (8,)


def test_a_stream_of_samples() -> None:
    x, y = samples(20)

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter(zip(x, y, strict=True))

    batches = [(x[i : i + 8], y[i : i + 8]) for i in (0, 8, 16)]
    kinds: list[Any] = [(Stream(), 8), (batches, None)]
    for data, size in kinds:
        model = MLP([6, 8, 3])
        assert fit(model, data, 2, size, test=data).loss.shape == (6,)
    once: Any = zip([x], [y], strict=True)
    with pytest.raises(TypeError, match="train must be a pair .* read in each epoch, got zip"):
        fit(model, once, 1)
    with pytest.raises(TypeError, match="test must be a pair .* read in each epoch, got zip"):
        fit(model, (x, y), 1, test=once)


class Tagger(nn.Module):
    """Logits `[n, t, c]`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(11, 8), nn.Linear(8, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        return {"h": input_ids, "logits": self.head(self.embed(input_ids))}


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
def test_positions_that_count(real: bool, streamed: bool) -> None:
    ids = torch.randint(11, (12, 7), generator=torch.Generator().manual_seed(0))
    y, mask = ids % 5, torch.ones_like(ids)
    mask[:, 5:] = 0
    if real:
        y = nn.functional.one_hot(y, 5).float()
        kept = y[:, :5].reshape(-1, 5)
    else:
        y[:, 0] = -100
        kept = y[:, 1:5].reshape(-1)
    data: Any = ({"input_ids": ids, "attention_mask": mask}, y)
    flat = ids[:, :5] if real else ids[:, 1:5]
    if streamed:
        parts = zip(ids, mask, y, strict=True)
        items: Any = [({"input_ids": a, "attention_mask": b}, c) for a, b, c in parts]
        data = DataLoader(items, 12)
    model, plain = Tagger(), Tagger()
    size = None if streamed else 12
    sgd = torch.optim.SGD(model.parameters(), 0.5)
    history = fit(model, data, 1, size, sgd, test=data, seed=0)
    criterion = nn.functional.mse_loss if real else nn.functional.cross_entropy
    loss = criterion(plain(flat.reshape(-1))["logits"], kept)
    loss.backward()
    torch.testing.assert_close(history.loss[0], loss.detach())
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert q.grad is not None
        torch.testing.assert_close(p, q - 0.5 * q.grad)
    logits = model(flat.reshape(-1))["logits"]
    expected = modfast.scores.scores(logits.detach(), kept)[0]
    torch.testing.assert_close(history.accuracy[-1], expected)


def test_ignored_targets_of_a_plain_network() -> None:
    x, y = samples()
    some = y.clone()
    some[::2] = -100
    model, plain = MLP([6, 8, 3]), MLP([6, 8, 3])
    plain.load_state_dict(model.state_dict())
    found = fit(model, (x, some), 1, 50, test=(x, some), seed=0)
    wanted = fit(plain, (x[1::2], y[1::2]), 1, 50, test=(x[1::2], y[1::2]), seed=0)
    torch.testing.assert_close(found.loss, wanted.loss)
    assert torch.equal(found.accuracy, wanted.accuracy)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_classes_of_other_integers(dtype: torch.dtype) -> None:
    x, y = samples()
    for a, b in zip(trained((x, y.to(dtype)))[0], trained((x, y))[0], strict=True):
        torch.testing.assert_close(a, b)
    fit(MLP([6, 3]), (x, y[:, None]), 1, test=(x, y[:, None]))


def test_last_token_classifies_sequences() -> None:
    ids = torch.randint(11, (12, 7), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(7) < torch.arange(1, 13)[:, None].clamp(max=7)).long()
    last = ids[torch.arange(12), mask.sum(1) - 1]
    data = {"input_ids": ids, "attention_mask": mask, "labels": last % 5}
    model, plain = Tagger(), Tagger()
    history = fit(model, data, 1, 12, output=modfast.last_token, seed=0)
    loss = nn.functional.cross_entropy(plain(last)["logits"], last % 5)
    torch.testing.assert_close(history.loss[0], loss.detach())


def test_what_is_wrong_is_named() -> None:
    x, y = samples()
    model, loader = Net(), DataLoader(TensorDataset(*samples()), 10)
    with pytest.raises(
        ValueError, match="batch_size must be None where train is a DataLoader, got"
    ):
        fit(model, loader, 1, batch_size=10)
    with pytest.raises(ValueError, match="train must be samples with targets"):
        fit(model, DataLoader(x, 10), 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="test must be samples with targets"):
        fit(model, (x, y), 1, test={"x": x})
    with pytest.raises(TypeError, match="test must be a pair .*got Tensor"):
        fit(model, (x, y), 1, test=x)
    with pytest.raises(
        ValueError, match=r"train must have one number of rows.*\(50, 6\) and \(3, 6"
    ):
        fit(model, ((x, x[:3]), y), 1)
    with pytest.raises(ValueError, match="train must have classes from 0 to 2.*got 9"):
        fit(model, TensorDataset(x, y * 0 + 9), 1)
    with pytest.raises(ValueError, match="test must have classes from 0 to 2.*got 9"):
        fit(model, loader, 1, test=DataLoader(TensorDataset(x, y * 0 + 9), 10))
    with pytest.raises(ValueError, match="train must hold samples that the model takes"):
        fit(model, TensorDataset(x[:, 1:], y), 1)
    with pytest.raises(ValueError, match="train must have positions that count, got none"):
        fit(model, TensorDataset(x, torch.full_like(y, -100)), 1)
    with pytest.raises(TypeError, match="output must be a function or a key, got 1.5"):
        fit(model, loader, 1, output=1.5)  # type: ignore[arg-type]
    normed = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    for data in (TensorDataset(x[:33], y[:33]), DataLoader(TensorDataset(x[:33], y[:33]), 32)):
        size = None if isinstance(data, DataLoader) else 32
        with pytest.raises(ValueError, match="batch_size must leave more than one.*32 for 33 sam"):
            fit(normed, data, 1, batch_size=size)
