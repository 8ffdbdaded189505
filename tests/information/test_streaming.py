from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from modfast import JointHistogram, joint_histogram, mutual_information

LIMITS = (-3.0, 3.0)


def values() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 3, generator=generator)
    return x, x + torch.randn(500, 3, generator=generator)


@pytest.mark.parametrize("pairing", ["aligned", "all", "pairwise"])
@pytest.mark.parametrize("sizes", [[500], [1, 99, 400], [123] * 4 + [8]])
def test_batches_add_up_to_the_whole(pairing: str, sizes: list[int], device: torch.device) -> None:
    x, y = (each.to(device) for each in values())
    features = (3, 3) if pairing == "pairwise" else None
    histogram = JointHistogram(8, LIMITS, pairing=pairing, features=features, device=device)
    for a, b in reversed(list(zip(x.split(sizes), y.split(sizes), strict=True))):
        histogram.update(a, b)
    result = histogram.compute()
    options = {"bins": 8, "range": LIMITS, "pairing": pairing}
    assert torch.equal(result.counts, joint_histogram(x, y, **options).cpu())
    expected = mutual_information(x, y, **options).cpu()
    torch.testing.assert_close(result.mutual_information, expected, rtol=0, atol=1e-12)
    h_x, h_y = result.x_entropy, result.y_entropy
    assert h_x.shape == h_y.shape == expected.shape
    joint = h_x + h_y - expected
    torch.testing.assert_close(result.joint_entropy, joint, rtol=0, atol=1e-9)
    torch.testing.assert_close(result.conditional_entropy, joint - h_y, rtol=0, atol=1e-9)


def test_codes_need_no_range_and_each_side_has_its_own() -> None:
    x, y = values()
    codes = (x > 0).long()
    plain = JointHistogram(2).update(codes, codes).compute()
    assert torch.equal(plain.counts, joint_histogram(codes, codes, 2))
    found = JointHistogram(4, LIMITS, y_range=(-6.0, 6.0)).update(x, y).compute().counts
    both = JointHistogram(4, LIMITS).update(x, y / 2).compute().counts
    assert torch.equal(found, both)


def test_merge_reset_and_state_dict(tmp_path: Path) -> None:
    x, y = values()
    first, second = JointHistogram(5, LIMITS), JointHistogram(5, LIMITS)
    first.update(x[:100], y[:100])
    second.update(x[100:], y[100:])
    torch.save(first.state_dict(), tmp_path / "state.pt")
    first.merge(second)
    whole = joint_histogram(x, y, 5, range=LIMITS)
    assert torch.equal(first.compute().counts, whole)
    second.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert torch.equal(second.compute().counts, joint_histogram(x[:100], y[:100], 5, range=LIMITS))
    second.reset()
    with pytest.raises(ValueError, match="must be updated before compute"):
        second.compute()
    assert torch.equal(first.compute().counts, whole)


def count_on_rank(rank: int, port: int, folder: str) -> None:
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    x, y = values()
    rows = slice(0, 130) if rank == 0 else slice(130, None)
    result = JointHistogram(8, LIMITS).update(x[rows], y[rows]).compute()
    torch.save((result.counts, result.mutual_information), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.distributed
def test_ranks_add_up(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Started as programs: a child that unpickles a function could not import this file.
    command = [sys.executable, __file__, str(port), str(tmp_path)]
    ranks = [subprocess.Popen([*command, str(rank)]) for rank in range(2)]
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    x, y = values()
    for rank in range(2):
        counts, information = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(counts, joint_histogram(x, y, 8, range=LIMITS))
        assert information == mutual_information(x, y, 8, range=LIMITS)


def test_bad_input() -> None:
    x, y = values()
    histogram = JointHistogram(5, LIMITS, outside="error")
    with pytest.raises(ValueError, match=r"y must lie within range=\(-3.0, 3.0\)"):
        histogram.update(x.clamp(-3, 3), y)
    with pytest.raises(ValueError, match="range must be given for floating values of x"):
        JointHistogram(5).update(x, y)
    with pytest.raises(ValueError, match="'aligned', got 3 and 2"):
        histogram.update(x, y[:, :2])
    with pytest.raises(ValueError, match="same samples, got 500 and 499"):
        histogram.update(x, y[1:])
    with pytest.raises(ValueError, match=r"features=\(2, 3\), got 3 and 3"):
        JointHistogram(5, LIMITS, pairing="pairwise", features=(2, 3)).update(x, y)
    with pytest.raises(ValueError, match=r"features must be \(dx, dy\) with pairing='pairwise'"):
        JointHistogram(5, LIMITS, pairing="pairwise")
    with pytest.raises(ValueError, match="features must be .*got .* with pairing='all'"):
        JointHistogram(5, LIMITS, pairing="all", features=(2, 2))
    with pytest.raises(ValueError, match=r"y_range must be \(lo, hi\).*got 'column'"):
        JointHistogram(5, LIMITS, y_range="column")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lo < hi"):
        JointHistogram(5, (3.0, -3.0))
    with pytest.raises(TypeError, match="other must be a JointHistogram, got Tensor"):
        histogram.merge(x)  # type: ignore[arg-type]
    for other, name in (
        (JointHistogram(5, (-3.0, 4.0)), "range"),
        (JointHistogram(6, LIMITS), "shape"),
        (JointHistogram(5, LIMITS, pairing="all"), "pairing"),
    ):
        with pytest.raises(ValueError, match=f"other must have .*{name}="):
            histogram.merge(other)
        with pytest.raises(ValueError, match=f"state must have .*{name}="):
            histogram.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="state must have keys"):
        histogram.load_state_dict({"counts": x})
    assert not histogram.counts.any()


if __name__ == "__main__":
    count_on_rank(int(sys.argv[3]), int(sys.argv[1]), sys.argv[2])
