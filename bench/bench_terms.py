"""Terms of ablated logits over GPT-2's vocabulary, against torch and against reading the logits.

The reading is one sum of each tensor. Its ratio is below 1 where modfast takes longer than that.
"""

from __future__ import annotations

import pytest
import torch
from timing import Compare, Peers
from torch import Tensor

from modfast import ops, reference

EXACT, PLAIN, READ = "torch, float64", "torch, float32", "reading the logits once"
# ablations, dtype -> least ratios
TARGETS = {
    (1, torch.float32): {EXACT: 4.0, READ: 1 / 1.5},
    (4, torch.float32): {EXACT: 4.0, READ: 1 / 1.5},
    (1, torch.float64): {EXACT: 4.0},
    (1, torch.bfloat16): {EXACT: 4.0},
}


def plain(logits: Tensor, ablated: Tensor, targets: Tensor) -> Tensor:
    """All terms, summed over samples, `[5, a]`, in the logits' own dtype."""
    log_p, log_q = logits.log_softmax(-1), ablated.log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    gap = log_q - log_p
    chosen = targets.expand(log_q.shape[:-1])
    terms = [
        (q * log_q).sum(-1) - (p * log_p).sum(-1),
        (q * gap).sum(-1),
        -(p * gap).sum(-1),
        -log_q.gather(-1, chosen[..., None])[..., 0],
        ablated.argmax(-1) == chosen,
    ]
    return torch.stack([term.double().sum(-1) for term in terms])


@pytest.mark.parametrize(("a", "dtype"), TARGETS)
@pytest.mark.parametrize("change", [0.05, 1.0])
def test_terms(compare: Compare, a: int, dtype: torch.dtype, change: float) -> None:
    n, c = 512, 50_257
    torch.manual_seed(0)
    logits = 3 * torch.randn(n, c)
    ablated = (logits + change * torch.randn(a, n, c)).to(dtype)
    logits = logits.to(dtype)
    targets = logits.float().argmax(1)
    targets[::2] = torch.randint(0, c, (n // 2,))

    found, _ = ops.logit_terms(logits, ablated, targets)
    exact, _ = reference.logit_terms(logits, ablated, targets, False)
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-4)
    peers: Peers = {
        "modfast": lambda: ops.logit_terms(logits, ablated, targets),
        EXACT: lambda: reference.logit_terms(logits, ablated, targets, False),
        READ: lambda: (logits.sum(), ablated.sum()),
    }
    if dtype == torch.float32:
        torch.testing.assert_close(plain(logits, ablated, targets), exact, rtol=1e-2, atol=1e-1)
        peers[PLAIN] = lambda: plain(logits, ablated, targets)
    name = str(dtype).removeprefix("torch.")
    compare(
        f"terms of logits [{a}, {n}, {c}], {name}, changes of {change:g}",
        peers,
        TARGETS[a, dtype],
        rounds=7,
    )
