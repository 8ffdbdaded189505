"""max_activating against sorting of captured activations."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
)

import modfast
from modfast import TopActivations, capture, max_activating
from modfast.models import MLP


def sorted_top(activations: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and values of the k largest of each column: value descending, index ascending."""
    columns = activations.double().numpy().T
    order = np.stack([np.lexsort((np.arange(columns.shape[1]), -each)) for each in columns])[:, :k]
    return order, np.take_along_axis(columns, order, 1)


def assert_is_top(top: TopActivations, activations: Tensor, labels: Tensor | None, k: int) -> None:
    indices, values = sorted_top(activations, k)
    np.testing.assert_array_equal(top.indices, indices)
    np.testing.assert_array_equal(top.values, values)
    assert (top.labels is None) == (labels is None)
    if labels is not None:
        assert torch.equal(top.labels, labels[top.indices])
    assert torch.equal(top.dead, activations.amax(0) <= 0)


class Rounds(nn.Module):
    """Activations of few values, the same in any batch, some units dead: ties everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.act = nn.Identity(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.inner((x.flatten(1) * 3).round() - torch.arange(x[0].numel()) % 5 * 3))


def samples(n: int = 203, d: int = 37) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator)
    return x, torch.randint(0, 10, (n,), generator=generator)


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


class Pairs(Dataset[Any]):
    """No tensors in memory, as of images read from files."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.x[i], int(self.y[i])


class Stream(IterableDataset[Any]):
    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __iter__(self):
        return zip(self.x, self.y, strict=True)


@pytest.mark.parametrize("batch_size", [None, 1, 50, 203, 1000])
@pytest.mark.parametrize("k", [1, 20, 203])
def test_ties_and_dead_units_in_any_batches(batch_size: int | None, k: int) -> None:
    model, (x, y) = Rounds(), samples()
    found = max_activating(model, (x, y), "*", k, batch_size=batch_size)
    wanted = capture(model, x, "*")
    assert list(found) == ["inner", "act"]
    for site, top in found.items():
        assert_is_top(top, wanted[site], y, k)
    assert 0 < found["act"].dead.sum() < 37
    assert_is_top(max_activating(model, x, "act", k)["act"], wanted["act"], None, k)


def loaders(x: Tensor, y: Tensor) -> dict[str, Any]:
    memory, other = TensorDataset(x, y), Pairs(x, y)
    order = torch.randperm(len(x)).tolist()
    return {
        "dataset in memory": memory,
        "dataset": other,
        "in order": DataLoader(memory, batch_size=30),
        "shuffled": DataLoader(memory, batch_size=30, shuffle=True),
        "shuffled, not in memory": DataLoader(other, batch_size=30, shuffle=True),
        "incomplete batch dropped": DataLoader(memory, batch_size=30, shuffle=True, drop_last=True),
        "workers": DataLoader(other, batch_size=30, shuffle=True, num_workers=2),
        "batches sampled": DataLoader(other, batch_sampler=BatchSampler(order, 17, False)),
        "collated": DataLoader(memory, 30, True, collate_fn=lambda rows: tuple(
            torch.stack(list(each)) for each in zip(*rows, strict=True))),
        "stream": Stream(x, y),
        "stream, loader": DataLoader(Stream(x, y), batch_size=30),
    }  # fmt: skip


@pytest.mark.parametrize("kind", list(loaders(*samples(2, 2))))
def test_indices_are_the_data_sets_whatever_the_loader(kind: str) -> None:
    x, y = samples()
    model = Rounds()
    found = max_activating(model, loaders(x, y)[kind], "act", 9, progress=False)["act"]
    assert_is_top(found, capture(model, x, "act")["act"], y, 9)


def test_only_what_the_sampler_draws_and_each_once() -> None:
    x, y = samples()
    chosen = torch.arange(100, 150)
    model = Rounds()
    wanted = capture(model, x[chosen], "act")["act"]
    for sampler in (SubsetRandomSampler(chosen.tolist()), [*chosen.tolist(), *chosen.tolist()]):
        loader = DataLoader(TensorDataset(x, y), batch_size=8, sampler=sampler)
        found = max_activating(model, loader, "act", 9)["act"]
        np.testing.assert_array_equal(found.indices - 100, sorted_top(wanted, 9)[0])
        assert torch.equal(found.labels, y[found.indices])


