"""Every operator in plain, readable torch: the oracle of the tests, never optimized.

It also runs where no compiled kernel is: without the library, and on devices that it does not
cover. Names, arguments and results are those of `csrc/schema.cpp`.

A weight is read as a matrix, dimension 0 by all the others. Rows and columns carry integer cluster
labels, -1 for none: `labels` holds the row labels and then the column labels of each weight, one
after the other. All sums are taken in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional


def same_cluster(rows: Tensor, cols: Tensor) -> Tensor:
    """Boolean `[len(rows), len(cols)]`: which entries join a row and a column of one cluster."""
    return (rows[:, None] == cols[None, :]) & (rows[:, None] >= 0)


def cluster_sums(weight: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Sum of squares within clusters, and in total: float64 `[2]`."""
    squares = weight.reshape(len(rows), len(cols)).double().square()
    return torch.stack([(squares * same_cluster(rows, cols)).sum(), squares.sum()])


def ratio(sums: Tensor) -> Tensor:
    """Clusterability from sums `[..., 2]`: within / total.

    0 for an all-zero weight, NaN for one with NaN or infinite entries.
    """
    within, total = sums.unbind(-1)
    zero = total == 0
    found = torch.where(zero, torch.zeros_like(within), within / torch.where(zero, 1.0, total))
    return torch.where(total.isinf(), torch.nan, found)


