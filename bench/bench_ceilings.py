"""What a GPU can do: the rates that kernels are measured against, by the fastest peer."""

from __future__ import annotations

import torch
from timing import Compare, Peers


def test_copy(compare: Compare, gpu: str) -> None:
    """Memory read and written, by the driver's copy and by a kernel of torch's."""
    n_bytes = 2**30 if gpu == "cuda" else 2**24
    source = torch.randn(n_bytes // 4, device=gpu)
    target = torch.empty_like(source)
    peers: Peers = {
        "copy_": lambda: target.copy_(source),
        "neg, out=": lambda: torch.neg(source, out=target),
    }
    for (name, call), sign in zip(peers.items(), (1, -1), strict=True):
        target.fill_(torch.nan)
        call()
        assert torch.equal(target, sign * source), name
    compare(f"copy of {n_bytes >> 20} MiB", peers, device=gpu, bytes=2 * n_bytes)
    compare.ceiling("bytes")


def test_int8_product(compare: Compare, gpu: str) -> None:
    n = 8192 if gpu == "cuda" else 256
    generator = torch.Generator(gpu).manual_seed(0)
    a, b = (
        torch.randint(-128, 128, (n, n), generator=generator, device=gpu, dtype=torch.int8)
        for _ in range(2)
    )
    # The inner dimension runs fastest in both, as the tensor cores want it.
    found = torch._int_mm(a, b.t())
    assert torch.equal(found[:64].double(), a[:64].double() @ b.t().double())
    peers: Peers = {"torch._int_mm": lambda: torch._int_mm(a, b.t())}
    compare(f"int8 product of {n} x {n}", peers, device=gpu, ops=2 * n**3)
    compare.ceiling("ops")
