"""capture into files that are mapped into memory: the same values, whole or not there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from state.test_interrupts import Steps
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from modfast import capture, checks
from modfast.models import MLP
from modfast.network.stored import Stored, storing


class Places(nn.Module):
    """Sites whose names no file may have."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.rnn, self.act = (
            nn.Conv2d(1, 3, 2),
            nn.LSTM(4, 5, batch_first=True),
            nn.Tanh(),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.act(self.conv(x)).flatten(2))
        return self.rnn(h[..., :4])[0] + 1


NAMES = ["conv", "rnn:input", "rnn[0]", "act#1", "/add#0", "input"]


def images(n: int = 20) -> Tensor:
    return torch.randn(n, 1, 4, 3, generator=torch.Generator().manual_seed(1))


def streams(x: Tensor) -> dict[str, Any]:
    data = TensorDataset(x, torch.arange(len(x)))
    return {
        "one batch": {"inputs": x},
        "cut": {"inputs": x, "batch_size": 3},
        "loader": {"inputs": DataLoader(data, batch_size=7), "progress": False},
        "generator": {"inputs": (part for part in x.split(1))},
        "folder": {"inputs": [x]},
    }


@pytest.mark.parametrize("kind", list(streams(images(1))))
def test_values_are_those_without_files(kind: str, tmp_path: Path) -> None:
    model, x = Places(), images()
    wanted = capture(model, **streams(x)[kind], sites=NAMES)
    found = capture(model, **streams(x)[kind], sites=NAMES, out=tmp_path / "a" / "b")
    assert list(found) == list(wanted)
    files = {unquote(path.stem): path for path in (tmp_path / "a" / "b").iterdir()}
    assert files.keys() == set(NAMES)
    for name, value in wanted.items():
        assert torch.equal(found[name], value)
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(np.load(files[name], mmap_mode="r"), value)
        assert np.load(files[name]).flags.c_contiguous


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.bool,
              torch.int64, torch.uint8, torch.complex64]
)  # fmt: skip
@pytest.mark.parametrize("shape", [(6,), (6, 4), (6, 0), (6, 2, 3)])
def test_dtypes(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    values = (100 * torch.rand(shape)).to(dtype)
    with storing(tmp_path) as stored:
        for part in values.split(4):
            stored.add("x", part)
    found, bits = stored.tensor("x"), np.load(tmp_path / "x.npy")
    assert found.dtype == dtype
    assert found.shape == shape
    assert bits.shape == shape
    if dtype in (torch.bfloat16, torch.float8_e4m3fn):
        assert bits.dtype == np.dtype(f"u{dtype.itemsize}")
    wanted = bytes_of(values)
    assert bits.tobytes() == bytes_of(found) == wanted


def bytes_of(values: Tensor) -> bytes:
    return values.reshape(-1).view(torch.uint8).numpy().tobytes()


def test_scalars_and_views(tmp_path: Path) -> None:
    plain = torch.randn(4, 3, dtype=torch.complex64)
    with storing(tmp_path) as stored:
        stored.add("scalar", torch.tensor(2.5))
        for part in (plain.T.conj(), plain.mH):
            stored.add("across", part)
    assert stored.tensor("scalar").item() == np.load(tmp_path / "scalar.npy") == 2.5
    assert torch.equal(stored.tensor("across"), torch.cat([plain.mH, plain.mH]))


def test_as_many_rows_as_there_are(tmp_path: Path) -> None:
    """The header is as long for any number of rows."""
    for n in (1, 9, 10, 99, 12345):
        with storing(tmp_path) as stored:
            for i in range(0, n, 1000):
                stored.add("x", torch.arange(i, min(n, i + 1000))[:, None])
        assert torch.equal(stored.tensor("x")[:, 0], torch.arange(n))
        assert np.load(tmp_path / "x.npy").shape == (n, 1)


def test_what_is_done_to_values_does_not_reach_the_file(tmp_path: Path) -> None:
    model, x = MLP([6, 5, 3]), torch.randn(10, 6)
    wanted = capture(model, x, "fc1")["fc1"]
    with torch.inference_mode():
        found = capture(model, x, "fc1", out=str(tmp_path))["fc1"]
    assert not found.is_inference()
    found.zero_()
    np.testing.assert_array_equal(np.load(tmp_path / "fc1.npy"), wanted)
    # Another call replaces the file, and what was read of the old one stays.
    first = capture(model, x, "fc1", out=tmp_path)["fc1"]
    second = capture(model, x + 1, "fc1", out=tmp_path)["fc1"]
    assert torch.equal(first, wanted)
    assert torch.equal(second, capture(model, x + 1, "fc1")["fc1"])


@pytest.mark.skipif(sys.platform != "linux", reason="files without blocks elsewhere take room")
def test_more_than_the_memory_is_mapped(tmp_path: Path) -> None:
    stored = Stored(tmp_path)
    stored.add("x", torch.tensor([[1.0, 2.0]]))
    file = stored.files["x"]
    n = 2 * checks._MEMORY // 8
    file.shape = (n, 2)
    assert file.file is not None
    file.file.seek(8 * n - 8, os.SEEK_CUR)
    file.file.truncate()
    file.file.seek(0, os.SEEK_END)
    file.file.truncate(len(file.header()) + 8 * n)
    file.finish()
    file.rename()
    found = stored.tensor("x")
    assert found.nbytes >= 2 * checks._MEMORY - 8
    assert found[0].tolist() == [1.0, 2.0]
    assert found[-1].tolist() == [0.0, 0.0]


# ------------------------------------------------------------------------------- whole or not there


class Failing(MLP):
    """Fails, or is interrupted, at a batch."""

    def __init__(self, error: BaseException) -> None:
        super().__init__([6, 5, 3])
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 4:
            raise self.error
        return super().forward(x)


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), RuntimeError("mine"), FileNotFoundError(2, "none", "a.png")]
)
@pytest.mark.parametrize("there", [False, True])
def test_nothing_half_written_is_left(error: BaseException, there: bool, tmp_path: Path) -> None:
    x, folder = torch.randn(10, 6), tmp_path / "kept"
    if there:
        capture(Failing(error), x, ["fc1", "act1"], out=folder)
    before = {path.name: path.read_bytes() for path in tmp_path.rglob("*.*")}
    with pytest.raises(type(error)) as caught:
        capture(Failing(error), x, ["fc1", "act1"], batch_size=6, out=folder)
    assert caught.value is error  # what a model or a data set cannot read is no fault of `out`
    assert {path.name: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_ctrl_c_at_any_step_leaves_all_files_or_none(tmp_path: Path) -> None:
    model, x = MLP([6, 5, 3]), torch.randn(6, 6)
    wanted = capture(model, x, ["fc1", "fc2"])

    def call(folder: Path) -> None:
        capture(model, x, ["fc1", "fc2"], batch_size=3, out=folder)

    count = Steps()
    count.during(lambda: call(tmp_path / "whole"))
    before, seen = signal.signal(signal.SIGINT, signal.default_int_handler), set()
    try:
        for i in range(60):
            # The most at the end, where files get their names.
            at = int(count.n * (1 - (i / 60) ** 2)) or 1
            folder = tmp_path / str(i)
            with suppress(KeyboardInterrupt):
                Steps(at).during(lambda folder=folder: call(folder))  # type: ignore[misc]
            names = {path.name for path in folder.iterdir()} if folder.exists() else set()
            assert names in (set(), {"fc1.npy", "fc2.npy"})
            seen.add(len(names))
            for name in names:
                np.testing.assert_array_equal(np.load(folder / name), wanted[Path(name).stem])
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == {0, 2}


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    code = """
import os, sys, torch, modfast
def stream():
    yield torch.zeros(3, 6)
    os._exit(0)
modfast.capture(modfast.models.MLP([6, 5, 3]), stream(), "fc1", out=sys.argv[1])
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".fc1.npy.")
    capture(MLP([6, 5, 3]), torch.zeros(3, 6), "act1", out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["act1.npy"]


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
def test_a_full_disk(tmp_path: Path) -> None:
    code = """
import resource, signal, sys, torch, modfast
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    stream = (torch.zeros(1000, 6) for _ in range(9))
    modfast.capture(modfast.models.MLP([6, 5, 3]), stream, ["fc1", "act1"], out=sys.argv[1])
except OSError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "cannot be written ([Errno 27] File too large)" in done.stdout
    assert str(tmp_path / "fc1.npy") in done.stdout
    assert not list(tmp_path.iterdir())


def test_bad_folders(tmp_path: Path) -> None:
    model, x = MLP([6, 5, 3]), torch.randn(4, 6)
    runs: list[int] = []
    model.fc1.register_forward_hook(lambda *_: runs.append(1))
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match=r"cannot be written .*: '.*file'"):
        capture(model, x, "fc1", out=tmp_path / "file")
    for out in (3, x, ["a"]):
        with pytest.raises(TypeError, match="out must be a path, got"):
            capture(model, x, "fc1", out=out)  # type: ignore[arg-type]
    for out in ("", "a\0b"):
        with pytest.raises(ValueError, match="out must be the path of a folder, got"):
            capture(model, x, "fc1", out=out)
    assert runs == []


