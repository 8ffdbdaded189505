"""`clusterability` forward and backward, against plain torch and the notebook's way."""

from __future__ import annotations

import pytest
import torch
from timing import Compare, in_turn, n_inputs
from torch import Tensor

import modfast
from modfast import reference
from modfast._extension import has_ops

PLAIN, NOTEBOOK = "torch, cached float mask", "notebook, mask rebuilt"
# size -> least ratio of plain torch with a cached mask, of the notebook's way
TARGETS = {64: (1.5, 5.0), 512: (8.0, 25.0), 4096: (20.0, 28.0)}
LARGEST = 8192
GPU_SIZES = pytest.mark.parametrize(
    ("n", "dtype"),
    [*((n, torch.float32) for n in (512, 4096, LARGEST)), (LARGEST, torch.bfloat16)],
)
# How far plain torch may be off, relatively and in units of the largest element. Its sums have the
# precision of the weight: in float32 they are off by more than ours at 4096.
CLOSE = {torch.float32: (1e-3, 1e-4), torch.bfloat16: (2**-5, 2**-6)}
# One rounding of ours.
ELEMENT = {torch.float32: 1e-6, torch.bfloat16: 2**-8}


@pytest.mark.short
@pytest.mark.parametrize("n", TARGETS)
def test_both(compare: Compare, n: int) -> None:
    plain, notebook = TARGETS[n]
    both(compare, n, {PLAIN: plain, NOTEBOOK: notebook}, "cpu", torch.float32, True)