def test_torchs_random_numbers_are_left_alone() -> None:
    x, y = samples()
    torch.manual_seed(0)
    wanted = torch.rand(1)
    for data in ((x, y), Pairs(x, y)):
        torch.manual_seed(0)
        max_activating(Rounds(), data, "act")
        assert torch.equal(torch.rand(1), wanted)


@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_channels_and_tokens_over_positions(reduce: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Flatten(2), nn.Conv1d(5, 4, 3))
    x = torch.randn(60, 1, 8, 8)
    found = max_activating(model, x, "*", 7, reduce=reduce, batch_size=60)
    over = torch.amax if reduce == "max" else torch.mean
    acts = capture(model, x, "*")
    for site, dims in (("0", (2, 3)), ("1", (2, 3)), ("2", (1,)), ("3", (2,))):
        assert_is_top(found[site], over(acts[site], dims), None, 7)
    tokens = torch.randint(0, 9, (50, 6))
    embedding = nn.Sequential(nn.Embedding(9, 4))
    found = max_activating(embedding, tokens, "0", 7, reduce=reduce)
    assert_is_top(found["0"], over(embedding[0](tokens).detach(), 1), None, 7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype) -> None:
    model, x = MLP([37, 8, 3]).to(dtype), samples()[0].to(dtype)
    found = max_activating(model, x, "act1", 11)["act1"]
    assert found.values.dtype == (dtype if dtype == torch.float64 else torch.float32)
    assert_is_top(found, capture(model, x, "act1")["act1"], None, 11)


def test_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(37, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = max_activating(model, samples()[0], "*", 5)
    assert torch.equal(found["1"].indices, found["2"].indices)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model] == [True, False, True]
    with pytest.raises(ValueError, match="data must fit the model, .*: mat1 and mat2") as caught:
        max_activating(model, torch.randn(9, 36), "*", 5)
    assert type(caught.value.__cause__) is RuntimeError
    assert hooks(model) == 0
    assert model.training
    assert torch.is_grad_enabled()


class Careful(MLP):
    """Goes on after any Exception, and counts what it makes of inputs."""

    n_rows: ClassVar[list[int]] = []  # not the model's own, whose lists are put back

    def forward(self, x: Tensor) -> Tensor:
        try:
            x = self.act1(self.fc1(x))
        except Exception:
            x = x.new_zeros(len(x), self.fc1.out_features)
        self.n_rows.append(len(x))
        return self.fc2(x)


def test_after_the_first_pass_only_what_sites_need_runs() -> None:
    x, model = samples()[0], Careful([37, 11, 4])
    model.n_rows.clear()
    top = max_activating(model, x, ["act1", "fc1"], 7, batch_size=50)
    assert model.n_rows == [3]
    for name, activations in capture(model, x, ["act1", "fc1"]).items():
        torch.testing.assert_close(top[name].values, activations.topk(7, 0).values.T)
    model.n_rows.clear()
    max_activating(model, x, "fc2", 7, batch_size=50)
    assert model.n_rows == [3, 50, 50, 50, 50]