def test_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    capture(MLP([6, 5, 3]), torch.randn(4, 6), "fc1", out=".")
    assert [path.name for path in tmp_path.iterdir()] == ["fc1.npy"]


def test_batches_that_do_not_fit_together(tmp_path: Path) -> None:
    tokens = [torch.zeros(2, t, dtype=torch.long) for t in (3, 4)]
    with pytest.raises(ValueError, match=r"one shape and dtype, got \('n', 3, 2\) float32 and "
                       r"\('n', 4, 2\) float32"):  # fmt: skip
        capture(nn.Sequential(nn.Embedding(3, 2)), tokens, "0", out=tmp_path)
    rows = [torch.zeros(2, 3), torch.zeros(2, 3).double()]
    with pytest.raises(ValueError, match="float32 and .* float64"):
        capture(nn.Sequential(nn.ReLU()), rows, "0", out=tmp_path)
    flat = nn.Sequential(nn.Flatten(0), nn.Identity())
    with pytest.raises(ValueError, match="batch-first; 2 rows gave shape"):
        capture(flat, torch.randn(4, 6), "0", batch_size=2, out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_sites_that_a_pattern_leaves_out_later(tmp_path: Path) -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.always, self.first = nn.Identity(), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.always(self.first(x) if len(x) == 3 else x)

    stream = [torch.zeros(3, 2), torch.ones(2, 2)]
    assert list(capture(Sometimes(), stream, "*", out=tmp_path)) == ["always"]
    assert [path.name for path in tmp_path.iterdir()] == ["always.npy"]


PEAK = """
import resource, sys, torch, modfast

def stream(n):
    for i in range(n):
        yield torch.full((1000, 256), float(i))

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

model = modfast.models.MLP([256, 512, 2])
modfast.capture(model, stream(2), ["fc1", "act1"], out=sys.argv[1])
before = peak()
found = modfast.capture(model, stream(100), ["fc1", "act1"], out=sys.argv[1])
assert found["act1"].shape == (100_000, 512)
print((peak() - before) / (2 * 1000 * 512 * 4))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no such count of memory")
def test_a_stream_takes_the_memory_of_a_batch(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, check=True
    )
    # In batches; all of them are a hundred.
    assert float(done.stdout) < 2.0


def test_loaders_are_read_once_and_in_their_order(tmp_path: Path) -> None:
    seen: list[int] = []

    class Rows(torch.utils.data.Dataset[Tensor]):
        def __len__(self) -> int:
            return 10

        def __getitem__(self, i: int) -> Tensor:
            seen.append(i)
            return torch.full((6,), float(i))

    def order() -> Iterator[int]:
        yield from range(9, -1, -1)

    loader = DataLoader(Rows(), batch_size=4, sampler=order())
    found = capture(MLP([6, 5, 3]), loader, "fc1:input", out=tmp_path, progress=False)
    assert found["fc1:input"][:, 0].tolist() == [*range(9, -1, -1)] == seen
