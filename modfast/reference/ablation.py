"""What ablations that change a layer's inputs by a rank-1 term do to the logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

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


def logit_terms(
    logits: Tensor, ablated: Tensor, targets: Tensor | None, per_sample: bool
) -> tuple[Tensor, Tensor]:
    """Ablations that turn logits `[n, c]` into `[a, n, c]`; returns what `ablation_sweep` does."""
    z = logits.double()
    return _collected([ablation_terms(z, w, targets) for w in ablated], logits, targets, per_sample)


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
