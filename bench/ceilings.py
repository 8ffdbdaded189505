"""What the machine can do: the rates that kernels are measured against."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from compare import Case, Peers


def gpu_cases(device: str) -> Iterator[partial[Case]]:
    """Of each case the fastest peer is the ceiling."""
    yield partial(copy_case, 2**30 if device == "cuda" else 2**24, device)
    yield partial(int8_case, 8192 if device == "cuda" else 256, device)


def copy_case(n_bytes: int, device: str) -> Case:
    """Memory read and written, by the driver's copy and by a kernel of torch's."""
    source = torch.randn(n_bytes // 4, device=device)
    target = torch.empty_like(source)
    peers: Peers = {
        "copy_": lambda: target.copy_(source),
        "neg, out=": lambda: torch.neg(source, out=target),
    }
    for (name, call), sign in zip(peers.items(), (1, -1), strict=True):
        target.fill_(torch.nan)
        call()
        assert torch.equal(target, sign * source), name
    return Case(f"copy of {n_bytes >> 20} MiB", peers, device=device, bytes=2 * n_bytes)


def int8_case(n: int, device: str) -> Case:
    generator = torch.Generator(device).manual_seed(0)
    a, b = (
        torch.randint(-128, 128, (n, n), generator=generator, device=device, dtype=torch.int8)
        for _ in range(2)
    )
    # The inner dimension runs fastest in both, as the tensor cores want it.
    found = torch._int_mm(a, b.t())
    assert torch.equal(found[:64].double(), a[:64].double() @ b.t().double())
    return Case(
        f"int8 product of {n} x {n}",
        {"torch._int_mm": lambda: torch._int_mm(a, b.t())},
        device=device,
        ops=2 * n**3,
    )