def split_labels(weights: Sequence[Tensor], labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each weight's row and column labels."""
    sizes = [size for w in weights for size in (w.shape[0], w.shape[1:].numel())]
    pieces = iter(labels.split(sizes))
    return list(zip(pieces, pieces, strict=True))


def cluster_penalty(
    weights: Sequence[Tensor], labels: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """scale * (sum of the weights' clusterabilities), and the float64 sums `[n, 2]`.

    The value is float64 if any weight is, else float32.
    """
    pairs = zip(weights, split_labels(weights, labels), strict=True)
    sums = torch.stack([cluster_sums(w, rows, cols) for w, (rows, cols) in pairs])
    double = any(w.dtype == torch.float64 for w in weights)
    value = scale * ratio(sums).sum()
    return value.to(torch.float64 if double else torch.float32), sums


def cluster_penalty_backward(
    grad: Tensor, weights: Sequence[Tensor], labels: Tensor, sums: Tensor, scale: float
) -> list[Tensor]:
    """Gradient of `cluster_penalty`'s value, times `grad`, for each weight.

    With C = S/T: dC/dw = 2 w (m - C) / T, m being 1 inside clusters and 0 outside.
    """
    return [
        (_penalty_gradient(w, rows, cols, s, scale) * grad.double()).to(w.dtype)
        for w, (rows, cols), s in zip(weights, split_labels(weights, labels), sums, strict=True)
    ]


def _penalty_gradient(
    weight: Tensor, rows: Tensor, cols: Tensor, sums: Tensor, scale: float
) -> Tensor:
    """Float64 gradient of scale * clusterability, in the weight's shape; 0 for a zero weight."""
    total = sums[1]
    mask = same_cluster(rows, cols).double().reshape(weight.shape)
    slope = 2 * scale * (mask - ratio(sums)) / torch.where(total == 0, 1.0, total)
    return weight.double() * slope


def _total_gradients(
    weights: Sequence[Tensor], grads: Sequence[Tensor], labels: Tensor, sums: Tensor, scale: float
) -> list[Tensor]:
    """The loss's gradients plus the penalty's, in the precision in which updates are computed."""
    totals = [g.double() if g.dtype == torch.float64 else g.float() for g in grads]
    for i, (rows, cols) in enumerate(split_labels(weights[: len(sums)], labels)):
        penalty = _penalty_gradient(weights[i], rows, cols, sums[i], scale)
        totals[i] = totals[i] + penalty.to(totals[i].dtype)
    return totals


def _retake(weights: Sequence[Tensor], labels: Tensor, sums: Tensor) -> None:
    for i, (rows, cols) in enumerate(split_labels(weights[: len(sums)], labels)):
        sums[i] = cluster_sums(weights[i], rows, cols)


def clustered_sgd_(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    labels: Tensor,
    sums: Tensor,
    scale: float,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    first: bool,
) -> None:
    """One torch.optim.SGD step on loss + scale * sum of clusterabilities, in place.

    `sums` `[k, 2]` holds the cluster sums of the first k weights on entry and those of the new
    weights on return; `labels` are of these k, the others take the plain step. `first` sets the
    momentum buffers instead of reading them; without momentum they may be an empty list.
    """
    totals = _total_gradients(weights, grads, labels, sums, scale)
    for i, (w, step) in enumerate(zip(weights, totals, strict=True)):
        step = step + weight_decay * w.to(step.dtype)
        if momentum != 0:
            buffer = momentum_buffers[i]
            old = buffer.to(step.dtype)
            new = step if first else momentum * old + (1 - dampening) * step
            buffer.copy_(new)
            step = step + momentum * new if nesterov else new
        w.copy_(w.to(step.dtype) - lr * step)
    _retake(weights, labels, sums)


def clustered_adam_(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    labels: Tensor,
    sums: Tensor,
    scale: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """One torch.optim.Adam (`decoupled`: AdamW) step on loss + scale * clusterabilities, in place.

    `steps` are float32 scalars on the CPU, counted up here. For the rest see `clustered_sgd_`.
    """
    totals = _total_gradients(weights, grads, labels, sums, scale)
    for i, (w, grad) in enumerate(zip(weights, totals, strict=True)):
        steps[i] += 1
        step = steps[i].item()
        old = w.to(grad.dtype)
        if decoupled:
            old = old * (1 - lr * weight_decay)
        else:
            grad = grad + weight_decay * old
        mean = beta1 * exp_avgs[i].to(grad.dtype) + (1 - beta1) * grad
        square = beta2 * exp_avg_sqs[i].to(grad.dtype) + (1 - beta2) * grad.square()
        exp_avgs[i].copy_(mean)
        exp_avg_sqs[i].copy_(square)
        denominator = square.sqrt() / (1 - beta2**step) ** 0.5 + eps
        w.copy_(old - lr / (1 - beta1**step) * mean / denominator)
    _retake(weights, labels, sums)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
}


def ablation_terms(logits: Tensor, ablated: Tensor, targets: Tensor | None = None) -> Tensor:
    """What an ablation does to each sample: float64 `[k, ..., n]` from `[n, c]` and `[..., n, c]`.

    With p and q the class probabilities before and after: H(p) - H(q), KL(q | p), KL(p | q); with
    targets `[n]` also the loss -log q(target), and 1 where the target has the first largest logit.
    """
    log_p, log_q = logits.double().log_softmax(-1), ablated.double().log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    change = log_q - log_p
    terms = [
        (q * log_q).sum(-1) - (p * log_p).sum(-1),
        (q * change).sum(-1),
        -(p * change).sum(-1),
    ]
    if targets is not None:
        chosen = targets.expand(log_q.shape[:-1])
        terms.append(-log_q.gather(-1, chosen[..., None])[..., 0])
        terms.append((ablated.argmax(-1) == chosen).double())
    return torch.stack(terms)


def class_sums(correct: Tensor, targets: Tensor | None, n_classes: int) -> Tensor:
    """Of `correct` `[n, a]`, the sum over the samples of each class: `[a, n_classes]`."""
    if targets is None:
        return correct.new_empty(correct.shape[1], 0)
    return correct.new_zeros(n_classes, correct.shape[1]).index_add(0, targets, correct).T


def _collected(
    terms: Sequence[Tensor], logits: Tensor, targets: Tensor | None, per_sample: bool
) -> tuple[Tensor, Tensor]:
    """One `[k, n]` per ablation, as the operators return them."""
    n_terms = 3 if targets is None else 5
    found = torch.stack([*terms], -1) if terms else logits.new_empty(n_terms, len(logits), 0)
    found = found.double()
    classes = class_sums(found[-1], targets, logits.shape[1]).contiguous()
    return (found if per_sample else found.sum(1)), classes


def ablation_sweep(
    logits: Tensor, scales: Tensor, updates: Tensor, targets: Tensor | None, per_sample: bool
) -> tuple[Tensor, Tensor]:
    """Ablations that change the logits by a rank-1 term: logits + scales[:, a] updates[a].

    Takes `[n, c]`, `[n, a]`, `[a, c]` and targets `[n]`. Returns the sums of `ablation_terms` over
    the samples, float64 `[k, a]` (`per_sample`: the terms, `[k, n, a]`), and the correct samples of
    each class, float64 `[a, c]` (`[a, 0]` without targets).
    """
    z = logits.double()
    found = [
        ablation_terms(z, z + torch.outer(scale, update), targets)
        for scale, update in zip(scales.double().T, updates.double(), strict=True)
    ]
    return _collected(found, logits, targets, per_sample)


def ablation_sweep_hidden(
    logits: Tensor,
    hidden: Tensor,
    scales: Tensor,
    updates: Tensor,
    activation: str,
    weight: Tensor,
    targets: Tensor | None,
    per_sample: bool,
) -> tuple[Tensor, Tensor]:
    """Ablations that change the last hidden layer's pre-activations by a rank-1 term.

    The logits become logits + (act(hidden + scales[:, a] updates[a]) - act(hidden)) weightᵀ, with
    hidden `[n, m]`, scales `[n, a]`, updates `[a, m]`, weight `[c, m]`. Returns what
    `ablation_sweep` does.
    """
    act = ACTIVATIONS[activation]
    z, p, w = logits.double(), hidden.double(), weight.double()
    before = act(p)
    found = [
        ablation_terms(z, z + (act(p + torch.outer(scale, update)) - before) @ w.T, targets)
        for scale, update in zip(scales.double().T, updates.double(), strict=True)
    ]
    return _collected(found, logits, targets, per_sample)