def test_merged_parts_are_the_whole() -> None:
    model, (x, y) = Rounds(), samples()
    whole = max_activating(model, (x, y), "act", 20)["act"]

    def of(rows: range) -> TopActivations:
        loader = DataLoader(TensorDataset(x, y), batch_size=32, sampler=list(rows))
        return max_activating(model, loader, "act", 20)["act"]

    first, second = of(range(0, 120)), of(range(90, 203))  # 30 samples in both
    for merged in (first.merge(second), second.merge(first), whole.merge(first)):
        assert torch.equal(merged.indices, whole.indices)
        assert torch.equal(merged.values, whole.values)
        assert torch.equal(merged.labels, whole.labels)
    with pytest.raises(TypeError, match="other must be a TopActivations, got Tensor"):
        whole.merge(x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\(37, 20\), got \(37, 19\)"):
        whole.merge(max_activating(model, (x, y), "act", 19)["act"])
    with pytest.raises(ValueError, match="labels just where"):
        whole.merge(max_activating(model, x, "act", 20)["act"])


class Tokens(nn.Module):
    """A model of token ids with keyword inputs, as those of the transformers library."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc = nn.Embedding(9, 4), nn.Linear(4, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        return {"logits": self.fc(self.embed(input_ids))}


class Encoded(Dataset[Any]):
    def __init__(self, rows: dict[str, Tensor], y: Tensor) -> None:
        self.rows, self.y = rows, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> Any:
        return {name: value[i] for name, value in self.rows.items()}, self.y[i]


@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_masked_positions_and_every_kind_of_data(reduce: str) -> None:
    torch.manual_seed(0)
    model, n, t = Tokens().double(), 40, 6
    ids, y = torch.randint(0, 9, (n, t)), torch.randint(0, 3, (n,))
    lengths = torch.randint(1, t + 1, (n,))
    mask = (torch.arange(t) < lengths[:, None]).long()
    # By plain loops.
    values = model.fc(model.embed(ids)).detach()
    rows = [values[i, : lengths[i]] for i in range(n)]
    wanted = torch.stack([r.amax(0) if reduce == "max" else r.mean(0) for r in rows])
    inputs = {"input_ids": ids, "attention_mask": mask}
    kinds: dict[str, Any] = {
        "pair": (inputs, y),
        "mapping": {**inputs, "labels": y},
        "data set of pairs": Encoded(inputs, y),
        "loader of pairs": DataLoader(Encoded(inputs, y), batch_size=7, shuffle=True),
    }
    for name, data in kinds.items():
        found = max_activating(model, data, "fc", 9, reduce=reduce, batch_size=None)["fc"]
        np.testing.assert_array_equal(found.indices, sorted_top(wanted, 9)[0], err_msg=name)
        torch.testing.assert_close(found.values, wanted.topk(9, 0).values.T, rtol=1e-12, atol=0)
        assert found.labels is not None
        assert torch.equal(found.labels, y[found.indices])
        assert found.backend == "model"
    # A language model's targets are no labels; what is not wanted by the model does not reach it.
    labels = ids.masked_fill(mask == 0, -100)
    for data in ({**inputs, "labels": labels}, Encoded(inputs, labels)):
        found = max_activating(model, data, ["fc:input", "fc"], 9, reduce=reduce)
        assert list(found) == ["fc:input", "fc"]
        assert found["fc"].labels is None
        np.testing.assert_array_equal(found["fc"].indices, sorted_top(wanted, 9)[0])
    transformers = pytest.importorskip("transformers")
    encoded = transformers.BatchEncoding({**inputs, "labels": y})
    found = max_activating(model, encoded, "fc", 9, reduce=reduce, batch_size=11)["fc"]
    np.testing.assert_array_equal(found.indices, sorted_top(wanted, 9)[0])
    assert torch.equal(found.labels, y[found.indices])
    mask[3] = 0
    with pytest.raises(ValueError, match="data must have positions that count in each sample"):
        max_activating(model, inputs, "fc")


def test_units_of_features_last_and_of_channels() -> None:
    """FAULTS H: a Linear on [n, 7, 7, 8] has 5 units, and not 7."""

    class Image(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.up, self.act = nn.Conv2d(1, 8, 2), nn.Linear(8, 5), nn.GELU()
            self.down, self.free = nn.Linear(5, 8), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            h = self.conv(x)
            h = h + self.down(self.act(self.up(h.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
            return self.free(h.unflatten(1, (2, 4)).flatten(1, 2))

    torch.manual_seed(0)
    model, x = Image().double(), torch.randn(30, 1, 8, 8).double()
    names = ["conv", "up", "act", "down", "/add#0"]
    found = max_activating(model, x, names, 7, batch_size=9)
    values = capture(model, x, names)
    for name in names:
        over = (2, 3) if name in ("conv", "/add#0") else (1, 2)
        wanted = values[name].amax(over)
        np.testing.assert_array_equal(found[name].indices, sorted_top(wanted, 7)[0], err_msg=name)
        torch.testing.assert_close(found[name].values, wanted.topk(7, 0).values.T)
    with pytest.raises(ValueError, match="dim must say which dimension of 'free' holds its units"):
        max_activating(model, x, "free", 7)
    free = capture(model, x, "free")["free"]
    top = max_activating(model, x, "free", 7, dim=-3)["free"]
    np.testing.assert_array_equal(top.indices, sorted_top(free.amax((2, 3)), 7)[0])
    with pytest.raises(ValueError, match="dim must be a dimension of the site"):
        max_activating(model, x, "free", 7, dim=4)
    with pytest.raises(ValueError, match="dim must not be 0, the samples of 'free', got -4"):
        max_activating(model, x, "free", 7, dim=-4)


def test_activations_of_minus_infinity() -> None:
    class Log(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.log())

    x = torch.rand(10, 3) + 0.1
    x[4:, 1] = 0
    assert torch.equal(max_activating(Log(), x, "inner", 4)["inner"].indices[1].sort().values,
                       torch.arange(4))  # fmt: skip
    with pytest.raises(ValueError, match="5 largest activations of 'inner' must be finite, got a "
                       "unit with only 4 above -infinity"):  # fmt: skip
        max_activating(Log(), x, "inner", 5)


def test_inference_mode_and_inputs_that_do_not_fit() -> None:
    model, (x, y) = MLP([37, 8, 3]), samples()
    wanted = max_activating(model, (x, y), "act1", 5)["act1"]
    with torch.inference_mode():
        own = x.clone()
        inside = max_activating(model, (own, y), "act1", 5)["act1"]
    assert torch.equal(inside.indices, wanted.indices)
    assert torch.equal(max_activating(model, (own, y), "act1", 5)["act1"].values, wanted.values)
    for bad in (x.double(), x[:, :5], x[:, 0]):
        with pytest.raises(ValueError, match="data must fit the model, whose forward pass failed"):
            max_activating(model, (bad, y), "act1", 5)


def max_activating_alone(model: nn.Module, x: Tensor, k: int) -> Tensor:
    """The indices, by sorting."""
    return torch.from_numpy(sorted_top(model(x).detach(), k)[0])


def on_rank(rank: int, port: int, folder: str) -> None:
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    (x, y), model, found = samples(), Rounds(), {}
    data = TensorDataset(x, y)
    found["shared"] = max_activating(model, (x, y), "act", 20, batch_size=16)["act"]
    # The second rank gets nothing.
    found["one batch"] = max_activating(model, data, "act", 20)["act"]
    # 203 samples on two ranks: one is given twice.
    for name, shuffle in (("sampler", False), ("shuffled", True)):
        loader = DataLoader(data, 16, sampler=DistributedSampler(data, shuffle=shuffle))
        found[name] = max_activating(model, loader, "act", 20)["act"]
    # One sample, and none for the second rank, which its sampler leaves without a batch.
    few = DataLoader(data, 16, sampler=range(7) if rank == 0 else range(0))
    top = max_activating(model, few, "act", 5)["act"]
    assert torch.equal(top.indices, max_activating_alone(model, x[:7], 5))
    ids, embed = torch.arange(200).view(50, 4) ** 2 % 31, nn.Embedding(31, 3)
    embed.weight.data = (torch.arange(93.0).view(31, 3) ** 2 % 17).round()
    top = max_activating(nn.Sequential(embed), ids, "0", 6, batch_size=8, context=1)["0"]
    each = embed(ids).detach().movedim(2, 0)[torch.arange(3)[:, None], top.indices]
    assert torch.equal(top.positions, each.argmax(2))
    assert torch.equal(top.tokens[..., 1], ids[top.indices, top.positions])
    calls: list[int] = []
    model.act.register_forward_hook(lambda *_: calls.append(1))
    max_activating(model, data, "act", 20, batch_size=100)  # of three batches the first has two
    assert len(calls) == 2
    # FAULTS V: a sharded model is run by all ranks, or by none.
    torch.manual_seed(0)
    whole = MLP([37, 8, 3])
    wanted = max_activating_alone(whole.fc1, x, 5)
    sharded = fully_shard(whole, mesh=init_device_mesh("cpu", (2,)))
    for batch_size in (None, 100):
        top = max_activating(sharded, data, "fc1", 5, batch_size=batch_size)["fc1"]
        assert torch.equal(top.indices, wanted)
    with pytest.raises(ValueError, match="data must not be empty, got a DataLoader without"):
        max_activating(model, DataLoader(data, 16, sampler=range(0)), "act", 5)
    with pytest.raises(ValueError, match="k must be at most 7, the samples, got 8"):
        max_activating(model, few, "act", 8)
    with pytest.raises(ValueError, match="IterableDataset under torch.distributed"):
        max_activating(model, Stream(x, y), "act", 20)
    saved = {name: (top.indices, top.values, top.labels) for name, top in found.items()}
    torch.save(saved, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.distributed
def test_ranks_give_the_result_for_all_samples(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Started as programs: a child that unpickles a function could not import this file.
    command = [sys.executable, __file__, str(port), str(tmp_path)]
    ranks = [subprocess.Popen([*command, str(rank)]) for rank in range(2)]
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    x, y = samples()
    activations = capture(Rounds(), x, "act")["act"]
    for rank in range(2):
        for saved in torch.load(tmp_path / f"{rank}.pt").values():
            assert_is_top(TopActivations(*saved), activations, y, 20)


def test_bad_input() -> None:
    model, (x, y) = MLP([37, 8, 3]), samples()
    with pytest.raises(ValueError, match="data must have a row for each sample, got a tensor of"):
        max_activating(MLP([4, 3]), torch.tensor(1.0), "fc1")
    with pytest.raises(ValueError, match="sites='act2': no such module; did you mean: 'act1'"):
        max_activating(model, x, "act2")
    with pytest.raises(ValueError, match="k must be at most 203, the samples, got 204"):
        max_activating(model, x, "act1", 204)
    with pytest.raises(ValueError, match="k must be at most 203, the samples, got 204"):
        max_activating(model, Stream(x, y), "act1", 204)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        max_activating(model, x, "act1", 0)
    with pytest.raises(ValueError, match="reduce must be one of .*, got 'sum'"):
        max_activating(model, x, "act1", reduce="sum")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="data must not be empty"):
        max_activating(model, x[:0], "act1")
    with pytest.raises(ValueError, match="data must not be empty"):
        max_activating(model, DataLoader(TensorDataset(x), sampler=[]), "act1")
    with pytest.raises(ValueError, match="got 203 and 202"):
        max_activating(model, (x, y[1:]), "act1")
    with pytest.raises(TypeError, match="data must be a tensor, .* got list"):
        max_activating(model, [x], "act1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size must be None with a DataLoader, got 5"):
        max_activating(model, DataLoader(TensorDataset(x)), "act1", batch_size=5)
    with pytest.raises(ValueError, match="makes batches, got one of batch_size=None"):
        max_activating(model, DataLoader(TensorDataset(x), batch_size=None), "act1")
    bad = x.clone()
    bad[150, 3] = torch.nan
    with pytest.raises(ValueError, match="activations of 'act1' must be numbers, got 8 of .* NaN"):
        max_activating(model, bad, "act1", batch_size=100)
    bad[150, 3] = torch.inf
    with pytest.raises(ValueError, match="must be finite|must be numbers"):
        max_activating(model, bad, "act1")
    with pytest.raises(ValueError, match="sites='1': values must be batch-first"):
        max_activating(nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (37, -1))), x, "1")
    with pytest.raises(TypeError, match="sites='0': must be a floating tensor"):
        max_activating(nn.Sequential(nn.Identity()), y, "0")


def test_figure_shows_the_inputs() -> None:
    pytest.importorskip("plotly")
    x = torch.rand(30, 1, 4, 5)
    model = MLP([20, 6, 3])
    top = modfast.max_activating(model, x, "fc1", 7)["fc1"]
    (mosaic,) = top.plot(x, units=[2, 0], n_samples=3).data
    assert mosaic.z.shape == (2 * 5 - 1, 3 * 6)
    np.testing.assert_array_equal(mosaic.z[5:9, 6:11], x[top.indices[0, 1], 0])
    (strips,) = top.plot(x.flatten(1), units=[2, 0], n_samples=3).data
    np.testing.assert_array_equal(strips.z[1], x[top.indices[2, 1]].flatten())
    colors = top.plot([(image.expand(3, 4, 5), 0) for image in x]).data[0]
    assert np.asarray(colors.z).shape[2] == 3
    with pytest.raises(ValueError, match="units must be from 0 to 5, got 6"):
        top.plot(x, units=[6])
    with pytest.raises(ValueError, match="units must not be empty"):
        top.plot(x, units=[])
    with pytest.raises(ValueError, match="inputs must be the data set's, got 1"):
        top.plot(x[:1])


if __name__ == "__main__":
    on_rank(int(sys.argv[3]), int(sys.argv[1]), sys.argv[2])
