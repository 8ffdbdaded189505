"""`clusterability` forward and backward, against plain torch and the notebook's way."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from compare import Case
from torch import Tensor

import modfast
from modfast import ops, reference
from modfast._extension import has_ops

# size -> least ratio of plain torch with a cached mask, of the notebook's way
TARGETS = {64: (1.5, 5.0), 512: (8.0, 25.0), 4096: (20.0, 28.0)}


def cases() -> Iterator[Case]:
    for n, (plain, notebook) in TARGETS.items():
        yield autograd_case(n, plain, notebook)
    for n in TARGETS:
        yield kernels_case(n)
    yield gpt2_case()


def autograd_case(n: int, plain_target: float, notebook_target: float) -> Case:
    torch.manual_seed(0)
    weight = torch.randn(n, n, requires_grad=True)
    clusters = modfast.Clusters.equal(n, n, 4)
    mask = clusters.mask().float()
    row_lists = [(clusters.rows == c).nonzero()[:, 0].tolist() for c in range(4)]
    col_lists = [(clusters.cols == c).nonzero()[:, 0].tolist() for c in range(4)]

    def ours() -> None:
        weight.grad = None
        modfast.clusterability(weight, clusters).backward()

    def plain() -> None:
        weight.grad = None
        squares = weight.square()
        ((squares * mask).sum() / squares.sum()).backward()

    def notebook() -> None:
        weight.grad = None
        rebuilt = torch.zeros(n, n)
        for rows, cols in zip(row_lists, col_lists, strict=True):
            rebuilt[torch.tensor(rows)[:, None], torch.tensor(cols)] = 1
        ((weight**2 * rebuilt).sum() / (weight**2).sum()).backward()

    exact = reference.cluster_penalty_backward(
        torch.ones(()),
        [weight.detach().double()],
        clusters.labels,
        ops.cluster_sums([weight.detach().double()], clusters.labels),
        1.0,
    )[0]
    for call in (ours, plain, notebook):
        call()
        grad: Tensor | None = weight.grad
        assert grad is not None
        # float32 sums of plain torch are off by more than ours at 4096.
        torch.testing.assert_close(grad.double(), exact, rtol=1e-3, atol=1e-4 * exact.abs().max())
    return Case(
        f"clusterability, forward + backward, {n} x {n}",
        {"modfast": ours, "torch, cached float mask": plain, "notebook, mask rebuilt": notebook},
        {"torch, cached float mask": plain_target, "notebook, mask rebuilt": notebook_target},
    )


def kernels_case(n: int) -> Case:
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

    return Case(
        f"cluster_penalty and its gradient alone, {n} x {n}",
        {
            "modfast": ours,
            "sums only": lambda: forward([weight], labels, 1.0),
            "gradient only": lambda: backward(one, [weight], labels, sums, 1.0),
            "read (torch sum)": lambda: weight.sum(),
            "triad (torch add, out=)": lambda: torch.add(weight, weight, alpha=2.0, out=out),
        },
    )


def gpt2_case() -> Case:
    """The MLP weights of GPT-2: one call for twelve, against twelve calls, and plain torch."""
    torch.manual_seed(0)
    weights = [torch.randn(3072, 768, requires_grad=True) for _ in range(12)]
    clusters = modfast.Clusters.equal(3072, 768, 4)
    model = torch.nn.ModuleDict({f"h{i}": torch.nn.Linear(768, 3072) for i in range(12)})
    for layer, weight in zip(model.values(), weights, strict=True):
        layer.weight = torch.nn.Parameter(weight.detach())
    reg = modfast.ClusterabilityLoss(model, "h*", clusters=clusters, weight=1.0)
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
        torch.testing.assert_close(layer.weight.grad, weight.grad, rtol=1e-3, atol=1e-9)
    return Case(
        "GPT-2-size weight list (12 of 3072 x 768), forward + backward",
        {"modfast, one call": ours, "modfast, twelve calls": twelve, "torch, cached mask": plain},
        rounds=9,
        block=0.3,
    )
