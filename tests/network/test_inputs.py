"""The one reader of inputs, and of the logits that count."""

from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import modfast
from modfast.network.inputs import Batch, read_batches
from modfast.network.logits import pick, read_rows

IDS = torch.arange(6).reshape(2, 3)
MODEL = nn.Linear(3, 2)


def one(inputs: Any, targets: Any = None, model: nn.Module = MODEL) -> Batch:
    (batch,) = read_batches(model, inputs, targets)
    return batch


class Needs(nn.Module):
    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        return ids + labels


def test_one_batch_in_every_form() -> None:
    x = torch.ones(2, 3)
    assert one(x).args[0] is x
    assert one((x, None, 3)).args == (x, None, 3)
    assert one({"x": x}).kwargs == {"x": x}
    assert one(UserDict({"x": x})).kwargs == {"x": x}  # as a BatchEncoding is


def test_labels_of_a_mapping_are_the_targets() -> None:
    found = one({"ids": IDS, "labels": IDS})
    assert found.targets is IDS
    assert list(found.kwargs) == ["ids"]
    assert list(one({"ids": IDS, "labels": IDS}, model=Needs()).kwargs) == ["ids", "labels"]
    named = one({"ids": IDS, "labels": IDS, "y": IDS + 1}, "y")
    assert torch.equal(named.targets, IDS + 1)  # type: ignore[arg-type]
    assert list(named.kwargs) == ["ids", "labels"]
    own = one({"ids": IDS, "labels": IDS}, IDS + 2)
    assert torch.equal(own.targets, IDS + 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="targets='lables' must name one of the inputs.*'labels'"):
        one({"ids": IDS, "labels": IDS}, "lables")


def test_streams() -> None:
    pairs = [({"ids": IDS[i : i + 1]}, IDS[i]) for i in range(2)]
    loader = DataLoader(pairs, batch_size=2)  # type: ignore[arg-type]
    (batch,) = read_batches(MODEL, loader)
    assert batch.kwargs["ids"].shape == (2, 1, 3)
    assert torch.equal(batch.targets, IDS)  # type: ignore[arg-type]
    first, second = read_batches(MODEL, [torch.ones(1, 3), [torch.ones(1, 3), torch.ones(1)]])
    assert first.targets is None
    assert second.targets is not None
    with pytest.raises(ValueError, match="inputs must not be empty, got no batches"):
        list(read_batches(MODEL, []))
    with pytest.raises(ValueError, match="targets must come with the batches"):
        list(read_batches(MODEL, [IDS], IDS))


def test_what_is_refused() -> None:
    for bad, kind in ((torch.nan, ValueError), (torch.inf, ValueError)):
        with pytest.raises(kind, match="inputs must be finite, got 1 of 6"):
            one(torch.tensor([[0.0, 1, 2], [3, 4, bad]]))
    one((IDS, torch.tensor([[0.0, -torch.inf]])))  # a mask of attention
    with pytest.raises(TypeError, match="inputs must be a dense tensor in memory, got .*sparse"):
        one(torch.eye(3).to_sparse())
    with pytest.raises(
        TypeError, match="inputs must be a dense tensor in memory, got a meta tensor"
    ):
        one(torch.eye(3, device="meta"))
    with pytest.raises(TypeError, match="inputs must be a tensor.*got int"):
        one(3)


def test_a_cache_is_copied_for_each_run() -> None:
    cache: list[Any] = [torch.ones(1), {"k": [1]}]
    batch = one((IDS, cache))
    (_, first), _ = batch.arguments()
    first.append(0)
    first[1]["k"].append(2)
    (_, second), _ = batch.arguments()
    assert second[1:] == cache[1:] == [{"k": [1]}]
    assert second[0] is cache[0]


def test_rows_that_count() -> None:
    logits = torch.arange(18.0).reshape(2, 3, 3)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    y = torch.tensor([[0, 1, 2], [-100, 2, 1]])
    rows = read_rows(logits, Batch((), {"ids": IDS, "attention_mask": mask}, y))
    assert rows.logits.tolist() == logits.reshape(6, 3)[[0, 1, 4, 5]].tolist()
    assert rows.targets is not None
    assert rows.targets.tolist() == [0, 1, 2, 1]
    assert read_rows(logits, Batch((), {"ids": IDS})).kept is None
    for dtype in (torch.uint8, torch.int32, torch.uint16):
        found = read_rows(logits, Batch((), {}, y.clamp(min=0).to(dtype))).targets
        assert found is not None
        assert found.dtype == torch.int64
    with pytest.raises(ValueError, match="classes from 0 to 2.*got 3"):
        read_rows(logits, Batch((), {}, y + 1))
    with pytest.raises(ValueError, match="must have positions that count"):
        read_rows(logits, Batch((), {}, torch.full((2, 3), -100)))


def test_logits_are_picked() -> None:
    @dataclass
    class Out:
        loss: Tensor
        logits: Tensor

    logits = torch.randn(2, 3, 4)
    out = Out(torch.zeros(()), logits)
    assert pick(out, None) is logits
    assert pick({"logits": logits}, None) is logits
    assert pick((0, logits), 1) is logits
    assert pick({"a": logits}, "a") is logits
    assert pick(out, lambda found: found.logits) is logits
    mask = torch.tensor([[0, 1, 1], [1, 1, 0]])  # padded left, and right
    batch = Batch((), {"attention_mask": mask})
    found = pick(out, modfast.last_token, batch)
    assert torch.equal(found, torch.stack([logits[0, 2], logits[1, 1]]))
    with pytest.raises(TypeError, match="returned a tuple, not a tensor; output= must pick"):
        pick((logits,), None)
    with pytest.raises(ValueError, match="output='b': the dict that the model returned has no"):
        pick({"a": logits}, "b")