@GPU_SIZES
def test_both_gpu(compare: Compare, gpu: str, n: int, dtype: torch.dtype) -> None:
    """The notebook's way of making the mask only where it takes longest."""
    targets = {PLAIN: 5.0} if n == LARGEST else {}
    both(compare, n if gpu == "cuda" else n // 32, targets, gpu, dtype, bool(targets))


def both(
    compare: Compare,
    n: int,
    targets: dict[str, float],
    device: str,
    dtype: torch.dtype,
    notebook: bool,
) -> None:
    torch.manual_seed(0)
    weights = [w.requires_grad_() for w in random_weights(n, device, dtype)]
    clusters = modfast.Clusters.equal(n, n, 4).to(device)
    mask = clusters.mask().to(dtype)
    row_lists = [(clusters.rows == c).nonzero()[:, 0].tolist() for c in range(4)]
    col_lists = [(clusters.cols == c).nonzero()[:, 0].tolist() for c in range(4)]

    def ours(weight: Tensor) -> None:
        weight.grad = None
        modfast.clusterability(weight, clusters).backward()

    def plain(weight: Tensor) -> None:
        weight.grad = None
        squares = weight.square()
        ((squares * mask).sum() / squares.sum()).backward()

    def rebuild(weight: Tensor) -> None:
        weight.grad = None
        rebuilt = torch.zeros(n, n, device=device, dtype=dtype)
        for rows, cols in zip(row_lists, col_lists, strict=True):
            rebuilt[torch.tensor(rows)[:, None], torch.tensor(cols)] = 1
        ((weight**2 * rebuilt).sum() / (weight**2).sum()).backward()

    _, exact = exact_sums_and_gradient(weights[0].detach(), clusters)
    relative, absolute = CLOSE[dtype]
    peers = {"modfast": ours, PLAIN: plain} | ({NOTEBOOK: rebuild} if notebook else {})
    for call in peers.values():
        call(weights[0])
        grad: Tensor | None = weights[0].grad
        assert grad is not None
        torch.testing.assert_close(
            grad.double(), exact, rtol=relative, atol=absolute * exact.abs().max()
        )
    compare(
        f"clusterability, forward + backward, {shape_words(n, dtype)}",
        {name: in_turn(call, weights) for name, call in peers.items()},
        targets,
        device=device,
        bytes=3 * weights[0].nbytes,
    )


def random_weights(n: int, device: str, dtype: torch.dtype) -> list[Tensor]:
    """As many as `n_inputs` says."""
    count = n_inputs(n * n * dtype.itemsize, device)
    return [torch.randn(n, n, device=device).to(dtype) for _ in range(count)]


def exact_sums_and_gradient(weight: Tensor, clusters: modfast.Clusters) -> tuple[Tensor, Tensor]:
    """In float64, without kernels."""
    one, exact = weight.new_ones((), dtype=torch.float64), [weight.double()]
    _, sums = reference.cluster_penalty(exact, clusters.labels, 1.0)
    return sums, reference.cluster_penalty_backward(one, exact, clusters.labels, sums, 1.0)[0]


def ceiling(n: int) -> dict[str, float]:
    """The least share of it, where the weight is large."""
    return {"ceiling": 0.8} if n == LARGEST else {}


def shape_words(n: int, dtype: torch.dtype) -> str:
    return f"{n} x {n}" + ("" if dtype == torch.float32 else f", {str(dtype)[6:]}")


@GPU_SIZES
def test_sums_gpu(compare: Compare, gpu: str, n: int, dtype: torch.dtype) -> None:
    """The sums alone: the weight is read once."""
    targets, n = ceiling(n), n if gpu == "cuda" else n // 32
    torch.manual_seed(0)
    weights = random_weights(n, gpu, dtype)
    clusters = modfast.Clusters.equal(n, n, 4).to(gpu)
    labels, mask = clusters.labels, clusters.mask().to(dtype)
    forward = torch.ops.modfast.cluster_penalty.default

    def plain(weight: Tensor) -> Tensor:
        squares = weight.square()
        return (squares * mask).sum() / squares.sum()

    exact, _ = exact_sums_and_gradient(weights[0], clusters)
    value, sums = forward([weights[0]], labels, 1.0)
    torch.testing.assert_close(sums, exact, rtol=1e-12, atol=0)
    torch.testing.assert_close(value.double(), reference.ratio(exact).sum(), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        plain(weights[0]).double(), reference.ratio(exact)[0], rtol=CLOSE[dtype][0], atol=0
    )
    compare(
        f"cluster_penalty alone, {shape_words(n, dtype)}",
        {
            "modfast": in_turn(lambda weight: forward([weight], labels, 1.0), weights),
            PLAIN: in_turn(plain, weights),
        },
        targets,
        device=gpu,
        bytes=weights[0].nbytes,
    )


@GPU_SIZES
def test_gradient_gpu(compare: Compare, gpu: str, n: int, dtype: torch.dtype) -> None:
    """The gradient alone, from sums that are known: the weight is read and its gradient written."""
    targets, n = ceiling(n), n if gpu == "cuda" else n // 32
    torch.manual_seed(0)
    weights = random_weights(n, gpu, dtype)
    clusters = modfast.Clusters.equal(n, n, 4).to(gpu)
    labels, mask = clusters.labels, clusters.mask().to(dtype)
    one = torch.ones((), device=gpu)
    backward = torch.ops.modfast.cluster_penalty_backward.default
    sums, exact = exact_sums_and_gradient(weights[0], clusters)
    value, slope = reference.ratio(sums)[0].to(dtype), (2 / sums[0, 1]).to(dtype)

    def ours(weight: Tensor) -> Tensor:
        return backward(one, [weight], labels, sums, 1.0)[0]

    def plain(weight: Tensor) -> Tensor:
        return (mask - value) * weight * slope

    largest = exact.abs().max()
    rounding, (relative, absolute) = ELEMENT[dtype], CLOSE[dtype]
    torch.testing.assert_close(ours(weights[0]).double(), exact, rtol=rounding, atol=1e-30)
    torch.testing.assert_close(
        plain(weights[0]).double(), exact, rtol=relative, atol=absolute * largest
    )
    compare(
        f"cluster_penalty_backward alone, {shape_words(n, dtype)}",
        {"modfast": in_turn(ours, weights), PLAIN: in_turn(plain, weights)},
        targets,
        device=gpu,
        bytes=2 * weights[0].nbytes,
    )


@pytest.mark.parametrize("n", TARGETS)
def test_kernels(compare: Compare, n: int) -> None:
    """The two operators alone, beside the rates of reading and of a triad."""
    assert has_ops()
    weight, out = torch.randn(n, n), torch.empty(n, n)
    labels = modfast.Clusters.equal(n, n, 4).labels
    one = torch.ones(())
    forward = torch.ops.modfast.cluster_penalty.default
    backward = torch.ops.modfast.cluster_penalty_backward.default
    sums = forward([weight], labels, 1.0)[1]

    def ours() -> None:
        forward([weight], labels, 1.0)
        backward(one, [weight], labels, sums, 1.0)

    compare(
        f"cluster_penalty and its gradient alone, {n} x {n}",
        {
            "modfast": ours,
            "sums only": lambda: forward([weight], labels, 1.0),
            "gradient only": lambda: backward(one, [weight], labels, sums, 1.0),
            "read (torch sum)": lambda: weight.sum(),
            "triad (torch add, out=)": lambda: torch.add(weight, weight, alpha=2.0, out=out),
        },
    )


@pytest.mark.short
def test_gpt2(compare: Compare, device: str) -> None:
    """The MLP weights of GPT-2: one call for twelve, against twelve calls, and plain torch."""
    torch.manual_seed(0)
    weights = [torch.randn(3072, 768, device=device, requires_grad=True) for _ in range(12)]
    clusters = modfast.Clusters.equal(3072, 768, 4).to(device)
    model = torch.nn.ModuleDict({f"h{i}": torch.nn.Linear(768, 3072) for i in range(12)})
    for layer, weight in zip(model.values(), weights, strict=True):
        layer.weight = torch.nn.Parameter(weight.detach())
    reg = modfast.ClusterabilityLoss(model, "h*", clusters=clusters, alpha=1.0)
    mask = clusters.mask().float()

    def ours() -> None:
        model.zero_grad()
        reg().backward()

    def twelve() -> None:
        for weight in weights:
            weight.grad = None
        (-sum(modfast.clusterability(w, clusters) for w in weights) / 12).backward()  # type: ignore[union-attr]

    def plain() -> None:
        for weight in weights:
            weight.grad = None
        squares = [w.square() for w in weights]
        (-sum((s * mask).sum() / s.sum() for s in squares) / 12).backward()  # type: ignore[union-attr]

    for call in (ours, twelve, plain):
        call()
    for layer, weight in zip(model.values(), weights, strict=True):
        exact = exact_sums_and_gradient(weight.detach(), clusters)[1] / -12
        for grad in (layer.weight.grad, weight.grad):
            torch.testing.assert_close(
                grad.double(), exact, rtol=1e-3, atol=1e-4 * exact.abs().max()
            )
    compare(
        "GPT-2-size weight list (12 of 3072 x 768), forward + backward",
        {"modfast, one call": ours, "modfast, twelve calls": twelve, "torch, cached mask": plain},
        rounds=9,
        block=0.3,
        device=device,
        bytes=3 * sum(weight.nbytes for weight in weights),
    )
